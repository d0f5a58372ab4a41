"""Units of metrics, held-out preferences as samples, and the main metric of a suite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from alignment.training.held_out_pairs import (
    HeldOutCompletion,
    HeldOutPair,
    HeldOutRow,
    partner_ratios,
    prefers,
)
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


# Held-out preferences as samples, so that a policy's accuracy on them is compared like any suite's.
#
# No model is asked: the values come from the log-probs that the policy's stage recorded for every row.

PREFERENCES = "preferences"
"""Takes the place of a suite's name in comparisons and in a recipe's gate."""
PREFERENCES_TITLE = "held-out preferences"
ACCURACY = "accuracy"
METRICS = (ACCURACY, "margin", "ranking_accuracy")
TIE = 0.5

Scores = Callable[[HeldOutPair], tuple[float, float]]


def policy_samples(rows: Sequence[HeldOutRow]) -> list[Sample]:
    """The samples of a policy on its held-out rows; a tie counts half.

    Of a pair three metrics. `accuracy`: whether the implicit reward log π(y|x) − log π_ref(y|x) is higher for the
    chosen side (Rafailov et al. 2023, section 4). `margin`: the chosen side's implicit reward minus the rejected
    side's, in nats and without the factor β, so that policies with different β can be compared. `ranking_accuracy`:
    whether the policy's own log-prob is higher for the chosen side (Chen et al. 2024).

    Of a completion with its label two. `margin`: its implicit reward minus the divergence z₀ (the mean reward of the
    rows' partners, at least 0: Ethayarajh et al. 2024), with the sign turned for a thumb down. `accuracy`: whether that
    is above 0.
    """
    completions = [row for row in rows if isinstance(row, HeldOutCompletion)]
    return _labelled(completions, divergence(completions)) + _samples(
        [row for row in rows if isinstance(row, HeldOutPair)],
        lambda pair: (pair.chosen_ratio, pair.rejected_ratio),
        lambda pair: (pair.chosen_logp, pair.rejected_logp),
    )


def reference_samples(rows: Sequence[HeldOutRow]) -> list[Sample]:
    """The same metrics for the reference itself: on every row accuracy 0.5 and margin 0 by definition, and of pairs its
    own ranking accuracy."""
    labelled = [
        replace(row, completion_logp=row.ref_completion_logp) for row in rows if isinstance(row, HeldOutCompletion)
    ]
    return _labelled(labelled, 0.0) + _samples(
        [row for row in rows if isinstance(row, HeldOutPair)],
        lambda pair: (0.0, 0.0),
        lambda pair: (pair.ref_chosen_logp, pair.ref_rejected_logp),
    )


def shared_pairs(
    first: Sequence[HeldOutRow], second: Sequence[HeldOutRow]
) -> tuple[list[HeldOutRow], list[HeldOutRow]]:
    """The rows that two policies were both measured on: the same sequences against the same reference."""
    common = {row.row_id: row.keys for row in first}.items() & {row.row_id: row.keys for row in second}.items()
    rows = {row_id for row_id, _ in common}
    return [row for row in first if row.row_id in rows], [row for row in second if row.row_id in rows]


def divergence(rows: Sequence[HeldOutRow]) -> float:
    """z₀ of completions that are measured together, in nats; 0 without partners."""
    ratios = partner_ratios(rows)
    return max(0.0, math.fsum(ratios) / len(ratios)) if ratios else 0.0


def _labelled(rows: Iterable[HeldOutCompletion], divergence: float) -> list[Sample]:
    samples = []
    for row in rows:
        margin = (row.ratio - divergence) if row.label else (divergence - row.ratio)
        numbers = {ACCURACY: prefers(margin, 0.0), "margin": margin}
        samples += [
            Sample(PREFERENCES, row.row_id, row.prompt_id, metric, value, "") for metric, value in numbers.items()
        ]
    return samples


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
