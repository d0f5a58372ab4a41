"""Training curves: a PNG for Dagster and MLflow, and SVG paths for the report's page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def curves_png(history: Sequence[Mapping[str, Any]], panels: Mapping[str, Sequence[str]]) -> bytes:
    """A row of small line plots over training steps.

    `history` has one mapping a step; `panels` maps a title to the record names drawn under it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(panels), 2.2), dpi=80, layout="constrained")
    for axis, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in names:
            points = [(record["step"], record[name]) for record in history if record.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), linewidth=1.3, label=name.replace("_", " "))
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
        if len(axis.lines) > 1:
            axis.legend(fontsize=7, frameon=False)
    return png_of(figure)


def png_of(figure: Any) -> bytes:
    """A matplotlib figure as a PNG file's bytes."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


# For the page: SVG paths on a plane of 100 by 100, a panel for each quantity.

PANELS = {
    "Loss": ("loss", "held_out_loss"),
    "Reward margin": ("margin", "held_out_margin"),
    "Accuracy": ("accuracy", "held_out_accuracy"),
    "Implicit reward": ("chosen_reward", "rejected_reward"),
    "Divergence": ("kl",),
    "SFT rows": ("sft_loss",),
    "Load of experts": ("router_loss",),
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
    """The curves of a quantity over training steps; `low`, `high` and `steps` are the ends of its axes as text."""

    title: str
    curves: list[Curve]
    low: str
    high: str
    steps: str


def panels(history: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Every panel that the history has two points for."""
    return [made for title, names in PANELS.items() if (made := panel(title, names, history)) is not None]


def _format(value: float, span: float) -> str:
    """Three digits of a value; 0 for less than a thousandth of the panel's span."""
    return "0" if abs(value) < span / 1000 else f"{value:.3g}".replace("-", "−")


def panel(title: str, names: Sequence[str], history: Sequence[Mapping[str, Any]]) -> Panel | None:
    """The records' values of these names over their `step`; None if no name has two."""
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
            Curve(name.replace("_", " "), path(line), _format(line[-1][1], high - low)) for name, line in drawn.items()
        ],
        low=_format(low, high - low),
        high=_format(high, high - low),
        steps=f"step {first:g} to {last:g}",
    )
