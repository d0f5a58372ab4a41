"""Units of metrics, held-out preferences as samples, and the main metric of a suite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from alignment.training.held_out_pairs import HeldOutPair, prefers
from eval.suites import SUITES
from eval.suites.samples import Sample


@dataclass(frozen=True)
class Unit:
    """How values are written: multiplied by `factor`, with `digits` decimals. `name` is the unit of a difference, and
    `sign` follows a value."""

    factor: float
    digits: int
    name: str
    sign: str

    def format(self, value: float | None, sign: str = "") -> str:
        """The value as text with a real minus sign, without a sign if it rounds to zero. `sign` "+" also writes a
        plus."""
        if value is None:
            return "unknown"
        shown = f"{value * self.factor:{sign}.{self.digits}f}"
        return shown.lstrip("+-") if float(shown) == 0.0 else shown.replace("-", "−")


PERCENT = Unit(100.0, 1, "percentage points", " %")
PLAIN = Unit(1.0, 2, "points", "")


def unit_of(width: float | None) -> Unit:
    """Per cent for fractions (a scale of width 1), plain numbers for all other scales."""
    return PERCENT if width == 1.0 else PLAIN


# Held-out preference pairs as samples, so that a policy's accuracy on them is compared like any suite's.
#
# No model is asked: the values come from the log-probs that the policy's stage recorded for every pair.

PREFERENCES = "preferences"
"""Takes the place of a suite's name in comparisons and in a recipe's gate."""
PREFERENCES_TITLE = "held-out preferences"
ACCURACY = "accuracy"
METRICS = (ACCURACY, "margin", "ranking_accuracy")
TIE = 0.5

Scores = Callable[[HeldOutPair], tuple[float, float]]


def policy_samples(pairs: Iterable[HeldOutPair]) -> list[Sample]:
    """The samples of a policy on its held-out pairs, three metrics a pair; a tie counts half.

    `accuracy`: whether the implicit reward log π(y|x) − log π_ref(y|x) is higher for the chosen side (Rafailov et al.
    2023, section 4). `margin`: the chosen side's implicit reward minus the rejected side's, in nats and without the
    factor β, so that policies with different β can be compared. `ranking_accuracy`: whether the policy's own log-prob
    is higher for the chosen side (Chen et al. 2024).
    """
    return _samples(
        pairs,
        lambda pair: (pair.chosen_ratio, pair.rejected_ratio),
        lambda pair: (pair.chosen_logp, pair.rejected_logp),
    )


def reference_samples(pairs: Iterable[HeldOutPair]) -> list[Sample]:
    """The same metrics for the reference itself: on every pair accuracy 0.5 and margin 0 by definition, and its own
    ranking accuracy."""
    return _samples(pairs, lambda pair: (0.0, 0.0), lambda pair: (pair.ref_chosen_logp, pair.ref_rejected_logp))


def shared_pairs(
    first: Sequence[HeldOutPair], second: Sequence[HeldOutPair]
) -> tuple[list[HeldOutPair], list[HeldOutPair]]:
    """The pairs that two policies were both measured on: the same sequences against the same reference."""
    common = {pair.row_id: pair.keys for pair in first}.items() & {pair.row_id: pair.keys for pair in second}.items()
    rows = {row_id for row_id, _ in common}
    return [pair for pair in first if pair.row_id in rows], [pair for pair in second if pair.row_id in rows]


def _samples(pairs: Iterable[HeldOutPair], rewards: Scores, logps: Scores) -> list[Sample]:
    samples = []
    for pair in pairs:
        (chosen, rejected), values = rewards(pair), logps(pair)
        numbers = (prefers(chosen, rejected), chosen - rejected, prefers(*values))
        samples += [
            Sample(PREFERENCES, pair.row_id, pair.prompt_id, metric, value, "")
            for metric, value in zip(METRICS, numbers, strict=True)
        ]
    return samples


# The main metric and the title of a suite.


def headline(suite: str, measured: Iterable[str]) -> str:
    """The main metric of a suite; if it was not measured, the first of the measured metrics."""
    metrics = list(measured)
    own = SUITES[suite].headline if suite in SUITES else metrics[0]
    return own if own in metrics else metrics[0]


def title_of(suite: str) -> str:
    """The suite's name as people write it."""
    if suite == PREFERENCES:
        return PREFERENCES_TITLE
    return SUITES[suite].title if suite in SUITES else suite
