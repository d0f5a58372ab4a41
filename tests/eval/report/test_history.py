from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import pytest

from alignment.stages import Request, Result, Stage, execute
from alignment.store import Store
from eval.gate.compare import MetricComparison, compare_samples
from eval.report.history import Version, axis, courses, history_page
from eval.report.worth import CertifiedLine, NightLine, SourceLine, Worth, moment, new_rows_course
from eval.suites.samples import Sample
from eval.summaries import NewRowsSummary


def measured(right: int, suite: str = "gsm8k", metric: str = "exact_match,strict-match") -> dict[str, MetricComparison]:
    def side(count: int) -> list[Sample]:
        return [Sample(suite, str(n), str(n), metric, float(n < count), "") for n in range(50)]

    return compare_samples(side(10), side(right))


def version(number: int, **suites: dict[str, MetricComparison]) -> Version:
    return Version(str(number), f"2026-11-0{number}T03:00:00+00:00", f"{number}" * 64, "5" * 64, 1000 + number, suites)


def test_a_course_runs_over_all_versions_that_were_measured() -> None:
    versions = [
        version(1, gsm8k=measured(30)),
        version(2, ifeval=measured(20, "ifeval", "prompt_level_strict_acc")),
        version(3, gsm8k=measured(40)),
    ]
    gsm8k, ifeval = courses(versions)
    assert (gsm8k.title, gsm8k.low, gsm8k.high) == ("GSM8K", "20.0 %", "80.0 %")
    assert [point.value for point in gsm8k.points] == ["60.0 %", "not measured", "80.0 %"]
    assert [point.at for point in gsm8k.points] == [0.0, 50.0, 100.0]
    assert gsm8k.line == "M0.00 34.33 L100.00 3.00" and gsm8k.baseline == "M0.00 97.00 L100.00 97.00"
    assert gsm8k.dots == "M0.00 34.33 h0 M100.00 3.00 h0"
    assert (ifeval.line, ifeval.dots) == ("", "M50.00 3.00 h0"), "a single version is a dot, and no course"


def test_an_axis_is_not_tighter_than_what_counts_as_a_change() -> None:
    """A change of 0.4 points would look like a crash."""
    assert axis(0.996, 1.0, 1.0) == pytest.approx((0.9, 1.0)), "within a fraction's bounds"
    assert axis(0.0, 0.004, 1.0) == pytest.approx((0.0, 0.1))
    assert axis(0.5, 0.52, 1.0) == pytest.approx((0.46, 0.56))
    assert axis(5.0, 5.1, 9.0) == pytest.approx((4.6, 5.5)) and axis(0.2, 0.8, 1.0) == (0.2, 0.8)
    assert axis(3.0, 3.1, None) == (3.0, 3.1), "a scale without bounds has no margin"


def test_the_page_has_the_champion_first_and_every_version_with_its_rows() -> None:
    text = history_page("night", "<model>", [version(1, gsm8k=measured(30)), version(2, gsm8k=measured(40))])
    assert "&lt;model&gt;: 2 registered versions" in text
    assert "The champion is version 2, registered 2 November 2026." in text
    assert text.index(">version 2<") < text.index(">version 1<") and "1,001" in text and "222222222222" in text
    assert "http" not in text.replace("http-equiv", "")


def test_a_return_is_a_row_of_its_own_and_no_further_version() -> None:
    first, second = version(1, gsm8k=measured(30)), version(2, gsm8k=measured(40))
    back = replace(version(3, gsm8k=measured(30)), version="1", before="return")
    text = history_page("night", "night", [first, second, back])
    assert "night: 2 registered versions" in text and ">3 registered" not in text
    assert "The champion is version 1, returned to on 3 November 2026." in text
    assert text.count(">return to version 1<") == 2 and text.count(">version 1<") == 2, "in the course and in the table"
    assert replace(back, before="again").name == "version 1 again"


def test_a_moment_says_that_it_is_in_utc() -> None:
    assert moment("2026-11-02T03:00:00+00:00") == moment("2026-11-02T04:00:00+01:00") == "2 November 2026, 03:00 UTC"


def test_before_the_first_registration_the_page_says_so() -> None:
    assert "Nothing was registered yet." in history_page("night", "night", [])


class _Measurement(Request):
    number: int


def test_a_course_of_new_rows_has_the_latest_first_and_only_the_recipes_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(number: int, accuracy: float, recipe: str = "night") -> None:
        told = NewRowsSummary(
            new=30,
            measured=20,
            accuracy=accuracy,
            accuracy_low=accuracy - 0.1,
            accuracy_high=accuracy + 0.1,
            ranking_accuracy=0.6,
            start_ranking_accuracy=0.5,
            held_out_accuracy=0.8,
            drift=accuracy - 0.8,
            drift_low=accuracy - 0.9,
            drift_high=accuracy - 0.75,
        )
        monkeypatch.setenv("ALIGN_RECIPE_NAME", recipe)
        execute(
            Stage("new_rows", 1, _Measurement, lambda *_: Result(str(number), told)), _Measurement(number=number), store
        )

    seconds = itertools.count()  # of two in the same second nobody knows which is later
    clock = SimpleNamespace(now=lambda zone: datetime(2026, 11, 2, 3, 0, next(seconds), tzinfo=zone))
    monkeypatch.setattr(sys.modules["alignment.stages.execute"], "datetime", clock)
    assert new_rows_course(store, "night") is None
    measure(1, 0.8)
    measure(2, 0.9, "another")
    alone = new_rows_course(store, "night")
    assert alone is not None and alone.panel is None, "one measurement is no curve"
    measure(3, 0.4)
    course = new_rows_course(store, "night")
    assert course is not None and course.panel is not None
    assert [curve.last for curve in course.panel.curves] == ["40", "80"] and course.panel.steps.startswith("2 measure")
    assert [line.accuracy for line in course.lines] == ["40.0 %", "80.0 %"]
    latest = course.lines[0]
    assert (latest.interval, latest.drift, latest.drift_interval) == ("30.0 to 50.0", "−40.0", "−50.0 to −35.0")
    assert latest.rankings == "50.0 % → 60.0 %"
    assert [line.has_drifted for line in course.lines] == [True, False]


def test_the_page_says_what_trainings_were_worth_and_escapes_what_people_wrote() -> None:
    source = SourceLine(
        "<web>", 30, "1 November 2026", "preferences/margin", "−0.980", "−1.478 to −0.482", "p = 0.001", "regressed"
    )
    certified = CertifiedLine(
        "gsm8k/exact", "90.0 %", "1.2", "86.0 to 94.0", "89.0 %", "within", ["0.5 (<a>) is outside"]
    )
    worth = Worth(
        nights=[NightLine("1 November 2026, 02:00", "slept", "4 new rows")],
        sources=[source],
        certificate="The recipe was repeated with 5 seeds",
        certified=[certified],
        evidence=[("2", "12 withdrawn rows")],
    )
    text = history_page("night", "night", [version(1, gsm8k=measured(30))], worth)
    for part in (
        "4 new rows",
        "&lt;web&gt;",
        "−1.478 to −0.482",
        "86.0 to 94.0",
        "0.5 (&lt;a&gt;) is outside",
        "12 withd",
    ):
        assert part in text
    assert all(f'href="#{name}"' in text for name in ("nights", "sources", "certificate", "evidence", "versions"))
    assert "#new-rows" not in text, "nothing was measured"
