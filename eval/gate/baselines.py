"""Published figures to compare with ours: a CSV of model, metric, value and source."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from alignment.errors import BadInput, first_few, no_such
from eval.gate.compare import MetricComparison
from eval.gate.metrics import headline, title_of, unit_of

COLUMNS = ("model", "metric", "value", "source")


class PublishedFigure(BaseModel):
    """A published value of a metric (`suite/metric`, or a suite for its main metric), on the metric's own scale."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    metric: str
    value: float
    source: str


@dataclass(frozen=True)
class WrittenFigure:
    """A published figure as it stands in a file: `text` is its value with the digits that were written."""

    figure: PublishedFigure
    text: str
    file: str
    row: int

    @property
    def half_a_digit(self) -> float:
        """What the value may be off by its rounding: half a unit of the last digit that was written, so 0.0005 of 0.728
        and of 0.900, 0.05 of 0.9, and 0.5 of 1250."""
        mantissa, _, exponent = self.text.replace("_", "").lower().partition("e")
        decimals = len(mantissa.partition(".")[2])
        return float(f"5e{int(exponent or 0) - decimals - 1}")

    def refuse_other_scale(self, width: float | None) -> None:
        """Raises `BadInput` for a value outside 0 to 1 of a metric whose scale has width 1; `width` is that of the
        metric's scale, None if it has no known bounds."""
        figure = self.figure
        if width == 1.0 and not 0.0 <= figure.value <= 1.0:
            told = f"{figure.model}: {self.text} is no value of {figure.metric}, whose values are fractions from 0 to 1"
            raise BadInput(told, file=self.file, row=self.row, field="value")


@dataclass(frozen=True)
class RankedModel:
    """A model in a metric's ranking; `width` is its value in per cent of the best value."""

    model: str
    value: str
    source: str
    ours: bool
    width: float


@dataclass(frozen=True)
class Ranking:
    """The models with a known value of a metric, best first: published models, the policy and its baseline."""

    title: str
    metric: str
    models: list[RankedModel]


def read_baselines(path: str | Path) -> list[PublishedFigure]:
    """The figures in a CSV file; raises `BadInput` that names file, row and field."""
    return [written.figure for written in read_written(path)]


def read_written(path: str | Path) -> list[WrittenFigure]:
    """The figures in a CSV file with their digits; raises `BadInput` that names file, row and field."""
    file = str(path)
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            names = list(reader.fieldnames or ())
            if absent := [name for name in COLUMNS if name not in names]:
                seen = first_few([name[:40] for name in names]) or "none"
                problem = (
                    f"no column {', '.join(absent)}; expected is CSV with {', '.join(COLUMNS)}, and its columns are"
                )
                raise BadInput(f"{problem} {seen}", file=file)
            if twice := next((name for name in COLUMNS if names.count(name) > 1), None):
                raise BadInput("this column appears twice", file=file, field=twice)
            return [_figure(record, file, row) for row, record in enumerate(reader, start=2)]
    except FileNotFoundError:
        raise BadInput(no_such("file", file), file=file, field="evals.baselines") from None
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}", file=file, field="evals.baselines") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"not a CSV file: {error}", file=file) from error


def _figure(record: Mapping[str, str | None], file: str, row: int) -> WrittenFigure:
    cells = {name: (record.get(name) or "").strip() for name in COLUMNS}
    for name, text in cells.items():
        if not text:
            raise BadInput("is empty", file=file, row=row, field=name)
    try:
        value = float(cells["value"])
    except ValueError:
        raise BadInput(f"'{cells['value']}' is not a number", file=file, row=row, field="value") from None
    if not math.isfinite(value):
        raise BadInput(f"{value} is not a finite number", file=file, row=row, field="value")
    figure = PublishedFigure(model=cells["model"], metric=cells["metric"], value=value, source=cells["source"])
    return WrittenFigure(figure, cells["value"], file, row)


def rankings(
    figures: Sequence[PublishedFigure], suites: Mapping[str, Mapping[str, MetricComparison]], baseline: str = "SFT"
) -> tuple[list[Ranking], list[str]]:
    """A ranking for every measured metric with a published figure, and the figures that could not be compared, with the
    reason; `baseline` is the name of what the policy is compared with."""
    grouped: dict[tuple[str, str], list[PublishedFigure]] = {}
    left_out: list[str] = []
    for figure in figures:
        suite, _, metric = figure.metric.partition("/")
        measured = suites.get(suite, {})
        name = metric or (headline(suite, measured) if measured else "")
        if name not in measured:
            left_out.append(f"{figure.model}, {figure.metric}: not measured here")
        elif measured[name].width == 1.0 and not 0.0 <= figure.value <= 1.0:
            left_out.append(f"{figure.model}, {figure.metric}: {figure.value:g} is not a fraction from 0 to 1")
        else:
            grouped.setdefault((suite, name), []).append(figure)
    made = [_ranking(suite, name, suites[suite][name], known, baseline) for (suite, name), known in grouped.items()]
    return made, left_out


def _ranking(
    suite: str, metric: str, ours: MetricComparison, known: Sequence[PublishedFigure], baseline: str
) -> Ranking:
    unit = unit_of(ours.width)
    rows = [(figure.model, figure.value, figure.source, False) for figure in known]
    own = {"this policy": ours.own_of("candidate").mean, f"its {baseline}": ours.own_of("baseline").mean}
    rows += [(name, mean, "measured here", True) for name, mean in own.items()]
    best = max(value for _, value, _, _ in rows) or 1.0
    ranked = sorted(rows, key=lambda row: -row[1])
    models = [
        RankedModel(model, unit.format(value) + unit.sign, source, is_ours, round(max(100 * value / best, 0.0), 2))
        for model, value, source, is_ours in ranked
    ]
    return Ranking(title_of(suite), metric, models)
