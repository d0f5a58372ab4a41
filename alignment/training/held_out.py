"""What a policy does on held-out pairs: loss, accuracy and margin as exact means over pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc

from alignment.errors import BadInput
from alignment.logprobs.keys import sequence_key
from alignment.methods import PairLogps, method_of
from alignment.recipe import Dpo
from alignment.training.agreement import Score
from alignment.training.arguments import rounded
from alignment.training.held_out_pairs import HeldOutPair, prefers
from alignment.training.pairs import PolicyPair, PolicyPairs

SIDES = ("chosen", "rejected")
MOST_PAIRS = 512
"""Enough to tell an accuracy to within four points, and seconds of work; the lowest row ids are a sample by hash."""


def measured(pairs: PolicyPairs) -> list[PolicyPair]:
    """The held-out pairs that are measured: all, or the `MOST_PAIRS` of lowest row id."""
    return lowest(pairs, MOST_PAIRS)


def lowest(pairs: PolicyPairs, most: int) -> list[PolicyPair]:
    """The pairs of lowest row id, at most `most` of them: a sample by hash."""
    places = pc.sort_indices(pairs.row_ids)[:most] if len(pairs) else []
    return [pairs[place.as_py()] for place in places]


def with_reference(pairs: Sequence[PolicyPair], score: Score) -> list[PolicyPair]:
    """The pairs with log-probs by `score`, which is that of the checkpoint that training starts from."""
    logps = score([sequence for pair in pairs for sequence in (pair.chosen, pair.rejected)])
    return [
        replace(pair, ref_chosen_logp=chosen, ref_rejected_logp=rejected)
        for pair, chosen, rejected in zip(pairs, logps[0::2], logps[1::2], strict=True)
    ]


def measure(pairs: Sequence[PolicyPair], fingerprint: str, score: Score) -> list[HeldOutPair]:
    """Each pair under the policy; `fingerprint` is the reference's."""
    logps = score([sequence for pair in pairs for sequence in (pair.chosen, pair.rejected)])
    for place, logp in enumerate(logps):
        if not math.isfinite(logp):
            side, pair = SIDES[place % 2], pairs[place // 2]
            raise BadInput(
                f"training diverged: the policy's log-prob of held-out row {pair.row_id} ({side}) is {logp};"
                " lower the learning rate",
                field="learning_rate",
            )
    return [
        HeldOutPair(
            row_id=pair.row_id,
            prompt_id=pair.prompt_id,
            chosen_key=sequence_key(fingerprint, pair.chosen).hex(),
            rejected_key=sequence_key(fingerprint, pair.rejected).hex(),
            chosen_logp=chosen,
            rejected_logp=rejected,
            ref_chosen_logp=pair.ref_chosen_logp,
            ref_rejected_logp=pair.ref_rejected_logp,
            chosen_tokens=len(pair.chosen.completion_ids),
            rejected_tokens=len(pair.rejected.completion_ids),
        )
        for pair, chosen, rejected in zip(pairs, logps[0::2], logps[1::2], strict=True)
    ]


def means(pairs: Sequence[HeldOutPair], settings: Dpo) -> dict[str, Any]:
    """{pairs, loss, accuracy, margin}, six significant digits; only {pairs: 0} where nothing was held out.

    `margin` is that of the method's rewards. A pair counts to accuracy when its chosen reward is the larger, which with
    a reference means that the policy moved towards the chosen side; a tie counts half. Added terms are not in the loss.
    """
    if not pairs:
        return {"pairs": 0}
    method, logps = method_of(settings), logps_of(pairs)
    chosen, rejected = (reward.tolist() for reward in method.rewards(logps))
    columns = {
        "loss": method.loss(logps).tolist(),
        "accuracy": [prefers(*rewards) for rewards in zip(chosen, rejected, strict=True)],
        "margin": [high - low for high, low in zip(chosen, rejected, strict=True)],
    }
    return {"pairs": len(pairs), **{name: rounded(math.fsum(of) / len(pairs)) for name, of in columns.items()}}


def logps_of(pairs: Sequence[HeldOutPair]) -> PairLogps:
    """The pairs' log-probs as float64 tensors [pairs]."""
    import torch

    def column(name: str) -> torch.Tensor:
        return torch.tensor([getattr(pair, name) for pair in pairs], dtype=torch.float64)

    return PairLogps(
        policy_chosen=column("chosen_logp"),
        policy_rejected=column("rejected_logp"),
        ref_chosen=column("ref_chosen_logp"),
        ref_rejected=column("ref_rejected_logp"),
        chosen_tokens=column("chosen_tokens"),
        rejected_tokens=column("rejected_tokens"),
    )
