from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from alignment.recipe import Judge, parse_recipe
from alignment.store import Artifact
from assets.building.factory import numbers
from assets.building.upstream import Upstream
from assets.evals import evals
from assets.graph import nodes_of
from eval.grading.choose import bill
from eval.judge.budget import Usage
from eval.judge.endpoint import Outcome
from resources.pools import load_pools


class Answered:
    """The answers are there, and nothing was scored yet."""

    def __call__(self, name: str) -> Artifact:
        return Artifact(kind="responses", key="k" * 64, attempt="a", digest="d")

    def get(self, name: str) -> None:
        return None


@pytest.mark.parametrize(
    ("suite", "settings", "judged"),
    [
        ("gsm8k", {}, False),
        ("xstest", {}, False),
        ("mt_bench", {"baseline_answers": "baseline"}, True),
        ("alpaca_eval", {}, True),
        ("arena_hard", {"baseline_answers": "baseline"}, True),
        ("harmless", {}, True),
    ],
)
def test_suites_without_a_scorer_are_given_the_judge_and_their_baseline_pinned(
    suite: str, settings: dict[str, str], judged: bool, tmp_path: Path
) -> None:
    for name in ("data", "baseline"):
        (tmp_path / name).write_text(name)
    files = {"data": str(tmp_path / "data")} | {name: str(tmp_path / file) for name, file in settings.items()}
    recipe = parse_recipe(
        {
            "name": "small",
            "base_model": {"embedded": "micro"},
            "sft": {"dataset": {"embedded": "micro"}},
            "preferences": {"embedded": "micro"},
            "evals": {suite: files},
            "judge": {"kind": "openai", "model": "m"},
        },
        "r",
        {},
    )
    node = evals(recipe, "policy", suite, recipe.evals.selected()[suite])
    request: Any = node.request(cast(Upstream, Answered()), None)
    assert (request.judge == recipe.judge) is judged
    assert (request.suite.baseline_answers is not None) is bool(settings)
    assert request.suite.for_answering().baseline_answers is None


def test_without_a_judge_no_task_of_lm_eval_is_looked_up_to_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked_up(name: str) -> None:
        raise AssertionError(f"{name} was looked up")

    (tmp_path / "data").write_text("data")
    recipe = parse_recipe(
        {
            "name": "small",
            "base_model": {"embedded": "micro"},
            "sft": {"dataset": {"embedded": "micro"}},
            "preferences": {"embedded": "micro"},
            "evals": {"lm_eval": {"mmlu_anatomy": {"data": str(tmp_path / "data")}}},
        },
        "r",
        {},
    )
    monkeypatch.setattr("assets.evals.suite_named", looked_up)
    monkeypatch.setattr("eval.stages.scores.suite_named", looked_up)
    node = evals(recipe, "policy", "mmlu_anatomy", recipe.evals.selected()["mmlu_anatomy"])
    request: Any = node.request(cast(Upstream, Answered()), None)
    assert request.judge is None and request.identity()["judge"] is None


def test_what_the_judge_took_is_plotted() -> None:
    judge = Judge.model_validate({"kind": "openai", "model": "m", "price": {"input_usd": 2.0, "output_usd": 4.0}})
    summary = {"n": 5, "judge": bill(Outcome(asked=3, usage=Usage(1_000_000, 500_000)), judge)}
    assert numbers(summary) == {
        "n": 5,
        "judge/asked": 3,
        "judge/judgments": 0,
        "judge/input_tokens": 1_000_000,
        "judge/output_tokens": 500_000,
        "judge/usd": 4.0,
    }


def test_everything_of_the_champion_waits_for_the_policy_that_it_is_compared_with() -> None:
    """Where the champion's answers are there already, only its scores are to be made, and wait all the same."""
    micro = {"embedded": "micro"}
    data = {"name": "small", "base_model": micro, "sft": {"dataset": micro}, "preferences": micro}
    recipe = parse_recipe(data | {"evals": {"gsm8k": {"embedded": "micro"}}}, "r", {})
    champion = [node for node in nodes_of(recipe, load_pools()) if node.name.startswith("champion_")]
    assert len(champion) == 2 and all("policy_checkpoint" in node.after for node in champion)
