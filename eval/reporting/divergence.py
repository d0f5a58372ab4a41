"""How far the policy has moved from its SFT checkpoint, as the page tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignment.store import Store
from eval.evidence import ReportRequest, WrongEvidence
from eval.units import Unit

NATS = Unit(1.0, 3, "nats", "")
LINES = {"kl": "KL(policy ‖ SFT), nats a response", "kl_per_token": "KL(policy ‖ SFT), nats a token"}


@dataclass(frozen=True)
class DivergenceLine:
    name: str
    value: str
    interval: str


@dataclass(frozen=True)
class Divergence:
    """The lines of the table, over `responses` sampled responses of so many tokens in the mean."""

    responses: int
    tokens: str
    ended: str
    lines: list[DivergenceLine]


def divergence_of(store: Store, request: ReportRequest) -> Divergence | None:
    """The divergence that a report pins; None where it pins none, or nothing was drawn.

    Raises `WrongEvidence` for that of another policy.
    """
    if request.divergence is None:
        return None
    commit = store.commit_of(request.divergence)
    measured = commit.inputs["policy"]
    if measured.digest != request.policy.digest:
        raise WrongEvidence(f"the divergence is of policy {measured.digest[:12]}, not of {request.policy.digest[:12]}")
    found = commit.summary
    if "kl" not in found:
        return None
    return Divergence(
        responses=found["prompts"] - found["no_room"],
        tokens=f"{found['tokens_per_response']:.1f}",
        ended=f"{found['ended']:.0%}".replace("%", " %"),
        lines=[_line(found, name, text) for name, text in LINES.items()],
    )


def _line(found: Mapping[str, Any], name: str, text: str) -> DivergenceLine:
    ends = found["intervals"][name]
    interval = "unknown" if ends is None else " to ".join(NATS.told(end) for end in ends)
    return DivergenceLine(text, NATS.told(found[name]), interval)
