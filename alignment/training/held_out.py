"""What a policy does on held-out rows: loss, accuracy and margin as exact means over pairs, or over completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyarrow.compute as pc

from alignment.errors import BadInput
from alignment.logprobs.keys import sequence_key
from alignment.methods import LabelledLogps, Method, PairLogps, method_of
from alignment.methods.method import column
from alignment.recipe.training import Dpo
from alignment.training.arguments import rounded
from alignment.training.held_out_pairs import HeldOutCompletion, HeldOutPair, HeldOutRow, partner_ratios
from alignment.training.pairs import PolicyPair, PolicyRow, Score, score_rows, sequences_of
from alignment.training.pairs import with_reference as with_logps
from alignment.training.row_files import PolicyPairs

SIDES = ("chosen", "rejected")
MOST_PAIRS = 512
"""Enough to tell an accuracy to within four points, and seconds of work; the lowest row ids are a sample by hash."""


def measured(pairs: PolicyPairs) -> list[PolicyRow]:
    """The held-out rows that are measured: all, or the `MOST_PAIRS` of lowest row id."""
    return lowest(pairs, MOST_PAIRS)


def lowest(pairs: PolicyPairs, most: int) -> list[PolicyRow]:
    """The rows of lowest row id, at most `most` of them: a sample by hash."""
    places = pc.sort_indices(pairs.row_ids)[:most] if len(pairs) else []
    return [pairs[place.as_py()] for place in places]


def with_reference(rows: Sequence[PolicyRow], method: Method, score: Score) -> list[PolicyRow]:
    """The rows with log-probs by `score`, which is that of the checkpoint that training starts from."""
    return [with_logps(row, logps) for row, logps in zip(rows, score_rows(method, rows, score), strict=True)]


def measure(rows: Sequence[PolicyRow], method: Method, fingerprint: str, score: Score) -> list[HeldOutRow]:
    """Each row under the policy; `fingerprint` is the reference's."""
    measured: list[HeldOutRow] = []
    for row, logps in zip(rows, score_rows(method, rows, score), strict=True):
        cells: dict[str, Any] = {"row_id": row.row_id, "prompt_id": row.prompt_id}
        for name, sequence in sequences_of(method, row).items():
            logp = logps[name]
            if not math.isfinite(logp):
                raise BadInput(
                    f"training diverged: the policy's log-prob of held-out row {row.row_id} ({name}) is {logp};"
                    " lower the learning rate",
                    field="learning_rate",
                )
            cells |= {f"{name}_logp": logp, f"ref_{name}_logp": getattr(row, f"ref_{name}_logp")}
            if not name.endswith("_first"):
                cells[f"{name}_key"] = sequence_key(fingerprint, sequence).hex()
                cells[f"{name}_tokens"] = sequence.counted
        if isinstance(row, PolicyPair):
            measured.append(HeldOutPair(**cells))
        else:
            alone: dict[str, Any] = dict.fromkeys(("partner_key", "partner_logp", "ref_partner_logp", "partner_tokens"))
            measured.append(HeldOutCompletion(label=row.label, **(alone | cells)))
    return measured


def means(rows: Sequence[HeldOutRow], settings: Dpo) -> dict[str, Any]:
    """{pairs, loss, accuracy, margin}, six significant digits; only {pairs: 0} where nothing was held out.

    `margin` is that of the method's rewards. A pair counts to accuracy when its chosen reward is the larger, which with
    a reference means that the policy moved towards the chosen side; a tie counts half. Added terms are not in the loss.

    Of completions with a label {rows, loss, accuracy, margin, chosen_reward, rejected_reward, kl}: one counts to
    accuracy when its log-ratio lies on its label's side of the divergence `kl` (z₀, of the rows measured here), and
    `margin` is the mean reward of those with a thumb up minus that of the others, if there are both.
    """
    method = method_of(settings)
    counted = "pairs" if method.data == "paired" else "rows"
    if not rows:
        return {counted: 0}
    logps = logps_of(rows)
    constants = method.prepare(column(partner_ratios(rows))) if method.coupled else None
    chosen, rejected = (reward.tolist() for reward in method.rewards(logps))
    found = {} if method.on_policy else {"loss": mean(method.loss(logps, constants).tolist())}
    found["accuracy"] = mean(method.right(logps, constants).tolist())
    if method.data == "paired":
        found["margin"] = mean([high - low for high, low in zip(chosen, rejected, strict=True)])
    else:
        sides = {"chosen_reward": chosen, "rejected_reward": rejected}
        found |= {name: mean(rewards) for name, rewards in sides.items() if rewards}
        if chosen and rejected:
            found["margin"] = found["chosen_reward"] - found["rejected_reward"]
    return {counted: len(rows), **{name: rounded(value) for name, value in (found | method.shown(constants)).items()}}


def mean(values: Sequence[float]) -> float:
    """Exact, but for the last rounding."""
    return math.fsum(values) / len(values)


def logps_of(rows: Sequence[HeldOutRow]) -> Any:
    """The rows' log-probs as float64 tensors [rows]: `PairLogps` of pairs, `LabelledLogps` of completions."""
    import torch

    def values(name: str) -> torch.Tensor:
        return column(getattr(row, name) for row in rows)

    if completions := [row for row in rows if isinstance(row, HeldOutCompletion)]:
        return LabelledLogps(
            policy_completion=values("completion_logp"),
            ref_completion=values("ref_completion_logp"),
            completion_tokens=values("completion_tokens"),
            desirable=torch.tensor([row.label for row in completions], dtype=torch.bool),
        )
    firsts = {}
    if isinstance(rows[0], HeldOutPair) and rows[0].chosen_first_logp is not None:
        firsts = {
            f"{whose}_{side}_first": values(f"{prefix}{side}_first_logp")
            for whose, prefix in (("policy", ""), ("ref", "ref_"))
            for side in SIDES
        }
    return PairLogps(
        policy_chosen=values("chosen_logp"),
        policy_rejected=values("rejected_logp"),
        ref_chosen=values("ref_chosen_logp"),
        ref_rejected=values("ref_rejected_logp"),
        chosen_tokens=values("chosen_tokens"),
        rejected_tokens=values("rejected_tokens"),
        **firsts,
    )
