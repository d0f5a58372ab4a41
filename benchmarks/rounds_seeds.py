"""Three rounds against one, over seeds that were chosen before anything was run: every seed is printed.

    python -m benchmarks.rounds_seeds [--seeds 11 12 13 14 15] [--home FOLDER] [--set rounds.n=8]

For each seed `recipes/rounds_quickstart.yaml` is run with `rounds.go_on: always`, so that all rounds are trained
whatever comes of them, and beside it the same recipe with one round, whose policy is the first round's. A seed is
another model, other data and other prompts. Two things are measured: the scorer of the pairs, on the held-out prompts
of the rounds, and the suites. Differences are paired, with 95 % intervals; the last line is the mean over the seeds,
with an interval over seeds. Nothing is chosen by what it shows. A home that is kept is gone on from.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from eval.stages.round_comparison import COMPARISON_FILE
from eval.statistics import paired_interval
from eval.statistics.means import clustered_mean, mean_interval
from resources.store import ArtifactStore

SEEDS = (11, 12, 13, 14, 15)
RUBRIC = 9.0
"""The width of the scorer's scale, which is from 1 to 10."""
METRICS = {
    "IFEval": "ifeval/prompt_level_strict_acc",
    "GSM8K": "gsm8k/exact_match,strict-match",
    "MT-Bench (rubric)": "mt_bench/average",
}


def align(*arguments: str) -> str:
    """What the command printed; its own messages go on to this one's."""
    call = [sys.executable, "-c", "from alignment_dags.cli import main; main()", *arguments]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):  # 1 is a gate that said no: nothing is registered, and all is measured
        raise SystemExit(f"align {' '.join(arguments)} ended with {done.returncode}")
    return done.stdout


def measured(seed: int, more: list[str]) -> dict[str, Any]:
    """One seed: seconds, the mean scores after each round, and the differences of three rounds from one."""
    began = time.monotonic()
    given = [f"--set=seed={seed}", "--set=schedule=null"]
    align("run", "rounds_quickstart", *given, "--set=rounds.go_on=always", *more, "--as", f"three_rounds_{seed}")
    shared = [one for one in more if not one.startswith("--set=rounds.")]
    align("run", "quickstart", *given, "--set=held_out_fraction=0.1", *shared, "--as", f"one_round_{seed}")
    seconds = time.monotonic() - began
    store = ArtifactStore().open()
    scores: list[dict[str, tuple[float, float]]] = []
    while (ref := store.read_ref(f"three_rounds_{seed}", f"round_{len(scores) + 2}/comparison")) is not None:
        rows = pq.read_table(store.fetch(ref.artifact) / COMPARISON_FILE).to_pylist()
        scores.append({row["row_id"]: (row["before"], row["after"]) for row in rows})
    shared_prompts = sorted(set.intersection(*(set(one) for one in scores)))
    means = [math.fsum(scores[0][name][0] for name in shared_prompts) / len(shared_prompts)]
    means += [math.fsum(one[name][1] for name in shared_prompts) / len(shared_prompts) for one in scores]
    differences = [scores[-1][name][1] - scores[0][name][0] for name in shared_prompts]
    interval = paired_interval(differences, shared_prompts, RUBRIC)
    compared = json.loads(align("compare", f"one_round_{seed}", f"three_rounds_{seed}", "--json"))
    found = {"scorer": (interval.mean.value, interval.low, interval.high)}
    found |= {name: (compared[key]["difference"], *compared[key]["ci95"]) for name, key in METRICS.items()}
    return {"seed": seed, "seconds": seconds, "prompts": len(shared_prompts), "means": means, "found": found}


def over_seeds(name: str, lines: list[dict[str, Any]]) -> tuple[float, float | None, float | None]:
    """The mean of the seeds' differences, with its interval over seeds."""
    values = [line["found"][name][0] for line in lines]
    interval = mean_interval(clustered_mean(values, [str(line["seed"]) for line in lines]))
    return interval.mean.value, interval.low, interval.high


def told(difference: tuple[float, float | None, float | None]) -> str:
    """A difference with its interval."""
    value, low, high = difference
    return f"{value:+.3f}" + ("" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]")


def table(lines: list[dict[str, Any]]) -> str:
    """Every seed, and the mean over them, in Markdown."""
    names = ["scorer", *METRICS]
    rounds = len(lines[0]["means"])
    header = ["seed", "held-out prompts", f"mean score after rounds 1 to {rounds}", *names]
    rows = [
        [
            str(line["seed"]),
            str(line["prompts"]),
            " → ".join(f"{mean:.2f}" for mean in line["means"]),
            *(told(line["found"][name]) for name in names),
        ]
        for line in lines
    ]
    if len(lines) > 1:
        means = [math.fsum(line["means"][place] for line in lines) / len(lines) for place in range(rounds)]
        rows.append(
            [
                "mean",
                "",
                " → ".join(f"{mean:.2f}" for mean in means),
                *(told(over_seeds(name, lines)) for name in names),
            ]
        )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def main() -> None:
    """Runs all seeds and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--home", type=Path, help="kept and gone on from; by default a folder that is removed again")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="a setting of both recipes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = given.home or Path(scratch)
        os.environ |= {"ALIGN_HOME": str(home / "align"), "DAGSTER_HOME": str(home / "dagster")}
        lines = []
        for seed in given.seeds:
            lines.append(measured(seed, [f"--set={one}" for one in given.settings]))
            print(json.dumps(lines[-1]), flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
