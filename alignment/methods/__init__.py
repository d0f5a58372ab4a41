"""Preference methods by name: what each asks of its data, and its loss as a pure function of log-probabilities."""

from __future__ import annotations

from typing import Any

from alignment.methods.cpo import Cpo
from alignment.methods.dpo import ApoDown, ApoZero, ConservativeDpo, Dpo, Hinge, Ipo, NormalisedDpo, RobustDpo
from alignment.methods.kto import Kto
from alignment.methods.ld_dpo import LdDpo
from alignment.methods.method import LabelledLogps, Method, PairLogps
from alignment.methods.simpo import SimPo

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Dpo,
        Hinge,
        Ipo,
        ConservativeDpo,
        RobustDpo,
        NormalisedDpo,
        ApoZero,
        ApoDown,
        LdDpo,
        Kto,
        SimPo,
        Cpo,
    )
}


def method_of(settings: Any) -> Method:
    """The method that a recipe's section names by `loss`, with its own settings."""
    return METHODS[settings.loss].of(settings)


KINDS = {"paired": "a chosen and a rejected completion", "unpaired": "a completion with its label"}


def wrong_kind(method: Method, kind: str) -> str | None:
    """Why a method cannot train on rows of a kind, and which methods can; None where it can."""
    if method.data in (kind, "unpaired"):  # a pair is two completions with their labels
        return None
    able = f"{', '.join(name for name, other in METHODS.items() if other.data == kind)} would take them"
    wanted = f"{method.data} ones ({KINDS[method.data]})"
    return f"holds {kind} rows ({KINDS[kind]}), and loss: {method.name} takes {wanted}; {able}"


__all__ = ["METHODS", "LabelledLogps", "Method", "PairLogps", "method_of", "wrong_kind"]
