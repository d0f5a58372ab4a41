"""What the statistics of many pairs cost: seconds, rows a second, memory.

    python -m benchmarks.preference_statistics                    # 100,000 rows
    python -m benchmarks.preference_statistics --rows 1000000

Made-up pairs of 20, 60 and 60 words in shards of 10,000 rows; one row in a hundred is a near-duplicate of another, and
one in a thousand contradicts one. Each step runs in a process of its own; memory is the most it held (Linux's VmHWM)
beyond what it held before it began.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from alignment.data.assign import ShardFiles
from alignment.data.noise import estimate
from alignment.data.overlap import ItemRuns, overlap, overlap_numbers
from alignment.data.rows import ROWS_FILE, PreferenceRow, paired_row, write_rows
from alignment.data.words import near_duplicates
from alignment_dags.source.statistics import Data, measure
from benchmarks.manifest_rows import SHARD_ROWS, measured

LEXICON = [f"word{number}" for number in range(20_000)]
WORDS = (20, 60, 60)
ITEMS = 1_000


def pairs(shard: int) -> Iterator[PreferenceRow]:
    draw = np.random.default_rng(shard)
    before = [" ".join(LEXICON[:count]) for count in WORDS]
    for number in range(SHARD_ROWS):
        texts = [" ".join(LEXICON[word] for word in draw.integers(0, len(LEXICON), count)) for count in WORDS]
        if number % 1000 == 999:
            texts = [before[0], before[2], before[1]]
        elif number % 100 == 99:
            texts = [text.upper() for text in before]
        before = texts
        prompt, chosen, rejected = texts
        yield paired_row(prompt, chosen, rejected, "made-up", number + 1)


def make(folder: Path, count: int) -> list[ShardFiles]:
    shards = []
    for number in range(count):
        place = folder / str(number)
        place.mkdir()
        shards.append(ShardFiles(str(number), write_rows(place / ROWS_FILE, pairs(number)), place, None))
    return shards


def items() -> dict[str, dict[str, list[str]]]:
    draw = np.random.default_rng(1_000_000)
    return {"suite": {str(n): [" ".join(LEXICON[w] for w in draw.integers(0, 20_000, 60))] for n in range(ITEMS)}}


def near(shards: list[ShardFiles], folder: Path) -> int:
    sizes = [shard.rows for shard in shards]
    return int(near_duplicates([shard.folder for shard in shards], sizes, 0.9, folder / "near").sum())


def held(shards: list[ShardFiles], folder: Path) -> int:
    asked = ItemRuns(items())
    return overlap_numbers(asked, (overlap(shard.folder, asked) for shard in shards)).rows["suite"]


def noise(shards: list[ShardFiles], folder: Path) -> int:
    return estimate(shards).pairs


def everything(shards: list[ShardFiles], folder: Path) -> int:
    found = measure(Data(shards, None, "made-up"), items())
    return int(found["contradictory"])


STEPS: dict[str, Callable[[list[ShardFiles], Path], int]] = {
    "near-duplicates": near,
    "items in rows": held,
    "label noise (50,000 pairs)": noise,
    "prefs stats": everything,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000], help="rounded up to whole shards")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    asked = parser.parse_args()
    print(f"{'what':<28}{'rows':>12}{'seconds':>10}{'rows/s':>12}{'memory +MiB':>13}{'found':>10}")
    for rows in asked.rows:
        with tempfile.TemporaryDirectory() as folder:
            shards = make(Path(folder), -(-rows // SHARD_ROWS))
            total = sum(shard.rows for shard in shards)
            for name in asked.steps:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                    given, seconds, grown = process.submit(measured, STEPS[name], shards, Path(folder)).result()
                print(
                    f"{name:<28}{total:>12,}{seconds:>10.1f}{total / seconds:>12,.0f}{grown:>13.1f}{given:>10,}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
