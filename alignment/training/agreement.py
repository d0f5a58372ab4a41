"""Reference and policy agree: before a fresh run's first step the policy is its reference, and must score like it.

What would be trained otherwise is a policy against log-probs of other tokens, another dtype or another model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from alignment.data.tokens import TokenSequence
from alignment.methods import Method, method_of
from alignment.models.runner import products_are_tf32
from alignment.recipe.training import Dpo
from alignment.training.pairs import PolicyRow, Score, policy_logps, reference_logps, score_rows, sequences_of

FLOAT32_LOSS = 1e-3
FLOAT32_NATS = 1e-4
"""Of the larger of |log-prob| and tokens: ten times what two devices' float32 kernels differ by."""
SAME_PASS_NATS = 0.02
"""A sequence in 16 bits, where scorer and trainer take the same pass on the same kind of device."""
PROBE_FACTOR = 4.0
ROUNDING = 2.0**-8
"""bfloat16's step relative to 1: what a token's log-prob is rounded by, added like independent errors."""
MOST_NATS = 1.0
STANDARD_ERRORS = 3.0
HARMLESS_SHIFT = 0.1
"""A mean shift below this share of what one sequence is allowed is rounding, however regular."""


class Disagreement(RuntimeError):
    """The policy's first log-probs are not its reference's."""


@dataclass(frozen=True)
class Difference:
    """Policy minus reference for one sequence, in nats; `reference` is the cached log-prob."""

    row_id: str
    side: str
    tokens: int
    reference: float
    nats: float


def require_agreement(
    rows: Sequence[PolicyRow], settings: Dpo, score: Score, elsewhere: Score | None = None
) -> dict[str, float]:
    """Raises `Disagreement`, naming the worst row, unless the untrained policy scores `rows` as its reference did.

    float32: every sequence within 1e-4 of the larger of |log-prob| and tokens, and the mean loss what theory says of a
    policy that is its reference, within 1e-3. 16 bits, TF32: every sequence within 0.02 nat where such a device as this
    scored the reference; where another did, `elsewhere` scores the same sequences by another pass, and what the two
    differ by here is what rounding may do there. In every precision the mean of the signed differences must be zero
    within three standard errors: a shift of both sides leaves the loss as it is.
    Returns {loss, expected_loss, worst_nats, mean_nats} for the run's summary.
    """
    if not rows:
        return {}
    method = method_of(settings)
    precision = "tf32" if products_are_tf32() else settings.precision
    found = differences(rows, method, score)
    expected = method.first_loss(reference_logps(method, rows))
    assert expected is not None  # every method here refers to a reference that the policy starts as
    logps, constants = policy_logps(method, rows, [each.reference + each.nats for each in found])
    loss = float(method.loss(logps, constants).mean())
    noise = None
    if precision != "float32" and elsewhere is not None:
        noise = probe_noise([sequence for row in rows for sequence in row.sequences.values()], score, elsewhere)
    limits = [allowed(each, precision, noise) for each in found]
    over = [abs(each.nats) / limit for each, limit in zip(found, limits, strict=True)]
    # NaN counts as the worst: it compares with nothing
    worst = max(range(len(found)), key=lambda place: (math.isnan(over[place]), over[place]))
    if not over[worst] <= 1:
        raise Disagreement(f"{_named(found[worst])}, where rounding explains {limits[worst]:.4f}")
    mean, error = mean_and_error([each.nats for each in found])
    if not abs(mean) <= max(STANDARD_ERRORS * error, HARMLESS_SHIFT * sum(limits) / len(limits)):
        raise Disagreement(
            f"the policy's log-probs differ from the cached reference's by {mean:+.5f} nat a sequence on average,"
            f" {abs(mean) / error if error else math.inf:.1f} standard errors from zero: not rounding; the largest is"
            f" {_named(found[worst])}"
        )
    if precision == "float32" and not abs(loss - expected) <= FLOAT32_LOSS:
        raise Disagreement(f"the first loss would be {loss:.6f}, theory says {expected:.6f}; {_named(found[worst])}")
    largest = max(abs(each.nats) for each in found)
    return {"loss": loss, "expected_loss": expected, "worst_nats": largest, "mean_nats": mean}


def differences(rows: Sequence[PolicyRow], method: Method, score: Score) -> list[Difference]:
    """Those of each row's sequences that the method reads, in turn."""
    return [
        Difference(row.row_id, name, sequence.counted, reference, logps[name] - reference)
        for row, logps in zip(rows, score_rows(method, rows, score), strict=True)
        for name, sequence in sequences_of(method, row).items()
        for reference in [float(getattr(row, f"ref_{name}_logp"))]
    ]


def allowed(difference: Difference, precision: str, noise: float | None) -> float:
    """Most that one sequence may differ, in nats; `noise` as `probe_noise` gives it, None for the same pass."""
    tokens = max(1, difference.tokens)  # a partner's completion may be cut to tokens that do not count
    if precision == "float32":
        return FLOAT32_NATS * max(abs(difference.reference), tokens)
    if noise is None:
        return SAME_PASS_NATS
    return min(MOST_NATS, (PROBE_FACTOR * noise + ROUNDING) * math.sqrt(tokens))


def probe_noise(sequences: Sequence[TokenSequence], score: Score, elsewhere: Score) -> float:
    """Largest difference between two passes over these sequences, in nats a square root of a token."""
    return max(
        abs(one - other) / math.sqrt(max(1, sequence.counted))
        for one, other, sequence in zip(score(sequences), elsewhere(sequences), sequences, strict=True)
    )


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """(mean, its standard error); the error is infinite for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.inf
    return mean, math.sqrt(math.fsum((each - mean) ** 2 for each in values) / (len(values) - 1) / len(values))


def _named(difference: Difference) -> str:
    return (
        f"row {difference.row_id} ({difference.side}, {difference.tokens} tokens): the policy's log-prob differs from"
        f" the cached reference's by {difference.nats:+.4f} nat"
    )
