from __future__ import annotations

from eval.gate.compare import MetricComparison, compare_samples
from eval.report.history import Version, courses, history_page
from eval.suites.samples import Sample


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
    assert ifeval.line == "M0.00 3.00 L100.00 3.00", "a single version is drawn as a level"


def test_the_page_has_the_champion_first_and_every_version_with_its_rows() -> None:
    text = history_page("night", "<model>", [version(1, gsm8k=measured(30)), version(2, gsm8k=measured(40))])
    assert "&lt;model&gt;: 2 registered versions" in text
    assert "The champion is version 2, registered 2 November 2026." in text
    assert text.index(">version 2<") < text.index(">version 1<") and "1,001" in text and "222222222222" in text
    assert "http" not in text.replace("http-equiv", "")


def test_before_the_first_registration_the_page_says_so() -> None:
    assert "Nothing was registered yet." in history_page("night", "night", [])
