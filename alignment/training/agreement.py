"""Reference and policy agree: before a fresh run's first step the policy is its reference, and must score like it.

What would be trained otherwise is a policy against log-probs of other tokens, another dtype or another model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignment.data.tokens import TokenSequence
from alignment.methods import PairLogps, method_of
from alignment.models.runner import products_are_tf32
from alignment.recipe import Dpo
from alignment.training.pairs import PolicyPair

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

Score = Callable[[Sequence[TokenSequence]], list[float]]
"""Log-probs in nats of completions given their prompts, by the pass that trains them."""


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
    pairs: Sequence[PolicyPair], settings: Dpo, score: Score, elsewhere: Score | None = None
) -> dict[str, float]:
    """Raises `Disagreement`, naming the worst row, unless the untrained policy scores `pairs` as its reference did.

    float32: every sequence within 1e-4 of the larger of |log-prob| and tokens, and the mean loss what theory says of a
    policy that is its reference, within 1e-3. 16 bits, TF32: every sequence within 0.02 nat where such a device as this
    scored the reference; where another did, `elsewhere` scores the same sequences by another pass, and what the two
    differ by here is what rounding may do there. In every precision the mean of the signed differences must be zero
    within three standard errors: a shift of both sides leaves the loss as it is.
    Returns {loss, expected_loss, worst_nats, mean_nats} for the run's summary.
    """
    if not pairs:
        return {}
    found = differences(pairs, score)
    method = method_of(settings)
    precision = "tf32" if products_are_tf32() else settings.precision
    expected = method.first_loss()
    assert expected is not None  # every method here refers to a reference that the policy starts as
    loss = float(method.loss(_logps_of(found)).mean())
    noise = None
    if precision != "float32" and elsewhere is not None:
        noise = probe_noise(pairs, score, elsewhere)
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


def differences(pairs: Sequence[PolicyPair], score: Score) -> list[Difference]:
    """Those of each pair's chosen and rejected side, in turn."""
    logps = score([sequence for pair in pairs for sequence in (pair.chosen, pair.rejected)])
    sides = [
        (pair.row_id, side, sequence, reference)
        for pair in pairs
        for side, sequence, reference in (
            ("chosen", pair.chosen, pair.ref_chosen_logp),
            ("rejected", pair.rejected, pair.ref_rejected_logp),
        )
    ]
    return [
        Difference(row_id, side, len(sequence.completion_ids), reference, logp - reference)
        for (row_id, side, sequence, reference), logp in zip(sides, logps, strict=True)
    ]


def allowed(difference: Difference, precision: str, noise: float | None) -> float:
    """Most that one sequence may differ, in nats; `noise` as `probe_noise` gives it, None for the same pass."""
    if precision == "float32":
        return FLOAT32_NATS * max(abs(difference.reference), difference.tokens)
    if noise is None:
        return SAME_PASS_NATS
    return min(MOST_NATS, (PROBE_FACTOR * noise + ROUNDING) * math.sqrt(difference.tokens))


def probe_noise(pairs: Sequence[PolicyPair], score: Score, elsewhere: Score) -> float:
    """Largest difference between two passes over these rows, in nats a square root of a token."""
    sequences = [sequence for pair in pairs for sequence in (pair.chosen, pair.rejected)]
    return max(
        abs(one - other) / math.sqrt(len(sequence.completion_ids))
        for one, other, sequence in zip(score(sequences), elsewhere(sequences), sequences, strict=True)
    )


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """(mean, its standard error); the error is infinite for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.inf
    return mean, math.sqrt(math.fsum((each - mean) ** 2 for each in values) / (len(values) - 1) / len(values))


def _logps_of(found: Sequence[Difference]) -> PairLogps:
    """Pairs whose reference stands at 0, so that the policy's log-probs are the differences."""
    import torch

    nats = torch.tensor([each.nats for each in found], dtype=torch.float64).view(-1, 2)
    tokens = torch.tensor([each.tokens for each in found], dtype=torch.float64).view(-1, 2)
    zero = torch.zeros(len(nats), dtype=torch.float64)
    return PairLogps(nats[:, 0], nats[:, 1], zero, zero, tokens[:, 0], tokens[:, 1])


def _named(difference: Difference) -> str:
    return (
        f"row {difference.row_id} ({difference.side}, {difference.tokens} tokens): the policy's log-prob differs from"
        f" the cached reference's by {difference.nats:+.4f} nat"
    )
