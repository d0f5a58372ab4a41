"""Preference methods by name: what each asks of its data, and its loss as a pure function of log-probabilities."""

from __future__ import annotations

from typing import Any

from alignment.methods.dpo import Dpo, Hinge, Ipo, NormalisedDpo, RobustDpo
from alignment.methods.method import Method, PairLogps

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Dpo,
        Hinge,
        Ipo,
        NormalisedDpo,
        RobustDpo,
    )
}


def method_of(settings: Any) -> Method:
    """The method that a recipe's section names by `loss`, with its own settings."""
    return METHODS[settings.loss].of(settings)


__all__ = ["METHODS", "Method", "PairLogps", "method_of"]
