"""RewardBench 2. On 420 items with random scores, ties among them, all figures were those of `rewardbench` 0.1.4."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from eval.commands import compare_files, score_files
from eval.suites import REWARD_BENCH_2
from eval.suites.items import read_items
from eval.suites.reward_bench import credit, ties_score
from eval.suites.rows import write_records
from eval.suites.samples import read_samples


def record(name: str, subset: str, right: int = 1, wrong: int = 3) -> dict[str, Any]:
    return {
        "id": name,
        "prompt": f"Question {name}?",
        "chosen": [f"right {place}" for place in range(right)],
        "rejected": [f"wrong {place}" for place in range(wrong)],
        "subset": subset,
        "num_correct": right,
        "total_completions": right + wrong,
    }


ITEMS = [
    record("0", "Math"),
    record("1", "Math"),
    record("2", "Math"),
    record("3", "Safety"),
    record("ref:0", "Ties"),
    record("tied:0", "Ties", right=2, wrong=2),
]
SCORES = {
    "0": [2.0, 1.0, 0.0, -1.0],
    "1": [1.0, 1.0, 0.0, 0.0],
    "2": [0.0, 0.5, 0.0, 0.0],
    "3": [-0.1, -0.2, -0.3, -0.4],
    "ref:0": [3.0, 0.0, 0.0, 0.0],
    "tied:0": [3.0, 2.0, 0.0, -1.0],
}


def scores_file(path: Path, scores: dict[str, list[float]]) -> Path:
    write_records(path, ({"id": name, "loglikelihoods": [[s, False] for s in of]} for name, of in scores.items()))
    return path


def test_stored_scores_give_each_subsets_figure_and_the_leaderboards_mean(tmp_path: Path) -> None:
    write_records(tmp_path / "rb2.jsonl", ITEMS)
    answers = scores_file(tmp_path / "scores.jsonl", SCORES)
    scored = score_files("reward_bench_2", answers, tmp_path / "rb2.jsonl", out=tmp_path / "out")
    values = {name: metric["value"] for name, metric in scored["metrics"].items()}
    ties = 0.3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(2.0 / 1.0 - 1)  # gap 2 against a spread of 1 among the right ones
    assert values == pytest.approx(
        {"average": (0.5 + 1.0 + ties) / 3, "math": (1 + 0.5 + 0) / 3, "safety": 1.0, "ties": ties}
    )
    better = scores_file(tmp_path / "better.jsonl", SCORES | {"2": [1.0, 0.5, 0.0, 0.0]})
    score_files("reward_bench_2", better, tmp_path / "rb2.jsonl", out=tmp_path / "better")
    compared = compare_files(tmp_path / "out", tmp_path / "better")
    assert compared["math"]["difference"] == pytest.approx(1 / 3)
    assert compared["average"]["difference"] == pytest.approx(1 / 9)


def test_equal_scores_share_the_credit_and_ties_weigh_gaps_against_spreads() -> None:
    assert [credit(s) for s in ([2, 1, 0], [1, 1, 0], [1, 1, 1], [0, 1, 0])] == [1, 0.5, pytest.approx(1 / 3), 0]
    assert ties_score((0.0, -1.0), (1.0, -0.5)) == pytest.approx(0.01 * math.tanh(-2.0))
    assert ties_score((0.0, 0.5), (1.0, 2.0)) == pytest.approx(0.3 + 0.3 + 0.2 + 0.01 * math.tanh(-0.5))
    assert ties_score((0.0, 2.0), (0.0, 2.0)) == 1.0


def test_half_a_pair_of_ties_has_no_value_of_its_own(tmp_path: Path) -> None:
    write_records(tmp_path / "rb2.jsonl", ITEMS[:1] + ITEMS[4:5])
    few = {name: SCORES[name] for name in ("0", "ref:0")}
    scores = scores_file(tmp_path / "s.jsonl", few)
    scored = score_files("reward_bench_2", scores, tmp_path / "rb2.jsonl", out=tmp_path)
    assert {name: metric["value"] for name, metric in scored["metrics"].items()} == {"average": 1.0, "math": 1.0}


def test_another_number_of_scores_than_of_completions_is_named_and_not_counted(tmp_path: Path) -> None:
    write_records(tmp_path / "rb2.jsonl", ITEMS[:2])
    scores = scores_file(tmp_path / "s.jsonl", {"0": [1.0, 0.0], "1": SCORES["1"]})
    scored = score_files("reward_bench_2", scores, tmp_path / "rb2.jsonl", out=tmp_path)
    assert (scored["n"], scored["failed"]) == (1, {"0": "2 scores for 4 completions"})
    assert {s.id: s.value for s in read_samples(tmp_path) if s.metric == "average"} == {"1": 0.5, "0": None}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"subset": "Chat Hard"}, "subset"),
        ({"subset": ["Math"]}, "subset"),
        ({"chosen": 0.5}, "chosen"),
        ({"chosen": "right"}, "chosen"),
        ({"chosen": ["a", "b"]}, "chosen"),
        ({"rejected": []}, "rejected"),
        ({"subset": "Ties", "id": "7"}, "id"),
    ],
)
def test_an_item_of_another_form_is_refused_by_row_and_field(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    write_records(tmp_path / "rb2.jsonl", [record("0", "Math"), record("1", "Math") | change])
    with pytest.raises(BadInput) as error:
        read_items(REWARD_BENCH_2, tmp_path / "rb2.jsonl")
    assert (error.value.row, error.value.field) == (2, field)
