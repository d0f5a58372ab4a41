"""The champion on new rows beside its own held-out pairs, source by source."""

from __future__ import annotations

import pytest

from alignment.training.held_out_pairs import HeldOutPair
from eval.report.guards import drift_of
from eval.stages.new_rows import numbers
from eval.summaries import NewRowsSummary


def pairs(source: str, right: int, wrong: int) -> list[HeldOutPair]:
    """As many pairs whose chosen side the champion prefers, and as many whose rejected side it does."""
    return [
        HeldOutPair(
            row_id=f"{source}-{n}",
            prompt_id=f"{source}-{n}",
            chosen_key="",
            rejected_key="",
            chosen_logp=-1.0 if n < right else -3.0,
            rejected_logp=-2.0,
            ref_chosen_logp=-2.0,
            ref_rejected_logp=-2.0,
            chosen_tokens=1,
            rejected_tokens=1,
        )
        for n in range(right + wrong)
    ]


HELD_OUT = {"easy": pairs("easy", 190, 10), "hard": pairs("hard", 60, 40)}


def test_a_day_of_the_hardest_source_alone_is_no_drift_and_worse_labels_of_it_are_one() -> None:
    as_before = numbers({"hard": pairs("hard_day", 60, 40)}, HELD_OUT)
    assert as_before["held_out_accuracy"] == pytest.approx(0.6) and as_before["drift"] == pytest.approx(0.0)
    (finding,) = drift_of(NewRowsSummary(new=100, measured=100, **as_before))
    assert finding.passed and "60.0% of its own held-out pairs of the same sources (95 % interval" in finding.sentence
    pooled = numbers({"": pairs("day", 60, 40)}, {"": HELD_OUT["easy"] + HELD_OUT["hard"]})
    assert pooled["drift"] == pytest.approx(0.6 - 250 / 300) and "sources" not in pooled
    (finding,) = drift_of(NewRowsSummary(new=100, measured=100, **pooled))
    assert not finding.passed, "beside the pairs of both sources it would be taken for one"
    flipped = numbers({"hard": pairs("hard_day", 30, 70)}, HELD_OUT)
    (finding,) = drift_of(NewRowsSummary(new=100, measured=100, **flipped))
    assert not finding.passed and flipped["drift"] == pytest.approx(-0.3)


def test_every_source_counts_by_its_share_of_the_new_rows_and_a_new_one_has_no_drift() -> None:
    new = {"hard": pairs("hard_day", 30, 20), "easy": pairs("easy_day", 50, 0), "fresh": pairs("fresh_day", 90, 10)}
    found = numbers(new, HELD_OUT)
    assert found["accuracy"] == pytest.approx(170 / 200)
    assert found["held_out_accuracy"] == pytest.approx(0.5 * 0.6 + 0.5 * 0.95)
    assert found["drift"] == pytest.approx(0.5 * (0.6 - 0.6) + 0.5 * (1.0 - 0.95))
    assert found["drift_low"] < found["drift"] < found["drift_high"]
    told = NewRowsSummary(new=200, measured=200, **found)
    (finding,) = drift_of(told)
    assert "easy 100.0% of 50, 95.0% held out; fresh 90.0% of 100, new; hard 60.0% of 50, 60.0%" in finding.sentence
    assert told.sources["fresh"].held_out_accuracy is None
    alone = numbers({"fresh": new["fresh"]}, HELD_OUT)
    assert alone["accuracy"] == 0.9 and "drift" not in alone and list(alone["sources"]) == ["fresh"]


def test_without_held_out_pairs_there_is_an_accuracy_and_no_drift() -> None:
    found = numbers({"": pairs("day", 3, 1)}, {})
    assert found["accuracy"] == 0.75 and "drift" not in found
    assert numbers({}, HELD_OUT) == {}
