"""The split is read a shard at a time, whatever row groups it was written in."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.data import manifest as split_file
from alignment.data.manifest import SPLIT_FILE, SPLIT_SCHEMA, SplitFile, SplitWriter
from alignment.store import CorruptArtifact


def places(shard: str, rows: int) -> pa.Table:
    cells = [{"row_id": f"{shard} {row}", "shard": shard, "split": "train", "reason": None} for row in range(rows)]
    return pa.Table.from_pylist(cells, schema=SPLIT_SCHEMA)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), group=st.integers(1, 12), ours=st.booleans())
def test_each_shard_gets_its_own_places(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], group: int, ours: bool
) -> None:
    """Written by us, or as earlier versions did: in groups that begin and end anywhere."""
    folder = tmp_path_factory.mktemp("split")
    shards = [places(f"s{number}", rows) for number, rows in enumerate(sizes)]
    if ours:
        with pytest.MonkeyPatch.context() as patch, SplitWriter(folder) as writer:
            patch.setattr(split_file, "GROUP_ROWS", group)
            for shard in shards:
                writer.write(shard)
    else:
        pq.write_table(pa.concat_tables(shards), folder / SPLIT_FILE, row_group_size=group)
    with SplitFile(folder, sizes) as split:
        for index in reversed(range(len(sizes))):
            assert split.of_shard(index).to_pylist() == shards[index].to_pylist()
            assert split.of_shard(index, ["split"]).column_names == ["split"]
    assert pq.read_table(folder / SPLIT_FILE).equals(pa.concat_tables(shards))


def test_no_row_group_holds_rows_of_two_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_file, "GROUP_ROWS", 4)
    with SplitWriter(tmp_path) as writer:
        for name, rows in (("a", 3), ("b", 9), ("c", 1)):
            writer.write(places(name, rows))
    about = pq.read_metadata(tmp_path / SPLIT_FILE)
    assert [about.row_group(group).num_rows for group in range(about.num_row_groups)] == [3, 4, 4, 1, 1]


def test_a_split_of_other_shards_is_refused(tmp_path: Path) -> None:
    with SplitWriter(tmp_path) as writer:
        writer.write(places("a", 3))
    with pytest.raises(CorruptArtifact, match=r"3 rows in split\.parquet, 4 in the manifest's shards"):
        SplitFile(tmp_path, [3, 1])
