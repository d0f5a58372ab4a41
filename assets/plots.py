"""Small pictures and tables for Dagster's metadata, which knows markdown but no images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def curves(history: Sequence[Mapping[str, Any]], panels: Mapping[str, Sequence[str]]) -> str:
    """A row of small line plots over training steps, as markdown with the PNG inside.

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
        if len(names) > 1:
            axis.legend(fontsize=7, frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return f"![curves](data:image/png;base64,{base64.b64encode(image.getvalue()).decode()})"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A markdown table; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
