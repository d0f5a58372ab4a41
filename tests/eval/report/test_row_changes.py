"""New and gone rows are the differences of the two manifests' sets of rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.data import duplicates as id_groups
from alignment.data.manifest import SPLIT_SCHEMA, Manifest, ManifestShard, SplitWriter
from alignment.data.rows import content_id
from alignment.digest import lines_digest
from alignment.store import Artifact
from eval.report import data_changes as module
from eval.report.data_changes import row_changes

Shards = list[list[int]]


def write(folder: Path, shards: Shards) -> tuple[Path, Manifest]:
    """A manifest whose shards are rows by number, of equal digest where the rows are equal."""
    folder.mkdir()
    made = []
    with SplitWriter(folder) as writer:
        for name, rows in enumerate(shards):
            ids = [content_id({"row": row}) for row in rows]
            cells = [{"row_id": one, "shard": str(name), "split": "train", "reason": None} for one in ids]
            writer.write(pa.Table.from_pylist(cells, schema=SPLIT_SCHEMA))
            digest = lines_digest(sorted(ids))
            shard = Artifact(kind="preference_shard", key="k", attempt="a", digest=digest)
            made.append(
                ManifestShard(
                    name=str(name), rows=len(rows), row_digest=digest, shard=shard, reference=None, fingerprint=None
                )
            )
    rows = sum(map(len, shards))
    counts = {"rows": rows, "train": rows, "held_out": 0, "dropped": 0}
    about = Manifest(kind="paired", shards=made, left_out={}, held_out_fraction=0.0, counts=counts, dropped={})
    return folder, about


some_rows = st.lists(st.integers(0, 12), min_size=1, max_size=5, unique=True)


@settings(max_examples=80, deadline=None)
@given(
    kept=st.lists(some_rows, max_size=3),
    ours=st.lists(some_rows, min_size=1, max_size=3),
    theirs=st.lists(some_rows, min_size=1, max_size=3),
    at_once=st.integers(1, 20),
    beginning=st.sampled_from([1, 24]),
)
def test_the_counts_are_the_set_differences(
    tmp_path_factory: pytest.TempPathFactory, kept: Shards, ours: Shards, theirs: Shards, at_once: int, beginning: int
) -> None:
    folder = tmp_path_factory.mktemp("manifests")
    now, before = write(folder / "now", [*ours, *kept]), write(folder / "before", [*kept, *theirs])
    ours_all, theirs_all = ({row for shard in one for row in shard} for one in ([*ours, *kept], [*kept, *theirs]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_groups, "ROWS_AT_ONCE", at_once)
        patch.setattr(module, "PREFIX_BITS", beginning)
        assert row_changes(now, before) == (len(ours_all - theirs_all), len(theirs_all - ours_all))


def test_shards_that_both_have_are_not_read_when_nothing_else_changed(tmp_path: Path) -> None:
    now, before = write(tmp_path / "now", [[1, 2], [3]]), write(tmp_path / "before", [[3], [1, 2]])
    for folder, _ in (now, before):
        (folder / "split.parquet").unlink()
    assert row_changes(now, before) == (0, 0)
