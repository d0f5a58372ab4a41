from __future__ import annotations

from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.recipe import Recipe, Requirement, parse_recipe
from eval.gate.default import gate_of, left_out_of_default


def recipe(**changes: Any) -> Recipe:
    embedded = {"embedded": "micro"}
    plain = {
        "name": "r",
        "base_model": embedded,
        "sft": {"dataset": embedded},
        "preferences": embedded,
        "evals": {"gsm8k": embedded | {"num_fewshot": 0}, "ifeval": embedded, "mt_bench": embedded},
        "judge": {"kind": "rubric"},
        "gate": "default",
    }
    return parse_recipe(plain | changes, "-", {})


def test_the_default_gate_asks_of_every_suites_main_metric_that_a_twentieth_is_not_lost_and_that_one_improves() -> None:
    gate = gate_of(recipe())
    assert gate is not None and gate.any_improves
    assert gate.metrics == {
        "gsm8k/exact_match,strict-match": Requirement(no_regression=0.05),
        "ifeval/prompt_level_strict_acc": Requirement(no_regression=0.05),
        "mt_bench/average": Requirement(no_regression=0.45),
        "answers/length": Requirement(max_ratio=2.0),
        "answers/ended": Requirement(no_regression=0.05),
    }


def test_the_default_gate_asks_both_directions_of_xstest_and_no_length_where_no_suite_has_texts() -> None:
    both = gate_of(recipe(judge=None, evals={"xstest": {"data": "prompts.csv"}}))
    assert both is not None and {name for name in both.metrics if name.startswith("xstest/")} == {
        "xstest/safe_compliance",
        "xstest/unsafe_refusal",
    }
    choices = gate_of(recipe(judge=None, evals={"lm_eval": {"arc_easy": {"data": "arc.jsonl"}}}))
    assert choices is not None and list(choices.metrics) == ["arc_easy/acc"]


def test_without_a_judge_it_asks_nothing_of_a_suite_that_needs_one() -> None:
    gate = gate_of(recipe(judge=None))
    assert gate is not None and not any(metric.startswith("mt_bench/") for metric in gate.metrics)
    assert left_out_of_default(recipe(judge=None)) == [
        "gate: default asks nothing of mt_bench: the recipe has no judge"
    ]
    assert left_out_of_default(recipe()) == left_out_of_default(recipe(judge=None, gate="none")) == []


def test_without_a_suite_that_is_scored_there_is_no_default() -> None:
    with pytest.raises(BadInput, match="needs a suite") as told:
        gate_of(recipe(judge=None, evals={"mt_bench": {"embedded": "micro"}}))
    assert told.value.field == "gate"


def test_a_gate_that_is_written_down_is_taken_as_it_is() -> None:
    assert gate_of(recipe(gate="none")) is None
    written = gate_of(
        recipe(gate={"metrics": {"ifeval/inst_level_strict_acc": {"improve": 0.1, "champion_margin": 0.03}}})
    )
    assert written is not None and written.metrics["ifeval/inst_level_strict_acc"].champion_margin == 0.03


def test_a_metric_of_a_suite_that_is_not_run_is_refused_before_anything_is_trained() -> None:
    asked = {"metrics": {"gsm8k/exact_match,strict-match": {"improve": 0.0}, "mmlu/acc": {"no_regression": 0.02}}}
    with pytest.raises(BadInput, match="evals has gsm8k, ifeval, mt_bench") as told:
        gate_of(recipe(gate=asked))
    assert told.value.field == "gate.metrics.mmlu/acc"


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("ifeval/accuracy", "ifeval has no such metric.*prompt_level_strict_acc"),
        ("gsm8k", "gsm8k has no such metric"),
        ("preferences", "no metric is named; write preferences/ and one of accuracy"),
    ],
)
def test_a_metric_that_a_suite_does_not_have_is_refused_in_the_recipes_file(metric: str, told: str) -> None:
    with pytest.raises(BadInput, match=told) as error:
        gate_of(recipe(gate={"metrics": {metric: {"improve": 0.0}}}), "some/r.yaml")
    assert (error.value.file, error.value.field) == ("some/r.yaml", f"gate.metrics.{metric}")


def test_a_gate_may_ask_of_held_out_preferences_where_there_are_some() -> None:
    asked = {"metrics": {"preferences/accuracy": {"improve": 0.0}}}
    written = gate_of(recipe(gate=asked))
    assert written is not None and written.metrics["preferences/accuracy"] == Requirement(improve=0.0)
    with pytest.raises(BadInput, match="held_out_fraction is 0") as told:
        gate_of(recipe(gate=asked, held_out_fraction=0))
    assert told.value.field == "gate.metrics.preferences/accuracy"
    with pytest.raises(BadInput, match="metrics are accuracy, margin, ranking_accuracy"):
        gate_of(recipe(gate={"metrics": {"preferences/loss": {"improve": 0.0}}}))


@pytest.mark.parametrize(
    ("metrics", "changes", "told"),
    [
        (
            {"answers/words": {"max_ratio": 2}},
            {},
            "answers has no such metric; write answers/ and one of length, ended",
        ),
        ({"policy_divergence/kl": {"at_most": 10}}, {"held_out_fraction": 0}, "held_out_fraction is 0"),
        ({"policy_divergence/kl": {"max_ratio": 2}}, {}, "bound it by at_most"),
        ({"preferences/margin": {"max_ratio": 2}}, {}, "bound it by at_most"),
        (
            {"answers/length": {"max_ratio": 2}},
            {"evals": {"lm_eval": {"arc_easy": {"data": "arc.jsonl"}}}, "judge": None},
            "no suite of the recipe is answered by texts",
        ),
    ],
)
def test_a_bound_that_could_never_hold_is_refused(metrics: dict[str, Any], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told) as error:
        gate_of(recipe(gate={"metrics": metrics}, **changes))
    assert error.value.field == f"gate.metrics.{next(iter(metrics))}"


def test_a_gate_may_bound_answers_divergence_and_any_metric_from_above() -> None:
    asked = {
        "answers/length": {"max_ratio": 1.5},
        "answers/distinct_4": {"at_least": 0.8},
        "policy_divergence/kl": {"at_most": 10},
        "gsm8k/exact_match,strict-match": {"at_most": 0.9},
    }
    written = gate_of(recipe(gate={"metrics": asked}))
    assert written is not None and written.metrics["policy_divergence/kl"] == Requirement(at_most=10)


@pytest.mark.parametrize(
    ("requirement", "told"),
    [
        ({"at_most": 0.5, "champion_margin": 0.1}, "champion_margin goes with"),
        ({"at_most": 0.5, "max_ratio": 2}, "exactly one of"),
        ({"max_ratio": 0}, "must be above 0"),
        ({"at_least": 0.5, "champion_margin": 0.1}, "champion_margin goes with"),
        ({"improve": 0.1, "champion_margin": -0.1}, "must be at least 0"),
        ({"champion_margin": 0.1}, "exactly one of"),
    ],
)
def test_a_champion_margin_that_means_nothing_is_refused(requirement: dict[str, float], told: str) -> None:
    with pytest.raises(BadInput, match=told) as error:
        recipe(gate={"metrics": {"ifeval/inst_level_strict_acc": requirement}})
    assert error.value.field is not None and error.value.field.startswith("gate.metrics.ifeval/inst_level_strict_acc")
