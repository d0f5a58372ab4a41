"""The page's parts from plain samples: categories, lengths, items that changed, curves."""

from __future__ import annotations

import pytest

from eval.gate.metrics import PERCENT, PLAIN
from eval.report.answers import EXAMPLES, examples, length
from eval.report.curves import panels
from eval.report.page import breakable, duration, probability
from eval.report.tables import categories
from eval.suites.samples import Sample


def rated(values: dict[str, float | None], response: str = "some words") -> list[Sample]:
    return [Sample("mt_bench", name, name.split(":")[0], "average", value, response) for name, value in values.items()]


def test_means_by_category_are_over_items_that_both_models_were_rated_on() -> None:
    found = categories(
        "mt_bench",
        {
            "SFT": rated({"1:1": 4.0, "1:2": 6.0, "2:1": 1.0, "3:1": 9.0}),
            "policy": rated({"1:1": 8.0, "1:2": 6.0, "2:1": 10.0, "3:1": None}),
        },
        {"1": "writing", "2": "math", "3": "math"},
        (1.0, 10.0),
    )
    assert found is not None and found.scale == "1 to 10"
    assert [(one.name, one.items) for one in found.categories] == [("math", 1), ("writing", 1)]
    math, writing = found.categories
    assert [(bar.model, bar.text, bar.width) for bar in math.bars] == [("SFT", "1.00", 0.0), ("policy", "10.00", 100.0)]
    assert [bar.text for bar in writing.bars] == ["5.00", "7.00"]


def test_a_single_category_is_none() -> None:
    same = {"SFT": rated({"1:1": 4.0}), "policy": rated({"1:1": 4.0})}
    assert categories("mt_bench", same, {"1": "writing"}, (1.0, 10.0)) is None
    assert categories("mt_bench", same, {}, (1.0, 10.0)) is None


def test_lengths_are_paired_words_with_their_interval() -> None:
    before = [*rated({"1": 4.0, "2": 5.0}, "one two"), *rated({"3": 6.0}, "one")]
    after = [*rated({"1": 4.0, "2": 5.0}, "one two three four"), *rated({"3": 6.0}, "one two")]
    found = length("mt_bench", before, after)
    assert found is not None
    assert (found.n, found.baseline, found.candidate, found.change) == (3, "1.7", "3.3", "+1.7")
    assert found.interval.startswith("+0.2 to")
    same = length("mt_bench", before, before)
    assert same is not None and (same.change, same.interval) == ("0.0", "none differs")


def test_answers_without_text_have_no_length() -> None:
    assert length("mt_bench", rated({"1": 1.0}, ""), rated({"1": 2.0}, "")) is None


def test_the_ten_best_and_worst_are_shown_with_what_was_asked_and_the_rest_counted() -> None:
    before = rated({str(n): 5.0 for n in range(40)}, "before")
    after = rated({str(n): 5.0 + (n % 4) - 1 for n in range(40)}, "after")
    asked = {str(n): f"Question {n}: {'word ' * 60}" for n in range(40)}
    found = examples("mt_bench", before, after, asked)
    assert (found.gained, found.lost, found.unchanged) == (20, 10, 10)
    assert len(found.best) == len(found.worst) == EXAMPLES
    assert found.best[0].difference == "+2.00" and found.worst[0].difference == "−1.00"
    assert found.best[0].values == "5 → 7" and (found.best[0].baseline, found.best[0].candidate) == ("before", "after")
    assert found.best[0].prompt == asked[found.best[0].id]
    assert found.best[0].summary.endswith("word …") and len(found.best[0].summary) < 130


def test_curves_fill_their_plane_and_end_where_the_history_does() -> None:
    history = [
        {"step": 1, "loss": 0.7, "margin": 1e-9},
        {"step": 2, "loss": 0.6},
        {"step": 3, "loss": 0.5, "margin": 2},
    ]
    loss, margin = panels(history)
    assert (loss.title, loss.low, loss.high, loss.steps) == ("Loss", "0.5", "0.7", "step 1 to 3")
    assert loss.curves[0].path == "M0.00 0.00 L50.00 50.00 L100.00 100.00" and loss.curves[0].last == "0.5"
    assert (margin.low, margin.high) == ("0", "2")
    assert panels([{"step": 1, "loss": 0.7}]) == [] and panels([]) == []


def test_a_level_curve_is_drawn() -> None:
    (level,) = panels([{"step": 1, "accuracy": 1.0}, {"step": 9, "accuracy": 1.0}])
    assert level.curves[0].path == "M0.00 100.00 L100.00 100.00" and level.low == level.high == "1"


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (125.0, "2 min 5 s"), (7260.0, "2 h 1 min")]
)
def test_durations_are_said_as_people_do(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_names_may_break_where_their_parts_meet_and_are_escaped() -> None:
    assert str(breakable("a_b,<c>")) == "a_<wbr>b,<wbr>&lt;c&gt;"


def test_numbers_are_told_in_their_unit_without_a_sign_on_nothing() -> None:
    assert PERCENT.format(-0.05, "+") == "−5.0" and PERCENT.format(0.672, "+") == "+67.2"
    assert PERCENT.format(-0.0001, "+") == "0.0" and PLAIN.format(0.004, "+") == "0.00"
    assert PLAIN.format(None) == "unknown"
    assert probability(0.0004) == "p < 0.001" and probability(0.0214) == "p = 0.021"
