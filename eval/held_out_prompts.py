"""The prompts of held-out pairs, read from the shards that hold them."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.rows import ROWS_FILE, Content, decode
from alignment.data.split import SPLIT_FILE
from alignment.stages import Context
from alignment.stages.preference_manifest import read_manifest
from alignment.store import Artifact, CorruptArtifact
from eval.held_out import read_held_out


@dataclass(frozen=True)
class HeldOutPrompt:
    """A prompt, and the held-out row that brings it."""

    row_id: str
    content: Content


def held_out_prompts(context: Context, policy: Artifact, manifest: Artifact, most: int) -> list[HeldOutPrompt]:
    """Distinct prompts of the pairs that a policy was measured on, lowest row id first, at most this many.

    `manifest` is the one it was trained on. Row ids are digests, so these are a sample of all held-out prompts, which
    new data hardly changes. Only shards that hold one of them are read.
    """
    held_out = read_held_out(context.store, policy)
    first: dict[str, str] = {}
    for pair in held_out.pairs if held_out else []:
        first.setdefault(pair.prompt_id, pair.row_id)
    row_ids = list(first.values())[:most]
    if not row_ids:
        return []
    folder = context.fetch(manifest)
    these = pc.field("row_id").isin(row_ids)
    places = pq.read_table(folder / SPLIT_FILE, columns=["shard"], filters=these & (pc.field("split") == "held_out"))
    shards = set(places["shard"].to_pylist())
    contents: dict[str, Content] = {}
    for shard in read_manifest(folder).shards:
        if shard.name in shards:
            path = context.fetch(shard.shard) / ROWS_FILE
            for row in pq.read_table(path, columns=["row_id", "form", "prompt"], filters=these).to_pylist():
                contents[row["row_id"]] = decode(row["form"], row["prompt"])
    if missing := [row_id for row_id in row_ids if row_id not in contents]:
        raise CorruptArtifact(
            f"{len(missing)} held-out rows of the policy are not in its manifest (first: {missing[0]})"
        )
    return [HeldOutPrompt(row_id, contents[row_id]) for row_id in row_ids]
