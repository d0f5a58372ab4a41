from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.logprobs.cache import LogprobCache, RowKeys, as_keys
from alignment.store import Store


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def cache_in(url: str) -> LogprobCache:
    return LogprobCache(Store(url), "print", "policy")


def values(cache: LogprobCache, numbers: list[int]) -> list[tuple[float | None, int | None]]:
    table = cache.values(as_keys([key(number) for number in numbers]))
    return list(zip(table["sum"].to_pylist(), table["tokens"].to_pylist(), strict=True))


def parts(folder: Path) -> list[Path]:
    return sorted(folder.rglob("reference_logprobs/**/part-*.parquet"))


@pytest.fixture
def url(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where copies of a remote store lie
    return store_url


def test_values_come_back_in_the_order_asked_and_missing_ones_as_null(url: str) -> None:
    cache = cache_in(url)
    assert values(cache, [1]) == [(None, None)]
    cache.add_values([(key(1), -1.5, 3), (key(2), -2.5, 4)])
    cache.add_values([(key(3), -0.1, 5)])
    assert values(cache_in(url), [3, 9, 1, 3]) == [(-0.1, 5), (None, None), (-1.5, 3), (-0.1, 5)]


def test_what_is_not_finite_never_comes_in_and_an_older_one_is_as_if_never_scored(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_in(url)
    with pytest.raises(ValueError, match="not finite"):
        cache.add_values([(key(1), float("nan"), 3)])
    with monkeypatch.context() as older:
        older.setattr("math.isfinite", lambda _: True)
        for number, bad in enumerate((float("nan"), float("-inf"))):
            cache.add_values([(key(number), bad, 3), (key(number + 2), -1.0, 3)])
    assert values(cache, [0, 1, 2, 3]) == [(None, None), (None, None), (-1.0, 3), (-1.0, 3)]
    cache.add_values([(key(0), -0.5, 3), (key(1), -0.7, 3)])
    cache._values.compact(at_least=2)
    assert values(cache_in(url), [0, 1, 2]) == [(-0.5, 3), (-0.7, 3), (-1.0, 3)]


def test_rows_come_back_with_their_keys_or_their_reason(url: str) -> None:
    cache = cache_in(url)
    rows = [RowKeys("a", key(1), key(2)), RowKeys("b", None, None, "too long")]
    cache.add_rows(rows)
    assert cache.rows(["b", "c", "a"]) == [rows[1], None, rows[0]]


def test_another_reference_or_policy_knows_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    LogprobCache(store, "print", "policy").add_rows([RowKeys("a", key(1), key(2))])
    assert LogprobCache(store, "print", "other").rows(["a"]) == [None]
    assert LogprobCache(store, "other", "policy").rows(["a"]) == [None]


def spoil_end(data: bytes) -> bytes:
    return data[: len(data) // 2]


def spoil_page(data: bytes) -> bytes:
    chunk = pq.read_metadata(pa.BufferReader(data)).row_group(0).column(0)
    last = chunk.data_page_offset + chunk.total_compressed_size - 1
    return data[:last] + bytes([data[last] ^ 0xFF]) + data[last + 1 :]


def another_table(_data: bytes) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table({"key": [1]}), stream)
    return bytes(stream.getvalue().to_pybytes())


@pytest.mark.parametrize("spoil", [spoil_end, spoil_page, another_table, lambda _data: b""])
def test_a_damaged_part_is_set_aside_with_a_warning_and_its_rows_are_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: object
) -> None:
    assert callable(spoil)
    cache = cache_in(str(tmp_path))
    cache.add_values([(key(1), -1.0, 1)])
    victim = parts(tmp_path)[0]
    cache.add_values([(key(2), -2.0, 2)])
    victim.write_bytes(spoil(victim.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert values(cache, [1, 2]) == [(None, None), (-2.0, 2)]
    assert victim.name in caplog.text
    assert victim.with_name(victim.name + ".corrupt").exists()
    assert not victim.exists()
    cache.add_values([(key(1), -1.0, 1)])
    assert values(cache, [1, 2]) == [(-1.0, 1), (-2.0, 2)]


WRITER = """
import sys
from alignment.store import Store
from alignment.logprobs.cache import LogprobCache
cache = LogprobCache(Store(sys.argv[1]), "print", "policy")
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 40):
    cache.add_values([(number.to_bytes(16, "little"), -float(number), number)])
    if number % 10 == 0:
        cache._values.compact(at_least=2)
"""


def test_two_processes_write_and_merge_side_by_side_and_nothing_is_lost(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", WRITER, str(tmp_path), start] for start in ("0", "30")]
    running = [subprocess.Popen(command) for command in commands]
    assert [process.wait() for process in running] == [0, 0]
    assert values(cache_in(str(tmp_path)), list(range(70))) == [(-float(number), number) for number in range(70)]


def test_many_parts_become_one_that_says_the_same(tmp_path: Path) -> None:
    cache = cache_in(str(tmp_path))
    for number in range(70):
        cache.add_values([(key(number % 50), -float(number % 50), number % 50)])
    before = values(cache, list(range(60)))
    cache.compact()
    (merged,) = parts(tmp_path)
    assert pq.read_metadata(merged).num_rows == 50
    assert values(cache, list(range(60))) == before


def test_a_part_that_is_large_enough_is_merged_with_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_in(str(tmp_path))
    cache.add_values([(key(number), -float(number), number) for number in range(1000)])
    (large,) = parts(tmp_path)
    monkeypatch.setattr("alignment.logprobs.parts.WHOLE_RUN", large.stat().st_size)
    for number in range(1000, 1070):
        cache.add_values([(key(number), -float(number), number)])
    cache.compact()
    left = parts(tmp_path)
    assert large in left
    assert len(left) == 2
    assert values(cache, list(range(1070))) == [(-float(number), number) for number in range(1070)]


def test_a_part_that_never_arrived_is_not_seen(tmp_path: Path) -> None:
    cache = cache_in(str(tmp_path))
    cache.add_values([(key(1), -1.0, 1)])
    part = parts(tmp_path)[0]
    part.rename(part.with_name(f".{part.name}"))
    assert values(cache, [1]) == [(None, None)]
