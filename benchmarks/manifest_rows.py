"""What a manifest of many rows costs to make, to read, and to compare with another: seconds, rows a second, memory.

    python -m benchmarks.manifest_rows                              # 1 million rows
    python -m benchmarks.manifest_rows --rows 1000000 10000000

Shards and references are real artifacts in a temporary folder, written without validation: made-up ids, one short
text, every hundredth row dropped by the reference, and one in a hundred repeated in the next shard. Each step runs
in a process of its own; memory is the most it held (Linux's VmHWM) beyond what it held before it began.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.manifest import open_split, read_manifest
from alignment.data.measure import LogpCounts, pair_numbers
from alignment.data.rows import CHOSEN_LENGTH, PAIR_ID, PREFERENCE_SCHEMA, REJECTED_LENGTH, ROWS_FILE
from alignment.digest import json_digest
from alignment.logprobs.table import DROPPED_FILE, DROPPED_SCHEMA, LOGPROBS_FILE, LOGPROBS_SCHEMA
from alignment.stages import execute
from alignment.stages.preference_manifest import STAGE, ManifestRequest
from alignment.store import Artifact, Store
from eval.report.data_changes import row_changes

SHARD_ROWS = 10_000
GROUP_ROWS = 1024
"""Rows of a row group, as shards are written."""
EVERY = 100
MIB = 1 << 20
T = TypeVar("T")


def row_ids(shard: int) -> pa.Array:
    """Ids that are the same whenever they are asked for; the last hundredth are the next shard's first."""
    random = [np.random.default_rng(seed) for seed in (shard, shard + 1)]
    repeated = SHARD_ROWS // EVERY
    whole = b"".join((random[0].bytes(16 * (SHARD_ROWS - repeated)), random[1].bytes(16 * repeated))).hex()
    return pa.array([whole[start : start + 32] for start in range(0, len(whole), 32)])


def publish(store: Store, kind: str, name: str, summary: dict[str, object], tables: dict[str, pa.Table]) -> Artifact:
    attempt = store.begin(kind, json_digest([kind, name])[:40])
    for file, table in tables.items():
        pq.write_table(table, attempt.path / file, compression="zstd", row_group_size=GROUP_ROWS)
    return store.commit(
        attempt,
        digest=json_digest(name),
        stage=kind,
        code_version=1,
        inputs={},
        summary=summary,
        environment={},
        started_at="",
        seconds=0.0,
    ).artifact


def shard_and_reference(store: Store, number: int) -> tuple[Artifact, Artifact]:
    ids = row_ids(number)
    cells = {name: pa.nulls(SHARD_ROWS, PREFERENCE_SCHEMA.field(name).type) for name in PREFERENCE_SCHEMA.names}
    cells |= {name: pa.repeat("a few words", SHARD_ROWS) for name in ("prompt", "chosen", "rejected")}
    cells |= {"row_id": ids, "form": pa.repeat("text", SHARD_ROWS), "source": pa.repeat("made-up", SHARD_ROWS)}
    cells |= {"source_row": pa.array(range(1, SHARD_ROWS + 1)), "split_at": pa.array(np.random.rand(SHARD_ROWS))}
    cells[PAIR_ID] = pa.array(np.frombuffer(bytes.fromhex("".join(ids.to_pylist())), np.uint64)[::2])
    cells |= {name: pa.array(np.random.randint(1, 4000, SHARD_ROWS)) for name in (CHOSEN_LENGTH, REJECTED_LENGTH)}
    rows = pa.table({name: cells[name].cast(PREFERENCE_SCHEMA.field(name).type) for name in PREFERENCE_SCHEMA.names})
    gone = pa.array(np.arange(SHARD_ROWS) % EVERY == EVERY - 1)
    dropped = ids.filter(gone)
    reasons = pa.table([dropped, pa.repeat("too long", len(dropped))], schema=DROPPED_SCHEMA)
    kept = ids.filter(pc.invert(gone))
    tokens = np.random.randint(1, 500, (2, len(kept))).astype(np.int32)
    sums = -np.random.gamma(2.0, 0.6, tokens.shape) * tokens
    scored = pa.table(
        [kept, *sums, *tokens, *2 * [kept]],
        schema=LOGPROBS_SCHEMA,
    )
    counts = LogpCounts()
    counts.add(scored)
    logps, pairs = counts.numbers(), pair_numbers(rows)
    assert logps is not None and pairs is not None
    summary = {"rows": SHARD_ROWS, "kind": "paired", "pairs": pairs.model_dump()}
    return (
        publish(store, "preference_shard", str(number), summary, {ROWS_FILE: rows}),
        publish(
            store,
            "reference_logprobs",
            str(number),
            {"fingerprint": "f" * 64, "logps": logps.model_dump()},
            {DROPPED_FILE: reasons, LOGPROBS_FILE: scored},
        ),
    )


def publish_all(url: str, count: int) -> list[tuple[Artifact, Artifact]]:
    store = Store(url)
    return [shard_and_reference(store, number) for number in range(count)]


def request(made: Sequence[tuple[Artifact, Artifact]]) -> ManifestRequest:
    return ManifestRequest(
        shards={shard.key: shard for shard, _ in made},
        references={shard.key: reference for shard, reference in made},
        held_out_fraction=0.1,
    )


def make(url: str, asked: ManifestRequest) -> Artifact:
    return execute(STAGE, asked, Store(url)).artifact


def read(url: str, made: Artifact) -> int:
    """Goes through the places of all rows, a shard at a time; gives how many are trained on."""
    folder = Store(url).fetch(made)
    manifest = read_manifest(folder)
    with open_split(folder, manifest) as split:
        shards = range(len(manifest.shards))
        return sum(pc.sum(pc.equal(split.of_shard(index)["split"], "train")).as_py() for index in shards)


def compare(url: str, one: Artifact, other: Artifact) -> tuple[int, int]:
    now, before = (Store(url).fetch(made) for made in (one, other))
    return row_changes((now, read_manifest(now)), (before, read_manifest(before)))


def measured(work: Callable[..., T], *arguments: object) -> tuple[T, float, float]:
    """(what it gave, seconds, MiB), in a process that did nothing before."""
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    given = work(*arguments)
    seconds = time.perf_counter() - began
    most = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return given, seconds, (int(most.split()[1]) * 1024 - before) / MIB


class Alone:
    """Runs each step in a process of its own, and tells what it cost."""

    def __init__(self, url: str, rows: int) -> None:
        self.url, self.rows = url, rows

    def __call__(self, what: str, work: Callable[..., T], *arguments: object) -> T:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            given, seconds, grown = process.submit(measured, work, self.url, *arguments).result()
        print(f"{what:<26}{self.rows:>14,}{seconds:>10.1f}{self.rows / seconds:>12,.0f}{grown:>13.1f}", flush=True)
        return given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="rounded up to whole shards")
    print(f"{'what':<26}{'rows':>14}{'seconds':>10}{'rows/s':>12}{'memory +MiB':>13}")
    for rows in parser.parse_args().rows:
        count = -(-rows // SHARD_ROWS)
        with tempfile.TemporaryDirectory() as url:
            alone = Alone(url, count * SHARD_ROWS)
            published = alone("(make the shards up)", publish_all, count + 1)
            before = alone("make", make, request(published[:-1]))
            trained = alone("read, shard by shard", read, before)
            assert trained == Store(url).commit_of(before).summary["train"]
            now = alone("make, one shard another", make, request(published[1:]))
            changed = SHARD_ROWS - SHARD_ROWS // EVERY
            assert alone("compare the two", compare, now, before) == (changed, changed)


if __name__ == "__main__":
    main()
