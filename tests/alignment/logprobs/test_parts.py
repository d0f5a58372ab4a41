from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.logprobs import copies, parts, row_groups
from alignment.logprobs.cache import ROWS, VALUES, LogprobCache, as_keys
from alignment.logprobs.parts import Parts
from alignment.store import Store

SCHEMA = pa.schema([("key", pa.string()), ("number", pa.int64())])


def small_parts(monkeypatch: pytest.MonkeyPatch, *, run: int = 1 << 14) -> None:
    """Everything in small: parts of 1 KiB, runs of 16."""
    monkeypatch.setattr(parts, "WHOLE_RUN", run)
    monkeypatch.setattr(parts, "PART_BYTES", 1 << 10)
    monkeypatch.setattr(row_groups, "READ_BYTES", 1 << 10)


def table_of(store: Store, **how: object) -> Parts:
    return Parts(store, "cache/numbers", SCHEMA, group_rows=16, **how)  # type: ignore[arg-type]


def add(table: Parts, rows: dict[str, int]) -> None:
    table.append(pa.table([list(rows), list(rows.values())], schema=SCHEMA))


def found(table: Parts, keys: list[str]) -> list[int | None]:
    return table.lookup(pa.array(keys, pa.string()))["number"].to_pylist()


def add_as_before(folder: Path, rows: dict[str, int]) -> Path:
    """A part as 0.1.0 wrote it: no range in its name, unsorted, one row group."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"part-{uuid.uuid4().hex}.parquet"
    table = pa.table([list(rows), list(rows.values())], schema=SCHEMA)
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)
    return path


@given(st.lists(st.text(max_size=12), max_size=9), st.lists(st.binary(min_size=16, max_size=16), max_size=9), st.data())
def test_prefixes_are_in_the_order_of_keys(texts: list[str], keys: list[bytes], data: st.DataObject) -> None:
    for values, kind in ((texts, pa.string()), (keys, pa.binary(16))):
        column = pa.array(values, kind)
        start = data.draw(st.integers(0, len(values)))
        found = row_groups.prefixes(column[start:]).tolist()
        assert found == [row_groups.prefix_of(value) for value in column[start:].to_pylist()]
        in_order = sorted(
            column[start:].to_pylist(), key=lambda value: value.encode() if isinstance(value, str) else value
        )
        assert sorted(found) == [row_groups.prefix_of(value) for value in in_order]


@pytest.mark.parametrize("by_key", [True, False])
@pytest.mark.parametrize("begin", ["", "the same first letters "])
def test_what_was_added_is_found_however_it_is_cut_and_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_key: bool, begin: str
) -> None:
    small_parts(monkeypatch)
    draw = random.Random(0)
    table, known = table_of(Store(str(tmp_path)), by_key=by_key), {}
    for _ in range(60):
        rows = {f"{begin}{draw.getrandbits(40):010x}": draw.getrandbits(30) for _ in range(draw.randint(1, 60))}
        add(table, rows)
        known |= rows
        if draw.random() < 0.3:
            table.compact(at_least=2)
    asked = [*draw.sample(list(known), 200), "", "é", begin, *(f"{begin}{number:x}" for number in range(20))]
    again = table_of(Store(str(tmp_path)), by_key=by_key)
    for one in (table, again):
        assert found(one, asked) == [known.get(key) for key in asked]
        assert found(one, asked[:1]) == [known[asked[0]]]
    assert found(table, list(known)) == list(known.values())


def test_a_merge_ends_in_parts_that_each_hold_a_stretch_of_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, run=19_000)  # all that is added, but for the last bytes
    table = table_of(Store(str(tmp_path)))
    for start in range(8):
        add(table, {f"{number * 7919 % 1000:08d}": number for number in range(start, 1000, 8)})
    assert len({part.run for part in table.parts()}) == 8
    table.compact()
    merged = table.parts()
    assert len({part.run for part in merged}) == 1 and len(merged) > 8
    assert all(part.whole for part in merged), "as large as a run gets: it is merged with no other"
    assert all(one.high < other.low for one, other in pairwise(merged))
    opened: list[str] = []
    read = parts.read_groups
    monkeypatch.setattr(parts, "read_groups", lambda path, *what: opened.append(path) or read(path, *what))
    assert found(table, ["00000500"]) == [500 * pow(7919, -1, 1000) % 1000]
    assert len(opened) == 1
    table.compact(at_least=1)
    assert table.parts() == merged


def test_parts_of_earlier_versions_are_read_beside_new_ones_and_sorted_in_passing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 1 << 10)
    table, known = table_of(Store(str(tmp_path))), {f"{number * 31 % 997:06d}": number for number in range(997)}
    old = add_as_before(Path(table.folder), dict(list(known.items())[:600]))
    add(table, dict(list(known.items())[500:]))
    assert found(table, [*known, "none"]) == [*known.values(), None]
    table.compact()
    assert not old.exists()
    assert all(part.ranged for part in table.parts())
    assert found(table, [*known, "none"]) == [*known.values(), None]


def test_one_row_among_1600000_sequences_takes_less_than_4_megabytes(tmp_path: Path) -> None:
    """As much as the least favourable time shows: one large run, and beside it as many small ones as there can be."""
    count, draw = 1_600_000, np.random.default_rng(0)
    cache = LogprobCache(Store(str(tmp_path)), "print", "policy")
    raw = draw.bytes(16 * count)
    keys = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(raw)])
    whole = raw[: 8 * count].hex()
    ids = pa.array([whole[start : start + 16] for start in range(0, len(whole), 16)][: count // 2])
    sums, tokens = pa.array(-draw.random(count)), pa.array(draw.integers(1, 999, count), pa.int32())
    values = pa.table([keys, sums, tokens], schema=VALUES)
    rows = pa.table(
        [
            ids,
            keys.take(pa.array(range(0, count, 2))),
            keys.take(pa.array(range(1, count, 2))),
            pa.nulls(count // 2, pa.string()),
        ],
        schema=ROWS,
    )
    runs = [0, *range(count - 6 * 8192, count + 1, 8192)]
    for start, end in pairwise(runs):
        cache._values.append(values.slice(start, end - start))
        cache._rows.append(rows.slice(start // 2, (end - start) // 2))
    cache.compact()
    assert len({part.run for part in cache._values.parts()}) == len(runs) - 1
    process, number = psutil.Process(), 123_456
    cache.rows(["absent"])  # the libraries themselves are read from disk as well
    for case in ("cold", "warm"):
        if case == "cold":
            row_groups.footer_of.cache_clear()
        before = process.io_counters().read_chars
        (row,) = cache.rows([ids[number].as_py()])
        assert row is not None and row.chosen == keys[2 * number].as_py()
        found = cache.values(as_keys([row.chosen, row.rejected]))
        read = process.io_counters().read_chars - before
        assert found["sum"].to_pylist() == sums[2 * number : 2 * number + 2].to_pylist()
        assert read < 4_000_000, case


def test_pages_are_verified_though_the_footer_is_remembered(tmp_path: Path) -> None:
    table = table_of(Store(str(tmp_path)))
    add(table, {f"{number:04d}": number for number in range(64)})
    assert found(table, ["0000", "0063"]) == [0, 63]
    (part,) = map(Path, (part.path for part in table.parts()))
    chunk = pq.read_metadata(part).row_group(3).column(1)
    last = chunk.data_page_offset + chunk.total_compressed_size - 1
    data = bytearray(part.read_bytes())
    data[last] ^= 0xFF
    part.write_bytes(data)
    assert found(table, ["0000"]) == [0], "its row group is sound"
    assert found(table, ["0063"]) == [None]
    assert part.with_name(f"{part.name}.corrupt").exists()


def test_rows_are_erased_from_every_file_and_the_others_stay(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch)
    store = Store(store_url, cache=tmp_path / "copies")
    for by_key in (True, False):
        table = Parts(store, f"cache/{by_key}", SCHEMA, by_key=by_key, group_rows=16)
        known = {f"key-{number:04d}": number for number in range(300)}
        add(table, known)
        add(table, dict(list(known.items())[:7]))
        damaged = f"{table.folder}/part-{'0' * 32}.parquet.corrupt"
        store.fs.pipe_file(damaged, b"key-0003")
        assert table.erase(pa.array(["key-0003", "key-0299", "absent"])) == 3
        assert found(table, list(known)) == [None if number in (3, 299) else number for number in range(300)]
        assert not store.fs.exists(damaged)
        assert table.erase(pa.array(["key-0003"])) == 0
        held = [pq.read_table(pa.BufferReader(store.fs.cat_file(path))) for path in store.fs.find(table.folder)]
        held += [pq.read_table(path) for path in (tmp_path / "copies").rglob("*.parquet")]
        assert "key-0003" not in {key for one in held for key in one["key"].to_pylist()}


# Copies of remote parts.


@pytest.fixture
def remote(s3: str, tmp_path: Path) -> Callable[..., Store]:
    folder = uuid.uuid4().hex
    return lambda machine="here": Store(f"{s3}/{folder}", cache=tmp_path / machine)


def copies_of(tmp_path: Path, machine: str = "here") -> list[Path]:
    return sorted((tmp_path / machine / "parts").rglob("part-*.parquet"))


def test_a_remote_part_is_brought_once_and_its_copy_goes_with_it(
    remote: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = table_of(remote("there"))
    for number in range(3):
        add(writer, {f"{number}": number})
    reader, brought = table_of(remote()), []
    get = reader.store.fs.get_file
    monkeypatch.setattr(reader.store.fs, "get_file", lambda path, to: brought.append(path) or get(path, to))
    for _ in range(2):
        assert found(reader, ["0", "1", "2", "3"]) == [0, 1, 2, None]
        assert len(brought) == len(copies_of(tmp_path)) == 3
    writer.compact(at_least=2)
    assert found(reader, ["0", "1", "2", "3"]) == [0, 1, 2, None]
    assert len(copies_of(tmp_path)) == len(copies_of(tmp_path, "there")) == 1
    assert len(brought) == 4, "what was written here need not be brought"


def test_a_damaged_copy_is_brought_again_and_the_part_stays(remote: Callable[..., Store], tmp_path: Path) -> None:
    table = table_of(remote())
    add(table, {f"{number:04d}": number for number in range(64)})
    assert found(table, ["0001"]) == [1]
    (copy,) = copies_of(tmp_path)
    data = bytearray(copy.read_bytes())
    data[4 : len(data) - 4] = bytes(len(data) - 8)
    copy.write_bytes(data)
    row_groups.footer_of.cache_clear()
    assert found(table, ["0001"]) == [1]
    assert len(table.parts()) == 1
    table.store.fs.pipe_file(table.parts()[0].path, bytes(len(data)))
    copy.write_bytes(bytes(len(data)))
    row_groups.footer_of.cache_clear()
    assert found(table, ["0001"]) == [None]
    assert table.parts() == []


def test_copies_are_bounded_and_the_oldest_go_first(
    remote: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(remote())
    for number in range(4):
        add(table, {f"{number}": number})
    size = copies_of(tmp_path)[0].stat().st_size
    monkeypatch.setattr(copies, "MOST_BYTES", 2 * size + size // 2)
    add(table, {"4": 4})
    assert len(copies_of(tmp_path)) == 2
    assert found(table, list("01234")) == [0, 1, 2, 3, 4]
    assert len(copies_of(tmp_path)) == 2
