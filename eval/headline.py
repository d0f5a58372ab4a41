"""Headlines: the metric that stands for its suite, and the suite as people write it."""

from __future__ import annotations

from collections.abc import Iterable

from eval.preferences import PREFERENCES, PREFERENCES_TITLE
from eval.suites import SUITES


def headline(suite: str, measured: Iterable[str]) -> str:
    """The metric that stands for a suite among those that were measured; the first of them if its own was not."""
    metrics = list(measured)
    own = SUITES[suite].headline if suite in SUITES else metrics[0]
    return own if own in metrics else metrics[0]


def title_of(suite: str) -> str:
    """The suite as people write it."""
    if suite == PREFERENCES:
        return PREFERENCES_TITLE
    return SUITES[suite].title if suite in SUITES else suite
