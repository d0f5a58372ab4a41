"""Reference and policy agree: before a fresh run's first step the policy is its reference, and must score like it.

What would be trained otherwise is a policy against log-probs of other tokens, another dtype or another model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignment.methods import PairLogps, method_of
from alignment.recipe import Dpo
from alignment.training.pairs import PolicyPair

FLOAT32_LOSS = 1e-3
PROBE_ROWS = 8
PROBE_FACTOR = 4.0
NATS_A_TOKEN = 0.05
ROUNDING = 2.0**-8
"""bfloat16's step relative to 1: noise below this a token (added like independent errors) shows nothing."""
FEW_TOKENS = 4
"""A completion this short is bound like one of this many tokens: one rounded logit moves it most."""

Ids = Sequence[int]
Score = Callable[[Sequence[tuple[Ids, Ids]]], list[float]]
"""Log-probs in nats of (prompt ids, completion ids), all in one batch."""


class Disagreement(RuntimeError):
    """The policy's first log-probs are not its reference's."""


@dataclass(frozen=True)
class Difference:
    """Policy minus reference for one sequence, in nats."""

    row_id: str
    side: str
    tokens: int
    nats: float


def require_agreement(pairs: Sequence[PolicyPair], settings: Dpo, score: Score, batch_rows: int) -> dict[str, float]:
    """Raises `Disagreement`, naming the worst row, unless the untrained policy scores `pairs` as its reference did.

    float32: the loss must be what theory says of a policy that is its reference, within 1e-3. Lower
    precision: each sequence within four times what these rows show between batched and alone, and within
    0.05 nat a token. Returns {loss, expected_loss, worst_nats} for the run's summary.
    """
    if not pairs:
        return {}
    found = differences(pairs, score, batch_rows)
    method = method_of(settings)
    expected = method.first_loss()
    assert expected is not None  # every method here refers to a reference that the policy starts as
    loss = float(method.loss(_logps_of(found)).mean())
    sides = [difference for both in found for difference in both]
    worst = max(sides, key=lambda difference: abs(difference.nats))
    if settings.precision == "float32":
        if not abs(loss - expected) <= FLOAT32_LOSS:
            raise Disagreement(f"the first loss would be {loss:.6f}, theory says {expected:.6f}; {_named(worst)}")
    else:
        noise = probe_noise(pairs[:PROBE_ROWS], score)
        for difference in sides:
            if not abs(difference.nats) <= allowed(difference.tokens, noise):
                limit = allowed(difference.tokens, noise)
                raise Disagreement(f"{_named(difference)}, where this device's rounding explains {limit:.4f}")
    return {"loss": loss, "expected_loss": expected, "worst_nats": abs(worst.nats)}


def differences(pairs: Sequence[PolicyPair], score: Score, batch_rows: int) -> list[tuple[Difference, Difference]]:
    """(chosen, rejected) differences of each pair, scored `batch_rows` pairs at a time."""
    found = []
    for start in range(0, len(pairs), batch_rows):
        part = pairs[start : start + batch_rows]
        logps = score([_ids(pair, side) for side in ("chosen", "rejected") for pair in part])
        for place, pair in enumerate(part):
            chosen, rejected = logps[place], logps[place + len(part)]
            found.append(
                (
                    Difference(pair.row_id, "chosen", len(pair.chosen.completion_ids), chosen - pair.chosen_logp),
                    Difference(
                        pair.row_id, "rejected", len(pair.rejected.completion_ids), rejected - pair.rejected_logp
                    ),
                )
            )
    return found


def probe_noise(pairs: Sequence[PolicyPair], score: Score) -> float:
    """Largest difference between batched and alone over these rows, in nats a square root of a token."""
    sequences = [_ids(pair, side) for pair in pairs for side in ("chosen", "rejected")]
    together = score(sequences)
    alone = [score([sequence])[0] for sequence in sequences]
    return max(
        abs(one - other) / math.sqrt(len(completion))
        for one, other, (_, completion) in zip(together, alone, sequences, strict=True)
    )


def allowed(tokens: int, noise: float) -> float:
    """Most a sequence of `tokens` completion tokens may differ, in nats; `noise` as `probe_noise` gives it."""
    by_probe = PROBE_FACTOR * max(noise, ROUNDING) * math.sqrt(tokens)
    return min(by_probe, NATS_A_TOKEN * max(tokens, FEW_TOKENS))


def _logps_of(found: Sequence[tuple[Difference, Difference]]) -> PairLogps:
    """Pairs whose reference stands at 0, so that the policy's log-probs are the differences."""
    import torch

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    zero = column([0.0] * len(found))
    return PairLogps(
        policy_chosen=column([chosen.nats for chosen, _ in found]),
        policy_rejected=column([rejected.nats for _, rejected in found]),
        ref_chosen=zero,
        ref_rejected=zero,
        chosen_tokens=column([chosen.tokens for chosen, _ in found]),
        rejected_tokens=column([rejected.tokens for _, rejected in found]),
    )


def _ids(pair: PolicyPair, side: str) -> tuple[Ids, Ids]:
    sequence = pair.chosen if side == "chosen" else pair.rejected
    return sequence.prompt_ids, sequence.completion_ids


def _named(difference: Difference) -> str:
    return (
        f"row {difference.row_id} ({difference.side}, {difference.tokens} tokens): the policy's log-prob differs from"
        f" the cached reference's by {difference.nats:+.4f} nat"
    )
