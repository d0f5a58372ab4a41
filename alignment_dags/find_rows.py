"""`align prefs find`: the ids of the rows that hold a text, which is how a person who asks for data to go has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.withdrawal import SHARDS, Holder
from alignment.errors import BadInput
from alignment.recipe import load_recipe
from alignment.store import Artifact, Store
from alignment.store.store import refs_of
from alignment_dags.gc.text import DATASET, DEMONSTRATIONS, SHARD
from resources.store import ArtifactStore

TEXTS = ("prompt", "chosen", "rejected", "completion")


def find_rows(path: Path, text: str) -> dict[str, Any]:
    """`rows` [{row_id, shard, source, source_row}] of a recipe's current shards and SFT data that hold the text."""
    if not text.strip():
        raise BadInput("an empty text is in every row")
    recipe = load_recipe(path)
    store = ArtifactStore().open()
    rows: list[dict[str, Any]] = []
    for holder in (SHARDS, DEMONSTRATIONS):
        for named in refs_of(store, holder.kind, partitioned=holder.kind == SHARD):
            if named.recipe == recipe.name:
                place = "(SFT data)" if holder.kind == DATASET else named.partition
                rows += ({"shard": place, **row} for row in _holding(store, named.ref.artifact, holder, text))
    return {"rows": rows}


def show_found(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        print(f"{row['row_id']}  {row['shard']}: {row['source']} row {row['source_row']}")
    print(f"{len(result['rows'])} rows hold it" if result["rows"] else "no current row holds it")


def _holding(store: Store, artifact: Artifact, holder: Holder, text: str) -> Iterator[dict[str, Any]]:
    """Messages are kept as JSON, so the text is looked for as JSON writes it too."""
    written = {text, json.dumps(text, ensure_ascii=False)[1:-1]}
    for name in holder.files:
        table = pq.read_table(pa.BufferReader(store.read(artifact, name)))
        found = pa.array([False] * table.num_rows)
        for column in set(TEXTS) & set(table.column_names):
            for form in written:
                held = pc.fill_null(pc.match_substring(table[column], form), False)
                found = pc.or_(found, held.combine_chunks())
        yield from table.filter(found).select(["row_id", "source", "source_row"]).to_pylist()
