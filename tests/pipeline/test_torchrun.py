"""A pool that asks for torchrun: every rank does a share, and the result is that of the DAG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from alignment.recipe import Recipe, parse_recipe
from assets.building.upstream import Upstream


@pytest.fixture
def two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pools.yaml"
    pools = {"local": {"slots": 1}, "two": {"slots": 1, "launcher": "torchrun", "processes": 2}}
    path.write_text(yaml.safe_dump({"pools": pools}), encoding="utf-8")
    monkeypatch.setenv("ALIGN_POOLS", str(path))


def logps(made: Upstream) -> dict[str, tuple[float, float]]:
    rows = [
        row
        for shard in ("pairs-00001-of-00002", "pairs-00002-of-00002")
        for row in pq.read_table(made.store.fetch(made("reference_logprobs", shard)) / "logprobs.parquet").to_pylist()
    ]
    return {row["row_id"]: (row["chosen_logp"], row["rejected_logp"]) for row in rows}


@pytest.mark.usefixtures("two_ranks")
def test_two_ranks_share_scoring_and_training_and_the_log_probs_are_those_of_one(
    small_recipe: dict[str, Any],
    bring_up_to_date: Callable[[Recipe], Upstream],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    shared = parse_recipe(small_recipe | {"name": "shared", "pools": {"reference": "two", "policy": "two"}}, "-", {})
    together = bring_up_to_date(shared)
    policy = together.store.commit_of(together("policy_checkpoint")).summary
    assert sum(policy["rows_per_rank"]) >= policy["rows_trained"]  # the last batch is filled up
    assert min(policy["rows_per_rank"]) > 0
    first = together.store.commit_of(together("reference_logprobs", "pairs-00001-of-00002")).summary
    assert first["scored"] == first["sequences"] > 0

    monkeypatch.setenv("ALIGN_STORE", str(tmp_path / "other"))
    alone = bring_up_to_date(parse_recipe(small_recipe | {"name": "alone"}, "-", {}))
    expected = logps(alone)
    assert set(expected) == set(logps(together))
    for row, values in logps(together).items():
        assert values == pytest.approx(expected[row], rel=1e-6)


@pytest.mark.soak
@pytest.mark.usefixtures("two_ranks")
def test_two_ranks_with_half_of_each_weight_make_the_whole_graph_and_its_values_are_those_of_one(
    small_recipe: dict[str, Any],
    bring_up_to_date: Callable[[Recipe], Upstream],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Scoring, preference training, answers, the KL divergence and the check before the registration."""
    pools = dict.fromkeys(("sft", "reference", "policy", "responses"), "two")
    halves = {name: small_recipe[name] | {"sharded": True} for name in ("dpo", "reference", "evals")}
    together = bring_up_to_date(parse_recipe(small_recipe | halves | {"name": "halves", "pools": pools}, "-", {}))
    policy = together.store.commit_of(together("policy_checkpoint")).summary
    assert min(policy["rows_per_rank"]) > 0

    monkeypatch.setenv("ALIGN_STORE", str(tmp_path / "other"))
    alone = bring_up_to_date(parse_recipe(small_recipe | {"name": "alone"}, "-", {}))
    assert logps(together) == logps(alone), "bit for bit"
    answers = [made.store.commit_of(made("sft_responses")).digest for made in (together, alone)]
    assert answers[0] == answers[1]
    theirs = alone.store.commit_of(alone("policy_checkpoint")).summary
    assert policy["steps"] == theirs["steps"]
    assert policy["held_out"]["loss"] == pytest.approx(theirs["held_out"]["loss"], abs=1e-3)
    kl = [made.store.commit_of(made("policy_divergence")).summary["kl"] for made in (together, alone)]
    assert kl[0] == pytest.approx(kl[1], abs=1e-2)
