"""Where rows go, against the plain definition; and in memory that does not grow with them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.data import duplicates as id_groups
from alignment.data.assign import Filters, ShardFiles, assign
from alignment.data.manifest import SplitWriter
from alignment.data.measure import Contradictions
from alignment.data.rows import PreferenceRow, is_held_out, paired_row, write_rows
from alignment.errors import BadInput
from alignment.logprobs.table import DROPPED_SCHEMA
from alignment.store import CorruptArtifact

REASONS = ("too long", "no countable token")


@dataclass(frozen=True)
class Made:
    """A shard's rows by number, which of them its reference drops and why, and whether it has one at all."""

    rows: tuple[int, ...]
    dropped: dict[int, str]
    scored: bool = True


def row(number: int) -> PreferenceRow:
    """Two rows to a prompt."""
    return paired_row(f"p{number // 2}", f"c{number}", "r", "f", 1)


def write(folder: Path, name: str, made: Made) -> ShardFiles:
    """The reference has its rows in another order than the shard, as one of a twin shard would."""
    shard, reference = folder / name / "shard", folder / name / "reference"
    shard.mkdir(parents=True)
    reference.mkdir()
    write_rows(shard / "rows.parquet", map(row, made.rows))
    ids = {number: row(number).row_id for number in sorted(set(made.rows), reverse=True)}
    dropped = [{"row_id": ids[number], "reason": made.dropped[number]} for number in ids if number in made.dropped]
    scored = [row_id for number, row_id in ids.items() if number not in made.dropped]
    pq.write_table(pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA), reference / "dropped.parquet")
    pq.write_table(pa.table({"row_id": pa.array(scored, pa.string())}), reference / "logprobs.parquet")
    return ShardFiles(name, len(made.rows), shard, reference if made.scored else None)


def plainly(shards: dict[str, Made], fraction: float) -> Iterator[dict[str, Any]]:
    """The definition: row by row, with a dictionary of all that came before."""
    first_in: dict[str, str] = {}
    for name, made in shards.items():
        for number in made.rows:
            one, reason = row(number), made.dropped.get(number) if made.scored else None
            if one.row_id in first_in:
                reason = f"duplicate of shard {first_in[one.row_id]}"
            first_in.setdefault(one.row_id, name)
            kept = "held_out" if is_held_out(one.prompt, one.form, fraction) else "train"
            split = kept if reason is None else "dropped"
            yield {"row_id": one.row_id, "shard": name, "split": split, "reason": reason}


numbers = st.integers(0, 40)
made_shards = st.builds(
    Made,
    rows=st.lists(numbers, min_size=1, max_size=15).map(tuple),
    dropped=st.dictionaries(numbers, st.sampled_from(REASONS), max_size=15),
    scored=st.booleans(),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    made=st.lists(made_shards, min_size=1, max_size=6),
    fraction=st.floats(0, 1, exclude_max=True),
    at_once=st.integers(1, 50),
)
def test_every_row_goes_where_the_plain_definition_puts_it(
    tmp_path_factory: pytest.TempPathFactory, made: list[Made], fraction: float, at_once: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    shards = {f"shard {number}": one for number, one in enumerate(made)}
    files = [write(folder, name, one) for name, one in shards.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_groups, "ROWS_AT_ONCE", at_once)
        tables = list(assign(files, fraction, folder / "work"))
    assert pa.concat_tables(tables).to_pylist() == list(plainly(shards, fraction))
    assert [table.num_rows for table in tables] == [len(one.rows) for one in made]
    assert not [path for path in (folder / "work").rglob("*") if path.is_file()], "scratch files are left"


def test_what_an_interrupted_pass_left_plays_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_groups, "ROWS_AT_ONCE", 2)
    one, two = (write(tmp_path, name, Made((1, 2, 3), {})) for name in ("one", "two"))
    with pytest.raises(FileNotFoundError):
        list(assign([one, ShardFiles("two", 3, tmp_path / "nowhere", None)], 0.0, tmp_path / "work"))
    assert [path for path in (tmp_path / "work").rglob("*") if path.is_file()], "it was interrupted too early"
    again = pa.concat_tables(assign([one, two], 0.0, tmp_path / "work"))
    assert again["split"].to_pylist() == ["train"] * 3 + ["dropped"] * 3


def test_the_first_missing_row_of_a_reference_is_named(tmp_path: Path) -> None:
    files = write(tmp_path, "one", Made((1, 2, 3), {}))
    assert files.reference is not None
    ids = [row(number).row_id for number in (1, 2, 3)]
    pq.write_table(pa.table({"row_id": ids[1:2]}), files.reference / "logprobs.parquet")
    missing = min(ids[0], ids[2])
    with pytest.raises(BadInput, match=f"shard one lack 2 of its 3 rows .first: {missing}.; score the shard again"):
        list(assign([files], 0.0, tmp_path / "work"))


def test_a_floor_of_reference_log_probs_is_refused_where_there_are_none_of_pairs(tmp_path: Path) -> None:
    files = write(tmp_path, "one", Made((1, 2, 3), {}))
    with pytest.raises(BadInput, match=r"preferences\.min_reference_logp.*goes with pairs"):
        list(assign([files], 0.0, tmp_path / "work", Filters(min_reference_logp=-5.0)))


def test_a_shard_with_other_rows_than_its_record_says_is_refused(tmp_path: Path) -> None:
    files = write(tmp_path, "one", Made((1, 2, 3), {}))
    with pytest.raises(CorruptArtifact, match="one holds 3 rows, and its record says 4"):
        list(assign([ShardFiles("one", 4, files.folder, None)], 0.0, tmp_path / "work"))


def test_a_shard_of_an_earlier_version_is_split_by_its_prompts(tmp_path: Path) -> None:
    shard = write(tmp_path, "one", Made(tuple(range(40)), {}))
    expected = list(assign([shard], 0.3, tmp_path / "work"))
    path = shard.folder / "rows.parquet"
    pq.write_table(pq.read_table(path).drop_columns("split_at"), path)
    assert list(assign([shard], 0.3, tmp_path / "work")) == expected
    assert {"train", "held_out"} == set(expected[0]["split"].to_pylist())


def most_held(files: Sequence[ShardFiles], out: Path) -> int:
    """Bytes that making the split and counting contradictions hold: Python's and NumPy's at most, and Arrow's after one
    of the last shards.

    The least of those, because Arrow's own threads let go of what they read a moment later.
    """
    out.mkdir()
    before, arrow = pa.total_allocated_bytes(), []
    tracemalloc.start()
    try:
        with SplitWriter(out) as split:
            contradictions = Contradictions(out / "pair_ids", sum(file.rows for file in files))
            for places in assign(files, 0.1, out / "work", pair_ids=True):
                contradictions.add(places["pair_id"].filter(pc.is_null(places["reason"])).to_numpy())
                split.write(places.drop_columns("pair_id"))
                arrow.append(pa.total_allocated_bytes() - before)
        assert contradictions.count() == 0
        return min(arrow[-5:]) + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("copies", [1, 4], ids=["all rows differ", "every shard four times"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: int) -> None:
    monkeypatch.setattr(id_groups, "ROWS_AT_ONCE", 2048)
    monkeypatch.setattr(Contradictions, "ROWS_AT_ONCE", 2048)
    each = 1024
    rows = [tuple(range(number // copies * each, (number // copies + 1) * each)) for number in range(40)]
    files = [write(tmp_path, str(number), Made(one, {})) for number, one in enumerate(rows)]
    most_held(files[:2], tmp_path / "warm")
    # the lower of two: what else a long test process happens to keep or to collect in between is not the rows'
    few, many = (
        min(most_held(some, tmp_path / f"{name}-{again}") for again in range(2))
        for name, some in (("few", files[:8]), ("many", files))
    )
    half_an_id = 8  # bytes: whoever held a row would hold its id of sixteen at least
    assert many - few < half_an_id * 32 * each, f"{few} bytes for 8 shards, {many} for 40"
