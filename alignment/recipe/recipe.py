"""The recipe: one model, its preference data and a method, as a person writes it down."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, PrivateAttr, model_validator

from alignment.address import all_shown
from alignment.recipe.data import ModelSource, PreferenceSource, Section
from alignment.recipe.evaluation import Evals, Gate, Judge
from alignment.recipe.schedule import Alerts, Schedule
from alignment.recipe.training import Dpo, Reference, Sft, TokenPolicy


class Pools(Section):
    """The pool (of pools.yaml) each GPU stage runs in."""

    sft: str = "local"
    reference: str = "local"
    policy: str = "local"
    responses: str = "local"


class Registry(Section):
    """Where a promoted model goes in the MLflow registry."""

    model_name: str | None = None
    """Registered model name; the recipe's name by default."""
    smoke_prompt: str = "Hello"
    """What the checkpoint, loaded back, is asked before it is registered."""


class Recipe(Section):
    """Everything a person decides. Its name is the asset group and the prefix of every asset key."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    description: str = ""
    seed: int = 0
    base_model: ModelSource
    sft: Sft
    preferences: PreferenceSource
    tokens: TokenPolicy = TokenPolicy()
    held_out_fraction: float = Field(default=0.02, ge=0, lt=0.5)
    """Share of preference rows, by hash of the prompt, that are measured on and never trained on."""
    reference: Reference = Reference()
    dpo: Dpo = Dpo()
    evals: Evals = Evals()
    judge: Judge | None = None
    gate: Gate | Literal["none", "default"] = "none"
    """`none` registers nothing and ends well. `default` asks that no suite's main metric is lost by a twentieth of
    its scale, against the SFT baseline and the champion, and that one of them is better than the SFT baseline's."""
    registry: Registry = Registry()
    pools: Pools = Pools()
    schedule: Schedule | None = None
    alerts: Alerts | None = None

    _written: dict[str, Any] | None = PrivateAttr(default=None)

    @cached_property
    def file(self) -> Path | None:
        """The file it was read from, resolved, as the loader notes here; None for a recipe that was not read from one.

        No field and no private attribute, so that the same recipe in two files is equal.
        """
        return None

    @property
    def written(self) -> dict[str, Any]:
        """What the person wrote, as plain data, without what may be secret: variables stand by their names, and
        addresses without users and queries."""
        written = self._written
        return cast(
            dict[str, Any],
            all_shown(self.model_dump(mode="json", exclude_unset=True) if written is None else written),
        )

    @model_validator(mode="after")
    def _agreement(self) -> Recipe:
        if self.reference.precision != self.dpo.precision:
            raise ValueError(
                "reference.precision and dpo.precision must be the same: the cached log-probs "
                "stand for the policy's first step"
            )
        if self.judge and self.judge.kind == "rubric":
            others = (self.evals.alpaca_eval, self.evals.arena_hard, self.evals.harmless)
            if (self.evals.mt_bench and not self.evals.mt_bench.embedded) or any(others):
                raise ValueError("judge kind rubric grades only the embedded questions of mt_bench")
        return self

    @property
    def model_name(self) -> str:
        return self.registry.model_name or self.name
