"""Small pictures and tables for Dagster's metadata, which supports markdown but no images."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alignment.data.statistics import Finding
from eval.report.curves import curves_png


def picture(alt: str, png: bytes) -> str:
    """A PNG as markdown with the picture inside."""
    return f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})"


def curves(history: Sequence[Mapping[str, Any]], panels: Mapping[str, Sequence[str]]) -> str:
    """A row of small line plots over training steps.

    `history` has one mapping a step; `panels` maps a title to the record names drawn under it.
    """
    return picture("curves", curves_png(history, panels))


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A markdown table; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def findings_table(findings: Iterable[Finding]) -> str:
    """A markdown table of what numbers say of preference data."""
    rows = (
        (finding.name.replace("_", " "), "" if finding.passed else "look", finding.sentence) for finding in findings
    )
    return table(("preference data", "", "finding"), rows)
