from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from eval.commands import score_files
from eval.suites import suite_named
from eval.suites.items import check_items
from eval.suites.math import answer_in, same
from eval.suites.rows import write_records


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"The answer is $\boxed{2}$", "2"),
        (r"So $\boxed{\frac{1}{2}}$, not \boxed{3}. I mean $\boxed{\frac{1}{\sqrt{2}}}$.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed 7 it is", "7"),
        ("The final answer is $42$. I hope it is correct.", "$42$"),
        ("Answer: 3.5", "3.5"),
        (r"An open box: \boxed{2", None),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_the_answer_is_what_the_last_box_holds_or_what_is_said(text: str, answer: str | None) -> None:
    assert answer_in(text) == answer


@pytest.mark.parametrize(
    ("given", "truth", "equal"),
    [
        ("$42$", "42", True),
        (r"\dfrac{1}{2}", r"\frac12", True),
        ("1,000", "1000", True),
        (r"10{,}000", r"10,\!000", True),
        ("0.50", "0.5", True),
        (r"\left(1, 2\right)", "(1,2)", True),
        ("(1,2)", "(2,1)", False),
        ("2", "3", False),
        ("x+1", "x+2", False),
    ],
)
def test_answers_are_equal_by_the_data_s_own_normalisation_or_as_numbers(given: str, truth: str, equal: bool) -> None:
    assert same(given, truth) is equal


def test_a_right_boxed_answer_is_right_in_both_forms_of_the_data(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"problem": "1 + 1?", "solution": r"It is $\boxed{2}$.", "level": "Level 1", "type": "Algebra"},
        {"problem": "Half?", "solution": "s", "answer": r"\frac{1}{2}", "unique_id": "u"},
        {"problem": "2 + 1?", "solution": r"$\boxed{3}$"},
        {"problem": "3 + 1?", "solution": r"$\boxed{4}$"},
    ]
    write_records(tmp_path / "math.jsonl", records)
    turns = [r"The answer is $\boxed{2}$", r"$$\boxed{\dfrac{1}{2}}$$", r"\boxed{4}", "Hm."]
    write_records(tmp_path / "r.jsonl", ({"id": n, "turns": [text]} for n, text in enumerate(turns)))
    scored = score_files("math", tmp_path / "r.jsonl", tmp_path / "math.jsonl", out=tmp_path)
    assert scored["metrics"]["exact_match"]["value"] == 0.5
    assert scored["classes"] == {"exact_match": {"no_answer": 1, "right": 2, "wrong": 1}}


def test_a_problem_asks_for_a_box_and_one_without_an_answer_is_named() -> None:
    (item,) = check_items(suite_named("math"), [(1, {"problem": "p", "answer": "1"})], "f")
    assert item.fields["turns"] == ["p\n\nPut your final answer in \\boxed{}."]
    with pytest.raises(BadInput, match="f, row 1, field 'truth': not a MATH item: missing"):
        check_items(suite_named("math"), [(1, {"problem": "p", "solution": "no box"})], "f")


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 30_000, "{" * 100_000 + "\\boxed{2}", "answer is a" + " " * 20_000 + "b"]
)
def test_an_answer_that_repeats_itself_is_read_within_seconds(text: str) -> None:
    began = time.process_time()
    answer_in(text)
    assert time.process_time() - began < 5
