from __future__ import annotations

import sys

import pytest

from alignment.errors import BadInput
from eval.suites import SUITES, suite_named
from eval.suites.lm_eval_tasks import slug, stock_suite, subsets, tasks_of
from eval.suites.suite import Item


def test_a_task_is_found_by_its_name_with_its_metrics_split_and_kind() -> None:
    arc = suite_named("arc_challenge")
    assert arc.task is not None
    assert (arc.metrics, arc.output, arc.turns, arc.id_field) == (("acc", "acc_norm"), "multiple_choice", 0, None)
    assert (arc.task.split, arc.task.few_shot_split, arc.task.subset) == ("test", "train", "ARC-Challenge")
    assert stock_suite("truthfulqa_mc2").task.split == "validation"  # type: ignore[union-attr]
    assert stock_suite("copa").task.yaml == "super_glue/copa/default.yaml"  # type: ignore[union-attr]
    cot = stock_suite("bbh_cot_fewshot_boolean_expressions")
    assert cot.task is not None and (cot.task.own_examples, cot.task.num_fewshot) == (True, 3)


def test_the_suites_with_sections_of_their_own_are_no_tasks_by_name() -> None:
    assert all(suite_named(name) is suite for name, suite in SUITES.items())


def test_a_group_is_its_tasks_by_subset() -> None:
    mmlu = stock_suite("mmlu")
    assert len(mmlu.members) == 57 and mmlu.task is None and not mmlu.needs_judge
    assert mmlu.members["anatomy"].name == "mmlu_anatomy"
    assert set(stock_suite("hendrycks_math").members) >= {"counting_and_probability", "precalculus"}
    assert "computer_science" in stock_suite("mmlu_pro").members


def test_a_tag_on_tasks_of_different_items_is_their_group() -> None:
    arc = stock_suite("ai2_arc")
    assert (set(arc.members), arc.metrics) == ({"arc_challenge", "arc_easy"}, ("acc", "acc_norm"))


def test_metrics_that_are_no_means_of_items_are_left_out_by_name() -> None:
    lambada = stock_suite("lambada_openai")
    assert (lambada.metrics, lambada.left_out, lambada.output) == (("acc",), ("perplexity",), "loglikelihood")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gsm9k", "no suite 'gsm9k': lm-eval has no task or group of this name"),
        ("humaneval", "runs the code that a model writes"),
        ("wikitext", "measures loglikelihood_rolling"),
        ("squadv2", "is a program of its own"),
        ("gpqa", r"gpqa is a tag on 15 tasks, and .*; name those you want: gpqa_diamond_cot_n_shot, "),
        ("gsm8k_cot_self_consistency", "asks each item 64 times"),
        ("cola", r"no metric that is a mean over items where more is better \(mcc\)"),
    ],
)
def test_what_cannot_be_compared_item_by_item_is_refused_by_name(name: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        stock_suite(name)


def test_a_task_whose_code_needs_a_package_that_is_not_there_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as if it were not installed
    words = r"minerva_math needs the package math_verify, which is not installed here"
    with pytest.raises(BadInput, match=words):
        stock_suite.__wrapped__("minerva_math")
    assert stock_suite.__wrapped__("hendrycks_math").members  # its code needs no package of its own


def test_a_group_whose_tasks_cannot_be_taken_together_is_refused() -> None:
    with pytest.raises(BadInput, match="have no metric in common; name them one by one"):
        stock_suite("leaderboard")


def test_subsets_are_read_however_they_are_spelt() -> None:
    assert [slug(text) for text in ("Counting & Probability", "abstract_algebra", "Prealgebra")] == [
        "counting_and_probability",
        "abstract_algebra",
        "prealgebra",
    ]
    math = stock_suite("hendrycks_math")
    records = [{"type": "Number Theory"}, {"type": "Algebra"}, {"type": "Number Theory"}]
    assert subsets(math, records) == ["number_theory", "algebra", "number_theory"]
    parts = tasks_of(math, [Item(str(n), record) for n, record in enumerate(records)])
    assert [(task.name, places) for task, places in parts] == [
        ("hendrycks_math_algebra", [1]),
        ("hendrycks_math_num_theory", [0, 2]),
    ]
