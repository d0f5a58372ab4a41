"""How a recipe asks for more than one training: links of a chain, points of a sweep, parts of an average."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from math import prod
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from alignment.methods.method import short
from alignment.recipe.data import ModelSource, Section
from alignment.recipe.training import Optimise

PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")


def as_share(given: Any) -> Any:
    """A share that a person wrote in per cent, as a fraction; anything else as it is."""
    match = PERCENT.fullmatch(given) if isinstance(given, str) else None
    return given if match is None else float(match[1]) / 100


class Select(Section):
    """Which pairs of the data a link of a chain trains on."""

    disagreement: Annotated[float, BeforeValidator(as_share), Field(gt=0, le=1)]
    """Share of the training pairs to take, as a fraction or in per cent (`20 %`): those with the smallest signed
    margin, log π(chosen) − log π(rejected) of the link's start less the same of the checkpoint that the chain began
    with; ties by row id. They are the pairs that the policy so far has moved the wrong way on, or least the right
    way. Held-out pairs stay as they are."""


class Link(Optimise):
    """One training of a chain. It starts from the result of the link before it."""

    reference: Literal["start", "sft"] = "start"
    """What a method with a reference refers to: `start`, the checkpoint that the link starts from, or `sft`, the SFT
    checkpoint that the chain began with."""
    select: Select | None = None
    """Trains on a part of the pairs; null trains on all. Not for the first link, whose start is what it disagrees
    with."""


MOST_POINTS = 12


class Sweep(Section):
    """The same training at several points: every combination of the values below. All are evaluated. The best is picked
    on one half of a suite's items and confirmed on the other, and only a confirmed point can pass the gate."""

    beta: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Values of β; none takes that of `optimise`."""
    learning_rate: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Highest learning rates; none takes that of `optimise`."""
    rows: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of training rows, drawn by the recipe's seed, a smaller number out of a larger; none takes all. Held-out
    rows are the same at every point."""
    by: str | None = None
    """The metric by which a point is picked and confirmed, such as ifeval/prompt_level_strict_acc; by default the
    gate's first `improve`, or else the main metric of the first suite."""

    @model_validator(mode="after")
    def _few_points(self) -> Sweep:
        for name in ("beta", "learning_rate", "rows"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} has a value twice")
        if not self.points:
            raise ValueError("give values of beta, learning_rate or rows")
        every = prod(len(values) for values in (self.beta, self.learning_rate, self.rows) if values)
        if every > MOST_POINTS:
            raise ValueError(f"{every} points are more than {MOST_POINTS}: take values out")
        if len(self.points) < every:
            raise ValueError("two points differ by less than six digits show")
        return self

    @property
    def points(self) -> dict[str, dict[str, float]]:
        """Name of each point to its settings. A name says the settings, so that it stays when others come and go."""
        given = {name: values for name in ("beta", "learning_rate", "rows") if (values := getattr(self, name))}
        if not given:
            return {}
        every = (dict(zip(given, values, strict=True)) for values in product(*given.values()))
        return {point_name(point): point for point in every}


def point_name(point: Mapping[str, float], kind: str = "point") -> str:
    """The name of a point's nodes: letters, digits and _ only."""
    return "_".join([kind, *(f"{name}_{re.sub('[^0-9a-z]', '_', short(value))}" for name, value in point.items())])


class Soups(Section):
    """Weighted averages of the trained policy and earlier checkpoints (model soups) as candidates, for the price of
    evaluating each. The policy alone and every average below are evaluated. The best is picked on one half of a suite's
    items and confirmed on the other, as with a sweep, and only a confirmed one can pass the gate."""

    sft: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Weights of the SFT checkpoint, each in an average of its own; the policy has the rest."""
    champions: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of champions, each in an average of its own: 2 averages the policy and the last two champions, with equal
    weights. Policies that were averaged of this very one, of another architecture, erased, or trained on what was
    withdrawn since are passed over. Where there are fewer champions, fewer are averaged."""
    by: str | None = None
    """The metric by which a candidate is picked and confirmed, such as ifeval/prompt_level_strict_acc; by default the
    gate's first `improve`, or else the main metric of the first suite."""

    @model_validator(mode="after")
    def _few_averages(self) -> Soups:
        for name in ("sft", "champions"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} has a value twice")
        every = 1 + len(self.sft) + len(self.champions)
        if every == 1:
            raise ValueError("give weights of sft, or numbers of champions")
        if every > MOST_POINTS:
            raise ValueError(f"{every} candidates with the policy alone are more than {MOST_POINTS}: take values out")
        if len(self.points) < every:
            raise ValueError("two weights differ by less than six digits show")
        return self

    @property
    def points(self) -> dict[str, dict[str, float]]:
        """Name of each candidate to what it averages with the policy, the policy alone first."""
        averages: list[dict[str, float]] = [{"sft": weight} for weight in self.sft]
        averages += [{"champions": float(most)} for most in self.champions]
        return {"soup_alone": {}} | {point_name(average, "soup"): average for average in averages}


class MergePart(Section):
    """One checkpoint of a weighted average: `of` a node of the recipe, or a `model` from elsewhere."""

    of: Literal["policy", "sft", "champion"] | None = None
    """`policy`: what training made. `sft`: the SFT checkpoint. `champion`: the policy that was registered last, if it
    was not merged of this very policy; before there is one, and where it was trained on what was withdrawn since, the
    other weights are scaled up to 1."""
    model: ModelSource | None = None
    """A model of the same architecture, such as a checkpoint of an earlier stage."""
    weight: float = Field(gt=0, lt=1)
    """Its share; those of all parts add up to 1."""

    @model_validator(mode="after")
    def _one(self) -> MergePart:
        if (self.of is None) == (self.model is None):
            raise ValueError("give exactly one of of, model")
        return self
