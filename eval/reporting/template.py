"""Pages from templates: everything escaped, nothing undefined passed over."""

from __future__ import annotations

import re
from typing import Any


def render(template: str, **values: Any) -> str:
    """The page's text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("eval"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(duration=duration, probability=probability, breakable=breakable)
    return environment.get_template(template).render(**values)


def breakable(name: str) -> Any:
    """A metric's or stage's name, escaped, that a line may break within where its parts meet."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([_,/])", r"\1<wbr>", str(escape(name))))


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def probability(value: float) -> str:
    """A p-value with its sign of relation."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
