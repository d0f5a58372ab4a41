"""Small pictures and tables for Dagster's metadata, which supports markdown but no images."""

from __future__ import annotations

import base64
import re
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
    """A markdown table of plain text: cells are escaped."""
    lines = [[escaped(name) for name in header], ["---"] * len(header), *([*map(escaped, row)] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def findings_table(findings: Iterable[Finding]) -> str:
    """A markdown table of what numbers say of preference data."""
    rows = (
        (finding.name.replace("_", " "), "" if finding.passed else "look", finding.sentence) for finding in findings
    )
    return table(("preference data", "", "finding"), rows)


SPECIAL = re.compile(r"[\\`*\[\]<>|~!&#$]|(?<!\w)_|_(?!\w)|(?<=:)//|(?<=www)\.|@|^[-+](?= )")
"""What Markdown reads as more than text: marks, HTML, entities, links, addresses, and the start of a list."""


def escaped(text: object) -> str:
    """One line of text that comes from data, a model or a file name, as Markdown that shows just that text."""
    return SPECIAL.sub(r"\\\g<0>", " ".join(str(text).split()))


def code(text: str, language: str = "") -> str:
    """Text as a Markdown code block, which nothing in the text can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
