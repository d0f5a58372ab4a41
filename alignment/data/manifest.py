"""The files of a preference manifest: manifest.json, what was pinned, and split.parquet, where each row went."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from alignment.store import Artifact, CorruptArtifact

MANIFEST_FILE = "manifest.json"
SPLIT_FILE = "split.parquet"
SPLIT_SCHEMA = pa.schema(
    [("row_id", pa.string()), ("shard", pa.string()), ("split", pa.string()), ("reason", pa.string())]
)
"""`split` is train, held_out or dropped; `reason` says why a row was dropped and is null otherwise."""
GROUP_ROWS = 1 << 17


class ManifestShard(BaseModel):
    """One shard as it was pinned. `reference` and `fingerprint` are None for reference-free methods."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    rows: int
    row_digest: str
    shard: Artifact
    reference: Artifact | None
    fingerprint: str | None


class Manifest(BaseModel):
    """What a policy is trained on: `counts` {rows, train, held_out, dropped}, `dropped` {reason: rows}."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    kind: Literal["paired", "unpaired"]
    shards: list[ManifestShard]
    """Ordered by content, never by name."""
    left_out: dict[str, str]
    """Shard → why no row of it takes part."""
    held_out_fraction: float
    counts: dict[str, int]
    dropped: dict[str, int]


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a fetched artifact folder."""
    return Manifest.model_validate_json((folder / MANIFEST_FILE).read_text(encoding="utf-8"))


def open_split(folder: Path, manifest: Manifest) -> SplitFile:
    """The split of the manifest in a fetched artifact folder, to be read shard by shard in the manifest's order."""
    return SplitFile(folder, [shard.rows for shard in manifest.shards])


def source_of(shard: str, sources: Collection[str]) -> str:
    """The one of several named sources that a shard is of; empty if it is of none of them."""
    lead = shard.partition("-")[0]  # a source's name has no hyphen, and leads its shards' names
    return lead if lead in sources else ""


OTHERS = "other shards"
"""What the shards of none of several named sources are told as, such as generated pairs; no source is called so."""


T = TypeVar("T")


def by_source(shards: Iterable[tuple[str, T]], sources: Collection[str]) -> dict[str, list[T]]:
    """What is given with the shards' names, put together for each of several named sources, those of none of them under
    `OTHERS`; empty unless there are two or more such groups."""
    groups: dict[str, list[T]] = {}
    for name, each in shards:
        groups.setdefault(source_of(name, sources) or OTHERS, []).append(each)
    return groups if len(groups) > 1 else {}


NO_OTHER: Mapping[str, str] = MappingProxyType({})


def sources_of(
    split: Path | IO[bytes], rows: Collection[str], sources: Collection[str], called: Mapping[str, str] = NO_OTHER
) -> dict[str, str]:
    """Which of several named sources each of the rows is of, by a manifest's split file; empty where it is of none of
    them. A row that the split does not have is left out. `called` is what shards of the split are called now."""
    table = pq.read_table(split, columns=["row_id", "shard"])
    named = table.filter(pc.is_in(table["row_id"], value_set=pa.array(sorted(rows), pa.string())))
    return {row["row_id"]: source_of(called.get(row["shard"], row["shard"]), sources) for row in named.to_pylist()}


def called_now(before: Manifest, now: Manifest) -> dict[str, str]:
    """What the shards of a manifest are called in another, by their contents: a source may have a new name since."""
    names = {shard.shard.digest: shard.name for shard in now.shards}
    return {shard.name: names.get(shard.shard.digest, shard.name) for shard in before.shards}


# split.parquet is written and read a shard at a time: a manifest may have more rows than memory holds.


class SplitWriter:
    """Writes the places of one shard after the other, each in row groups of its own."""

    def __init__(self, folder: Path) -> None:
        repeated = [name for name in SPLIT_SCHEMA.names if name != "row_id"]
        self._file = pq.ParquetWriter(
            folder / SPLIT_FILE, SPLIT_SCHEMA, compression="zstd", use_dictionary=repeated, write_statistics=False
        )

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def write(self, places: pa.Table) -> None:
        """Adds the places of the next shard."""
        self._file.write_table(places, row_group_size=GROUP_ROWS)


class SplitFile:
    """The split of a fetched manifest, whose shards have `sizes` rows; whatever its row groups are."""

    def __init__(self, folder: Path, sizes: Sequence[int]) -> None:
        """Raises `CorruptArtifact` unless the file has as many rows as the shards."""
        self._file = pq.ParquetFile(folder / SPLIT_FILE)
        self._ends = np.cumsum(sizes, dtype=np.int64)
        about = self._file.metadata
        if about.num_rows != sum(sizes):
            raise CorruptArtifact(f"{about.num_rows} rows in {SPLIT_FILE}, {sum(sizes)} in the manifest's shards")
        groups = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        self._group_ends = np.cumsum(groups, dtype=np.int64)

    def __enter__(self) -> SplitFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def of_shard(self, index: int, columns: Sequence[str] = tuple(SPLIT_SCHEMA.names)) -> pa.Table:
        """The rows of the manifest's shard `index` in source order; reads only the groups that hold them."""
        end = int(self._ends[index])
        start = int(self._ends[index - 1]) if index else 0
        first, last = np.searchsorted(self._group_ends, (start, end - 1), side="right")
        table = self._file.read_row_groups(range(int(first), int(last) + 1), columns=list(columns))
        return table.slice(start - int(self._group_ends[first - 1] if first else 0), end - start)
