"""Training curves as SVG paths: one panel a quantity, lines on a plane of 100 by 100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PANELS = {
    "Loss": ("loss", "held_out_loss"),
    "Reward margin": ("margin",),
    "Accuracy": ("accuracy",),
    "Implicit reward": ("chosen_reward", "rejected_reward"),
}
"""Panel title to the names of the history's records that it draws."""


@dataclass(frozen=True)
class Curve:
    """One line: its name, its SVG path and its last value."""

    name: str
    path: str
    last: str


@dataclass(frozen=True)
class Panel:
    title: str
    curves: list[Curve]
    low: str
    high: str
    steps: str


def panels(history: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Every panel that the history has two points for."""
    return [made for title, names in PANELS.items() if (made := _panel(title, names, history)) is not None]


def _told(value: float, span: float) -> str:
    """Three digits of a value; what is nothing beside the span of the panel is 0."""
    return "0" if abs(value) < span / 1000 else f"{value:.3g}".replace("-", "−")


def _panel(title: str, names: Sequence[str], history: Sequence[Mapping[str, Any]]) -> Panel | None:
    points = {
        name: [(float(record["step"]), float(record[name])) for record in history if record.get(name) is not None]
        for name in names
    }
    drawn = {name: line for name, line in points.items() if len(line) > 1}
    if not drawn:
        return None
    values = [value for line in drawn.values() for _, value in line]
    steps = [step for line in drawn.values() for step, _ in line]
    low, high, first, last = min(values), max(values), min(steps), max(steps)

    def path(line: Sequence[tuple[float, float]]) -> str:
        places = (
            f"{100 * (step - first) / (last - first):.2f} {100 - 100 * (value - low) / (high - low or 1.0):.2f}"
            for step, value in line
        )
        return "M" + " L".join(places)

    return Panel(
        title=title,
        curves=[
            Curve(name.replace("_", " "), path(line), _told(line[-1][1], high - low)) for name, line in drawn.items()
        ],
        low=_told(low, high - low),
        high=_told(high, high - low),
        steps=f"step {first:g} to {last:g}",
    )
