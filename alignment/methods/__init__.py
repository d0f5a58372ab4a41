"""Preference methods by name: what each asks of its data, and its loss as a pure function of log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from alignment.methods.cpo import Cpo
from alignment.methods.dpo import ApoDown, ApoZero, ConservativeDpo, Dpo, Hinge, Ipo, NormalisedDpo, RobustDpo
from alignment.methods.grpo import Grpo
from alignment.methods.kto import Kto
from alignment.methods.ld_dpo import LdDpo
from alignment.methods.method import LabelledLogps, Method, PairLogps
from alignment.methods.orpo import Orpo
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
        Orpo,
    )
}

"""The methods that train on preferences, by the packed step."""
ON_POLICY: dict[str, type[Method]] = {Grpo.name: Grpo}
"""Those that train on what the policy samples, by a trainer of their own."""
EVERY = METHODS | ON_POLICY


def method_of(settings: Any) -> Method:
    """The method that a recipe's section names by `loss`, with its own settings."""
    return EVERY[settings.loss].of(settings)


KINDS = {"paired": "a chosen and a rejected completion", "unpaired": "a completion with its label"}


@dataclass(frozen=True)
class Spelling:
    """How recipes write a method: the section, its key, and what each method is called there.

    `names` maps a name in the recipe to one in `METHODS`; `per_token` does so where `length_normalised` is true.
    """

    section: str
    key: str
    names: dict[str, str]
    per_token: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    """A name in the other spelling, and what it is called here."""

    def method(self, name: Any, per_token: Any = False) -> type[Method] | None:
        """The method of a name; None for a name that is none."""
        if not isinstance(name, str):
            return None
        return EVERY.get((self.per_token if per_token is True else {}).get(name) or self.names.get(name, ""))

    def settings(self, name: str) -> frozenset[str]:
        """The settings that a method takes in the section, beside those of every training."""
        own = EVERY[self.names[name]].settings()
        return own | {"length_normalised"} if name in self.per_token else own

    def called(self, names: Iterable[str]) -> str:
        """Methods as the section names them, in words."""
        return f"{self.key}: {' or '.join(names)}"

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the key."""
        return {"type": "string", "enum": list(self.names)}

    def known(self, name: str) -> str:
        """The name itself; raises `ValueError` for a name that is none, with the name that may have been meant."""
        if name in self.names:
            return name
        from difflib import get_close_matches

        near = [self.elsewhere[name]] if name in self.elsewhere else get_close_matches(name, self.names, 1)
        meant = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(self.names)}"
        raise ValueError(f"there is no '{name}'; {meant}")


NORMALISED = "sigmoid_norm"
"""It has no name of its own in `optimise`: it is `dpo` with `length_normalised`."""
RENAMED = {"sigmoid": "dpo", "robust": "robust_dpo"}
LOSS = Spelling(
    "dpo", "loss", {name: name for name in EVERY}, elsewhere={other: name for name, other in RENAMED.items()}
)
METHOD = Spelling(
    "optimise",
    "method",
    {RENAMED.get(name, name): name for name in METHODS if name != NORMALISED}
    | {"step_dpo": "sigmoid"}
    | {name: name for name in ON_POLICY},
    per_token={"dpo": NORMALISED, "step_dpo": NORMALISED},
    elsewhere=RENAMED | {NORMALISED: "dpo with length_normalised: true"},
)


def wrong_kind(method: Method, kind: str, spelling: Spelling | None = None, called: str | None = None) -> str | None:
    """Why a method cannot train on rows of a kind, and which methods can; None where it can.

    `spelling` is the recipe's, and `called` what it calls the method (such as `method: dpo`); by default the methods
    have their names here.
    """
    if method.data in (kind, "unpaired"):  # a pair is two completions with their labels
        return None
    names = spelling.names if spelling else {name: name for name in METHODS}
    takers = [name for name, other in names.items() if other in METHODS and METHODS[other].data == kind]
    able = f"{', '.join(takers)} would take them"
    wanted = f"{method.data} ones ({KINDS[method.data]})"
    return f"holds {kind} rows ({KINDS[kind]}), and {called or method.name} takes {wanted}; {able}"


__all__ = [
    "LOSS",
    "METHOD",
    "METHODS",
    "NORMALISED",
    "ON_POLICY",
    "LabelledLogps",
    "Method",
    "PairLogps",
    "Spelling",
    "method_of",
    "wrong_kind",
]
