"""Which models were given a row: every policy, registered or not, by the store alone."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from alignment.data.manifest import SPLIT_FILE
from alignment.data.rows import HELD_OUT_FILE, TRAIN_FILE
from alignment.data.rows import ROWS_FILE as SHARD_ROWS
from alignment.data.withdrawal import What, tombstone
from alignment.errors import BadInput
from alignment.stages.policy import ON_POLICY_FILE, ROWS_FILE
from alignment.stages.preference_shard import PAIRS_FILE
from alignment.stages.stage import starts_of, trainings_of
from alignment.store import Artifact, Commit, MissingArtifact, Store
from alignment.store.erase import all_commits, current_erasure
from alignment.store.store import refs_of
from alignment_dags.registry.registrations import REGISTERED, name_and_version, registration_of
from alignment_dags.retention.text import SHARD
from assets.champion import registered_champion
from assets.learned import IDS_FILE
from assets.registration import RegistrationSummary
from resources.store import ArtifactStore

POLICY, SFT = "policy_checkpoint", "sft_checkpoint"


def row_lineage(row_id: str) -> dict[str, Any]:
    """`policies` that were given the row, newest first: {digest, key, recipe, made_at, split, reason, weights,
    registered}, and `withdrawn` {recipe: {at, reason}}.

    `origin` is None for a row that somebody wrote; of a pair that was made of sampled answers it has the `generator`,
    the `judge` that scored them, the `round`, and the `prompt`'s id. `split` is train, held_out, dropped (with
    `reason`), or `sft` if its SFT checkpoint was given the row;
    `registered` lists model, version and whether it is champion.
    """
    store = ArtifactStore().open()
    champions = {registered_champion(store, named.ref.artifact).registration for named in refs_of(store, REGISTERED)}
    registered = [commit for commit in all_commits(store, REGISTERED) if RegistrationSummary.of(commit).registered]
    learned = {commit.digest for commit in all_commits(store, SFT) if _demonstrated(store, commit, row_id)}
    policies = []
    for commit in sorted(all_commits(store, POLICY), key=lambda commit: commit.started_at, reverse=True):
        place, before = _place(store, commit, row_id), list(trainings_of(store.commit_of, commit))
        if (place is None or place[0] != "train") and any(
            _place(store, earlier, row_id) == ("train", None) for earlier in before[1:]
        ):
            place = ("train", None)  # an earlier link, or a part of an average, was: its weights are in this one
        if place is None and any(starts_of(store.commit_of, each)[-1].digest in learned for each in before):
            place = ("sft", None)
        if place is not None:
            erasure = current_erasure(store, commit.artifact)
            versions = [other for other in registered if other.inputs["policy"].digest == commit.digest]
            policies.append(
                {
                    "digest": commit.digest,
                    "key": commit.key,
                    "recipe": commit.environment.get("recipe") or None,
                    "made_at": commit.started_at,
                    "split": place[0],
                    "reason": place[1],
                    "weights": "kept" if erasure is None else erasure.message,
                    "registered": _versions(versions, champions),
                }
            )
    return {
        "row": row_id,
        "policies": policies,
        "withdrawn": _withdrawn(store, row_id),
        "origin": _origin(store, row_id),
    }


ORIGIN = ("generator", "judge", "round")


def _origin(store: Store, row_id: str) -> dict[str, Any] | None:
    """Where a generated row comes from; None for any other."""
    for commit in store.commits(SHARD):
        if "generated" not in commit.inputs:
            continue
        columns = [*ORIGIN, "source_row"]
        for row in _rows(store, commit.artifact, SHARD_ROWS, row_id, columns):
            pair = commit.inputs["generated"]
            with suppress(MissingArtifact), store.open(pair, PAIRS_FILE) as stream:
                prompts = pq.read_table(stream, columns=["row_id"])["row_id"]
                return {name: row[name] for name in ORIGIN} | {"prompt": prompts[row["source_row"] - 1].as_py()}
            return {name: row[name] for name in ORIGIN} | {"prompt": None}
    return None


def show_row(result: dict[str, Any]) -> None:
    """Prints which policies were given a row, and where it was withdrawn."""
    for policy in result["policies"]:
        versions = ", ".join(
            f"{version['model']} version {version['version']}{' (champion)' if version['champion'] else ''}"
            for version in policy["registered"]
        )
        what = {
            "train": "trained on it",
            "held_out": "measured on it (held out)",
            "sft": "its SFT checkpoint was given it",
        }
        split = what.get(policy["split"], f"left it out ({policy['reason']})")
        recipe = policy["recipe"] or "an unnamed recipe"
        print(
            f"{policy['made_at']}  policy {policy['digest'][:12]} of {recipe}: {split};"
            f" {versions or 'never registered'}; weights {policy['weights']}"
        )
    if origin := result["origin"]:
        print(
            f"made of answers by {origin['generator']} to prompt {origin['prompt'] or '(erased)'}, scored by"
            f" {origin['judge'] or 'nobody'}" + (f", round {origin['round']}" if origin["round"] else "")
        )
    if not result["policies"]:
        print(f"no policy in this store was given row {result['row']}")
    for recipe, stone in result["withdrawn"].items():
        print(f"withdrawn from {recipe} on {stone['at']}" + (f": {stone['reason']}" if stone["reason"] else ""))


PROMPTS = "(prompts)"
"""In place of a shard: the prompts that an on-policy training sampled answers to."""
RANKS = pa.array(["train", "held_out", "dropped"])
"""A row's splits, the strongest first: weights have what any of their trainings was trained on."""


def rows_of(store: Store, model: str) -> pa.Table:
    """All rows that a model version's weights came from: `row_id`, `shard`, `split` (train, held_out or dropped), and
    the `reason` why it was dropped.

    They are those of the version's manifest, then the prompts of an on-policy training (`PROMPTS` in place of a shard),
    and behind them what the manifests of earlier links and rounds, and of the other parts of an average, have more or
    train on (see `_together`). Raises `BadInput` for a model that is not there.
    """
    policy = store.commit_of(registration_of(store, *name_and_version(model)).inputs["policy"])
    trainings = {trained.key: trained for trained in trainings_of(store.commit_of, policy)}
    return reduce(_together, (_given(store, trained) for trained in trainings.values()))


def _given(store: Store, policy: Commit) -> pa.Table:
    """The rows of a training's manifest, in its order, as the training used them."""
    with store.open(policy.inputs["manifest"], SPLIT_FILE) as stream:
        rows = pq.read_table(stream)
    with suppress(MissingArtifact):  # erased, or not there: the manifest's split stands without what training dropped
        with store.open(policy.artifact, ROWS_FILE) as stream:
            trained = pq.read_table(stream)  # in the manifest's order
        assert trained["row_id"].equals(rows["row_id"])
        for name in ("split", "reason"):
            rows = rows.set_column(rows.column_names.index(name), name, trained[name].cast(rows[name].type))
    if ON_POLICY_FILE in policy.files:
        with suppress(MissingArtifact):
            prompts = _prompts(store, policy.artifact, rows.schema)
            rows = pa.concat_tables([rows, prompts])
    return rows


def _prompts(store: Store, policy: Artifact, schema: pa.Schema) -> pa.Table:
    """The prompts that an on-policy training sampled answers to, as rows of no shard."""
    with store.open(policy, ON_POLICY_FILE) as stream:
        ids = pq.read_table(stream, columns=["row_id"])["row_id"].to_pylist()
    told = {"shard": PROMPTS, "split": "train", "reason": None}
    return pa.Table.from_pylist([{"row_id": id, **told} for id in dict.fromkeys(ids)], schema)


def _together(rows: pa.Table, more: pa.Table) -> pa.Table:
    """The rows of two trainings, each of a shard once: train goes before held_out, held_out before dropped, and the
    first training before the second. A row that is in several shards is dropped in all but one, as in a manifest."""
    both = pa.concat_tables([rows, more])
    count = both.num_rows
    place = pa.array(np.arange(count))
    order = pc.add(pc.multiply(pc.cast(pc.index_in(both["split"], RANKS), pa.int64()), count), place)
    ordered = both.append_column("order", order)
    in_shard, anywhere = (
        ordered.group_by(names).aggregate([("order", "min")])["order_min"]
        for names in (["row_id", "shard"], ["row_id"])
    )
    first = pc.or_(pc.equal(both["split"], "dropped"), pc.is_in(order, anywhere))
    return both.filter(pc.and_(pc.is_in(order, in_shard), first))


def write_rows(model: str, out: Path) -> dict[str, Any]:
    """Writes `rows_of` a model version to a Parquet or CSV file; returns the number of rows of each split.

    Raises `BadInput` for a model that is not there and a file that cannot be written.
    """
    rows = rows_of(ArtifactStore().open(), model)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".csv":
            csv.write_csv(rows, out)
        else:
            pq.write_table(rows, out)
    except OSError as error:
        raise BadInput(f"cannot be written: {error.strerror}", file=str(out), field="--rows") from error
    counts = Counter(rows["split"].to_pylist())
    return {"file": str(out), "rows": rows.num_rows, **{split: counts[split] for split in sorted(counts)}}


def _place(store: Store, policy: Commit, row_id: str) -> tuple[str, str | None] | None:
    """The split of a row, and the reason: by the policy's own record, or if it was erased, by its manifest. A prompt
    that an on-policy training sampled answers to was trained on."""
    if ON_POLICY_FILE in policy.files:
        with suppress(MissingArtifact):
            if _rows(store, policy.artifact, ON_POLICY_FILE, row_id, ["row_id"]):
                return "train", None
    for artifact, name in ((policy.artifact, ROWS_FILE), (policy.inputs["manifest"], SPLIT_FILE)):
        try:
            rows = _rows(store, artifact, name, row_id, ["split", "reason"])
        except MissingArtifact:
            continue
        kept = [cells for cells in rows if cells["split"] != "dropped"] or rows  # a repeated row is dropped once
        return (kept[0]["split"], kept[0]["reason"]) if kept else None
    return None


def _demonstrated(store: Store, sft: Commit, row_id: str) -> bool:
    """Whether an SFT checkpoint's data had a row; erased data still has the ids of its rows."""
    dataset = sft.inputs.get("dataset")
    if dataset is None:
        return False
    for names in ((TRAIN_FILE, HELD_OUT_FILE), (IDS_FILE,)):
        try:
            return any(_rows(store, dataset, name, row_id, ["row_id"]) for name in names)
        except MissingArtifact:
            continue
    return False


def _rows(store: Store, artifact: Artifact, name: str, row_id: str, columns: list[str]) -> list[dict[str, Any]]:
    """The cells of a row in a file, which is read in batches."""
    rows: list[dict[str, Any]] = []
    with store.open(artifact, name) as stream, pq.ParquetFile(stream) as file:
        for batch in file.iter_batches(columns=[*{"row_id", *columns}]):
            rows += batch.filter(pc.equal(batch["row_id"], row_id)).select(columns).to_pylist()
    return rows


def _versions(registrations: list[Commit], champions: set[Artifact | None]) -> list[dict[str, Any]]:
    versions: dict[tuple[str, str], bool] = {}
    for commit in registrations:
        name = RegistrationSummary.of(commit).model_version
        versions[name] = versions.get(name, False) or commit.artifact in champions
    return [{"model": model, "version": version, "champion": is_} for (model, version), is_ in sorted(versions.items())]


def _withdrawn(store: Store, row_id: str) -> dict[str, dict[str, str]]:
    recipes = {path.rsplit("/", 1)[-1] for path in store.matching(store.path("withdrawn"), "*")}
    kinds: tuple[What, ...] = ("rows", "demonstrations")
    stones = ((recipe, tombstone(store, recipe, what, row_id)) for recipe in sorted(recipes) for what in kinds)
    return {recipe: {"at": stone.at, "reason": stone.reason} for recipe, stone in stones if stone is not None}
