"""How much a metric varies from one training to the next, in words beside a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

from eval.gate.compare import width_of
from eval.gate.metrics import unit_of
from eval.suites.samples import Sample

PUBLISHED = {
    "alpaca_eval": 1.24,
    "bbh": 0.39,
    "gpqa": 1.48,
    "ifeval": 0.88,
    "minerva_math": 0.25,
    "mmlu": 0.22,
}
"""Suite to the standard deviation from run to run, in percentage points, in Olmo 3's report (arXiv 2512.13961)."""
SOURCE = "Olmo 3"


def spread(metric: str, runs: Sequence[Sequence[Sample]], difference: float | None = None) -> str | None:
    """What several trainings say of a metric (`suite/metric`); None where fewer than two of them were measured.

    `runs` has the samples of the metric's suite, a training each, the candidate's first. `difference` is the
    candidate's from its baseline.
    """
    suite, _, name = metric.partition("/")
    values = [[one.value for one in run if one.metric == name and one.value is not None] for run in runs]
    means = [sum(run) / len(run) for run in values if run]
    if len(means) < 2:
        return None
    unit = unit_of(width_of(suite, name, [value for run in values for value in run]))
    middle = sum(means) / len(means)
    deviation = sqrt(sum((mean - middle) ** 2 for mean in means) / (len(means) - 1))
    ends = " to ".join(unit.format(end) + unit.sign for end in (min(means), max(means)))
    told = (
        f"{metric}: {len(means)} trainings with other seeds gave {ends}, a standard deviation of"
        f" {unit.format(deviation)} {unit.name} from run to run"
    )
    if difference is not None and deviation:
        told += f"; the difference of {unit.format(difference, '+')} is {abs(difference) / deviation:.1f} times that"
    return told + published(suite)


def published(suite: str) -> str:
    """The published spread of a suite, as the end of a sentence; empty if none is known."""
    known = PUBLISHED.get(suite)
    return "" if known is None else f" ({SOURCE} published {known:g} for its runs)"


def spreads(
    metrics: Sequence[str], runs: Sequence[Mapping[str, Sequence[Sample]]], differences: Mapping[str, float]
) -> list[str]:
    """A sentence for each metric; `runs` maps a suite to its samples, a training each, the candidate's first."""
    of_metric = {name: [run[suite] for run in runs if (suite := name.partition("/")[0]) in run] for name in metrics}
    sentences = (spread(name, samples, differences.get(name)) for name, samples in of_metric.items())
    return [sentence for sentence in sentences if sentence is not None]
