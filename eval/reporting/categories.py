"""Scores by category, for suites whose items name one (MT-Bench's eight)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.headline import headline, title_of
from eval.samples import Sample
from eval.scale import width_of
from eval.units import unit_of


@dataclass(frozen=True)
class Bar:
    """One model's mean in a category: as text, and as a share of the scale in per cent."""

    model: str
    told: str
    width: float


@dataclass(frozen=True)
class Category:
    name: str
    items: int
    bars: list[Bar]


@dataclass(frozen=True)
class Categories:
    """A suite's main metric by category, for every model that was measured."""

    suite: str
    title: str
    metric: str
    scale: str
    categories: list[Category]


def categories(
    suite: str, models: Mapping[str, Sequence[Sample]], category_of: Mapping[str, str], scale: tuple[float, float]
) -> Categories | None:
    """Means by category over the items that every model was measured on; None where fewer than two are named.

    `category_of` takes a sample's cluster; `scale` is the suite's, whose lower end is where a bar begins.
    """
    metric = headline(suite, [sample.metric for samples in models.values() for sample in samples])
    values = {
        model: {s.id: (s.cluster, s.value) for s in samples if s.metric == metric and s.value is not None}
        for model, samples in models.items()
    }
    common = set.intersection(*(set(found) for found in values.values()))
    grouped: defaultdict[str, list[str]] = defaultdict(list)
    first = next(iter(values.values()))
    for name, (cluster, _) in first.items():
        if name in common and cluster in category_of:
            grouped[category_of[cluster]].append(name)
    if len(grouped) < 2:
        return None
    unit = unit_of(width_of(suite, metric, [value for found in values.values() for _, value in found.values()]))
    low, high = scale

    def bar(model: str, names: list[str]) -> Bar:
        mean = math.fsum(values[model][name][1] for name in names) / len(names)
        return Bar(model, unit.told(mean) + unit.sign, round(100 * (mean - low) / (high - low), 2))

    return Categories(
        suite=suite,
        title=title_of(suite),
        metric=metric,
        scale=f"{low * unit.factor:g} to {high * unit.factor:g}{unit.sign}",
        categories=[
            Category(name, len({first[one][0] for one in names}), [bar(model, names) for model in models])
            for name, names in sorted(grouped.items())
        ],
    )
