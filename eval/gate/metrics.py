"""Units: how a metric's values are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from alignment.training.held_out_pairs import HeldOutPair, prefers
from eval.suites import SUITES
from eval.suites.samples import Sample


@dataclass(frozen=True)
class Unit:
    """How values are told: times `factor`, with `digits` decimals; `name` is what differences are counted in, and
    `sign` follows a value."""

    factor: float
    digits: int
    name: str
    sign: str

    def format(self, value: float | None, sign: str = "") -> str:
        """A number with a true minus, and no sign on what rounds to nothing; `sign` "+" asks for a plus."""
        if value is None:
            return "unknown"
        shown = f"{value * self.factor:{sign}.{self.digits}f}"
        return shown.lstrip("+-") if float(shown) == 0.0 else shown.replace("-", "−")


PERCENT = Unit(100.0, 1, "percentage points", " %")
PLAIN = Unit(1.0, 2, "points", "")


def unit_of(width: float | None) -> Unit:
    """Fractions are told in per cent, everything else as it is."""
    return PERCENT if width == 1.0 else PLAIN


# Held-out preference pairs as samples, so that a policy's accuracy on them is compared like any suite's.
#
# Nothing is answered: the values come from the log-probs that the policy's stage left of every pair.

PREFERENCES = "preferences"
"""The name in the place of a suite's, in comparisons and in a recipe's gate."""
PREFERENCES_TITLE = "held-out preferences"
ACCURACY = "accuracy"
METRICS = (ACCURACY, "margin", "ranking_accuracy")
TIE = 0.5

Scores = Callable[[HeldOutPair], tuple[float, float]]


def policy_samples(pairs: Iterable[HeldOutPair]) -> list[Sample]:
    """What a policy makes of its held-out pairs.

    `accuracy`: whether the implicit reward log π(y|x) − log π_ref(y|x) is higher for the chosen side (Rafailov et al.
    2023, section 4). `margin`: the chosen side's minus the rejected's, in nats and not times β, so that policies
    trained with different β's compare. `ranking_accuracy`: whether the policy alone gives the chosen side the higher
    log-prob (Chen et al. 2024). A tie counts half.
    """
    return _samples(
        pairs,
        lambda pair: (pair.chosen_ratio, pair.rejected_ratio),
        lambda pair: (pair.chosen_logp, pair.rejected_logp),
    )


def reference_samples(pairs: Iterable[HeldOutPair]) -> list[Sample]:
    """The same of the reference itself, which prefers neither side to what it gives them: accuracy 0.5 and margin 0
    on every pair by definition, and a ranking accuracy of its own."""
    return _samples(pairs, lambda pair: (0.0, 0.0), lambda pair: (pair.ref_chosen_logp, pair.ref_rejected_logp))


def shared(first: Sequence[HeldOutPair], second: Sequence[HeldOutPair]) -> tuple[list[HeldOutPair], list[HeldOutPair]]:
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


# Headlines: the metric that stands for its suite, and the suite as people write it.


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
