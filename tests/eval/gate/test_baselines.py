from __future__ import annotations

from pathlib import Path

import pytest

from alignment.errors import BadInput
from eval.gate.baselines import PublishedFigure, rankings, read_baselines, read_written
from eval.gate.compare import compare_samples
from eval.suites import SUITES
from eval.suites.samples import Sample


def write(folder: Path, text: str) -> Path:
    path = folder / "baselines.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_figures_are_read_with_their_source_whatever_else_the_file_holds(tmp_path: Path) -> None:
    path = write(tmp_path, 'metric,model,value,source,note\ngsm8k/x,"A, large",0.61,"Somebody, table 3",hm\n')
    expected = PublishedFigure(model="A, large", metric="gsm8k/x", value=0.61, source="Somebody, table 3")
    assert read_baselines(path) == [expected]


@pytest.mark.parametrize(
    ("text", "half"),
    [
        ("0.728", 0.0005),
        ("0.900", 0.0005),
        ("0.9", 0.05),
        ("7.90", 0.005),
        ("72.8", 0.05),
        ("-1.50", 0.005),
        (".5", 0.05),
        ("1250", 0.5),
        ("1250.0", 0.05),
        ("1e-7", 5e-8),
        ("1.20E+3", 5.0),
    ],
)
def test_a_figure_may_be_off_by_half_of_its_last_digit_as_it_was_written(
    tmp_path: Path, text: str, half: float
) -> None:
    (written,) = read_written(write(tmp_path, f"model,metric,value,source\nA,b, {text} ,c\n"))
    assert (written.text, written.figure.value, written.row) == (text, float(text), 2)
    assert written.half_a_digit == pytest.approx(half, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "model,metric,value\nA,b,1\n",
            "no column source; expected is CSV with .*, and its columns are model, metric, value",
        ),
        ("model,metric,value,source,value\nA,b,1,c,2\n", "field 'value': this column appears twice"),
        ("", "no column model, metric, value, source"),
        ("model,metric,value,source\nA,b,high,c\n", r"row 2, field 'value': 'high' is not a number"),
        ("model,metric,value,source\nA,b,1,c\nA,b,nan,c\n", r"row 3, field 'value': nan is not a finite number"),
        ("model,metric,value,source\nA,b,1,\n", r"row 2, field 'source': is empty"),
    ],
)
def test_what_cannot_be_laid_beside_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        read_baselines(write(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.csv, field .evals\.baselines.: no such file"):
        read_baselines(tmp_path / "nowhere.csv")


def test_our_own_places_are_taken_by_each_models_mean_over_all_its_items() -> None:
    def side(values: list[float | None]) -> list[Sample]:
        return [Sample("s", str(index), str(index), "m", value, "") for index, value in enumerate(values)]

    found = {"s": {"m": compare_samples(side([0.5, 1.0, None, None]), side([None, 9.0, 1.0, 2.0]))["m"]}}
    (place,), _ = rankings([PublishedFigure(model="A", metric="s/m", value=3.0, source="b")], found)
    assert {one.model: one.value for one in place.models} == {"this policy": "4.00", "A": "3.00", "its SFT": "0.75"}


def test_the_shipped_figures_are_of_metrics_that_there_are_on_their_scales_and_name_their_source() -> None:
    figures = read_baselines(Path(__file__).parents[3] / "recipes/baselines/published.csv")
    assert len(figures) >= 10
    for figure in figures:
        suite, _, metric = figure.metric.partition("/")
        assert metric in SUITES[suite].metrics
        low, high = SUITES[suite].scale_of(metric)
        assert low <= figure.value <= high and ("model card" in figure.source or "arXiv" in figure.source)
