"""What look-ups in the caches cost: milliseconds and bytes of one row, seconds of many, and token ids of rows.

    python -m benchmarks.cache_lookups                    # 800,000 rows of 1.6 million sequences
    python -m benchmarks.cache_lookups --rows 60000

The cache is filled as the reference stage fills it, a shard of 10,000 rows after the other. "Cold" is the first look-up
of a process: no footer is remembered (the files are in the system's page cache). Bytes are those that the process read
through system calls (Linux). Keys, log-probs and token ids are made up.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import psutil

from alignment.data.tokens import TokenSequence
from alignment.logprobs import row_groups
from alignment.logprobs.cache import LogprobCache, RowKeys, as_keys
from alignment.logprobs.reference import PART_SEQUENCES
from alignment.logprobs.token_ids import ROWS_AT_ONCE, TokenIds
from alignment.store import Store

SHARD_ROWS = 10_000
BULK = 60_000
MIB = 1 << 20


def key(*of: object) -> bytes:
    return hashlib.blake2b(repr(of).encode(), digest_size=16).digest()


def row_id(number: int) -> str:
    return key(number).hex()


def fill(cache: LogprobCache, rows: int) -> None:
    for start in range(0, rows, SHARD_ROWS):
        shard = range(start, min(rows, start + SHARD_ROWS))
        cache.add_rows(RowKeys(row_id(number), key(number, 0), key(number, 1)) for number in shard)
        scored = [(key(number, side), -1.5 * number - side, 100) for number in shard for side in (0, 1)]
        for first in range(0, len(scored), PART_SEQUENCES):
            cache.add_values(scored[first : first + PART_SEQUENCES])
        cache.compact()


def look_up(cache: LogprobCache, numbers: Sequence[int]) -> tuple[float, float, int]:
    """(wall seconds, CPU seconds, bytes) of rows' keys and their values."""
    process = psutil.Process()
    before, began, cpu = process.io_counters().read_chars, time.perf_counter(), time.process_time()
    found = [row for row in cache.rows([row_id(number) for number in numbers]) if row is not None]
    values = cache.values(as_keys([key for row in found for key in (row.chosen, row.rejected)]))
    assert len(values) == 2 * len(numbers) and values["sum"].null_count == 0
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    return took, cpu, process.io_counters().read_chars - before


def tokens(ids: TokenIds, rows: int) -> None:
    draw = np.random.default_rng(0)

    def sequence() -> TokenSequence:
        made = (draw.zipf(1.3, 400) % 150_000).tolist()
        return TokenSequence(tuple(made[:120]), tuple(made[120:]))

    added = read = 0.0
    for start in range(0, rows, ROWS_AT_ONCE):
        chunk = {row_id(number): (sequence(), sequence()) for number in range(start, min(rows, start + ROWS_AT_ONCE))}
        began = time.perf_counter()
        ids.add_ids(chunk.items())
        added += time.perf_counter() - began
    ids.compact()
    before = psutil.Process().memory_info().rss
    most = before
    for start in range(0, rows, ROWS_AT_ONCE):
        asked = [row_id(number) for number in range(start, min(rows, start + ROWS_AT_ONCE))]
        began = time.perf_counter()
        assert sum(len(batch) for batch in ids.ids(asked)) == len(asked)
        read += time.perf_counter() - began
        most = max(most, psutil.Process().memory_info().rss)
    size = sum(part.size for part in ids._parts.parts())
    print(
        f"token ids of {rows:,} rows (800 each): added {rows / added:,.0f} rows/s, read {rows / read:,.0f} rows/s, "
        f"{size / rows:,.0f} bytes a row, memory +{(most - before) / MIB:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=800_000)
    parser.add_argument("--tokenised", type=int, default=100_000)
    chosen = parser.parse_args()
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        cache = LogprobCache(Store(folder), "print", "policy")
        began = time.perf_counter()
        fill(cache, chosen.rows)
        print(f"{chosen.rows:,} rows, {2 * chosen.rows:,} sequences; filled in {time.perf_counter() - began:.1f} s")
        look_up(cache, [0])  # the libraries themselves are loaded by the first
        for case in ("cold", "warm"):
            measured = []
            for _ in range(21):
                if case == "cold":
                    row_groups.footer_of.cache_clear()
                measured.append(look_up(cache, [draw.randrange(chosen.rows)]))
            wall, cpu, read = map(statistics.median, zip(*measured, strict=True))
            print(f"one row, {case}: {1000 * wall:.1f} ms ({1000 * cpu:.1f} of CPU), {read / MIB:.2f} MiB")
        many = range(min(BULK, chosen.rows))
        wall, cpu, read = min(look_up(cache, many) for _ in range(3))
        print(f"{len(many):,} rows: {wall:.2f} s ({cpu:.2f} of CPU), {read / MIB:.1f} MiB")
        tokens(TokenIds(Store(folder), "policy"), chosen.tokenised)


if __name__ == "__main__":
    main()
