"""Three rounds against one, over seeds that were chosen before anything was run: every seed is printed.

    python -m benchmarks.rounds_seeds [--seeds 11 12 13 14 15] [--store FOLDER] [--set rounds.n=8]

For each seed `recipes/rounds_quickstart.yaml` is run with `rounds.go_on: always`, so that all rounds are trained
whatever comes of them, and beside it the same recipe with one round, whose policy is the first round's. A seed is
another model, other data and other prompts. Two things are measured: the scorer of the pairs, on the held-out prompts
of the rounds, and the suites. Differences are paired, with 95 % intervals; the last line is the mean over the seeds,
with an interval over seeds. Nothing is chosen by what it shows. A store that is kept is gone on from.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from alignment.recipe import Recipe, parse_recipe
from alignment.recipe.load import RECIPES, merged, read_recipe
from alignment.stages import execute
from alignment.store import Ref, Store
from assets.building.upstream import Upstream
from assets.graph import nodes_of
from eval.commands import compare_files
from eval.stages.round_comparison import COMPARISON_FILE
from eval.statistics import paired_interval
from eval.statistics.means import clustered_mean, mean_interval
from resources.pools import load_pools

SEEDS = (11, 12, 13, 14, 15)
RUBRIC = 9.0
"""The width of the scorer's scale, which is from 1 to 10."""
METRICS = {
    "IFEval": ("ifeval", "prompt_level_strict_acc"),
    "GSM8K": ("gsm8k", "exact_match,strict-match"),
    "MT-Bench (rubric)": ("mt_bench", "average"),
}


SKIPPED = ("champion_", "evaluation_report", "registered_model", "policy_divergence", "sft_responses", "sft_evals")
"""Nodes that the comparison does not read."""


def recipe_of(shipped: str, name: str, seed: int, settings: list[str]) -> Recipe:
    """A shipped recipe under another name, with another seed and a few other settings (KEY=VALUE)."""
    data: dict[str, Any] = read_recipe(RECIPES / f"{shipped}.yaml")
    for setting in [f"name={name}", f"seed={seed}", *settings]:
        key, _, value = setting.partition("=")
        nested: Any = yaml.safe_load(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        data = merged(data, nested)
    return parse_recipe(data, shipped, {})


def bring(recipe: Recipe, store: Store) -> Upstream:
    """Makes every node of a recipe that is read here, in this process, without Dagster and MLflow."""
    for node in nodes_of(recipe, load_pools()):
        if node.name.startswith(SKIPPED):
            continue
        upstream = Upstream(store, recipe.name)
        for shard in list(upstream.shards(recipe)) if node.partitioned else [None]:
            began = time.monotonic()
            commit = execute(node.stage, node.request(upstream, shard), store)
            store.write_ref(Ref(artifact=commit.artifact), recipe.name, node.name, shard)
            print(
                f"{recipe.name} {node.name} {shard or ''} {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True
            )
    return Upstream(store, recipe.name)


def measured(seed: int, settings: list[str], store: Store) -> dict[str, Any]:
    """One seed: seconds, the mean scores after each round, and the differences of three rounds from one."""
    began = time.monotonic()
    rounds = recipe_of("rounds_quickstart", f"three_rounds_{seed}", seed, ["rounds.go_on=always", *settings])
    shared = [one for one in settings if not one.startswith("rounds.")]
    held_out = f"held_out_fraction={rounds.held_out_fraction}"
    single = recipe_of("quickstart", f"one_round_{seed}", seed, [held_out, *shared])
    after, before = bring(rounds, store), bring(single, store)
    if before("policy_checkpoint") != after("round_1/policy_checkpoint"):
        raise SystemExit("the policy of one round is not that of the first round")
    assert rounds.rounds is not None
    scores: list[dict[str, tuple[float, float]]] = []
    for number in range(2, rounds.rounds.count + 1):
        rows = pq.read_table(store.fetch(after(f"round_{number}/comparison")) / COMPARISON_FILE).to_pylist()
        scores.append({row["row_id"]: (row["before"], row["after"]) for row in rows})
    prompts = sorted(set.intersection(*(set(one) for one in scores)))
    means = [math.fsum(scores[0][name][0] for name in prompts) / len(prompts)]
    means += [math.fsum(one[name][1] for name in prompts) / len(prompts) for one in scores]
    interval = paired_interval([scores[-1][name][1] - scores[0][name][0] for name in prompts], prompts, RUBRIC)
    found = {"scorer": (interval.mean.value, interval.low, interval.high)}
    for name, (suite, metric) in METRICS.items():
        sides = (store.fetch(one(f"policy_evals/{suite}")) for one in (before, after))
        compared = compare_files(*sides, metric=metric)[metric]
        found[name] = (compared["difference"], *compared["ci95"])
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - began),
        "prompts": len(prompts),
        "means": means,
        "found": found,
    }


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
    parser.add_argument("--store", type=Path, help="kept and gone on from; by default a folder that is removed again")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="a setting of both recipes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(str(given.store or scratch))
        lines = []
        for seed in given.seeds:
            lines.append(measured(seed, given.settings, store))
            print(json.dumps(lines[-1]), flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
