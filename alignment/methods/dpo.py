"""Preference losses as pure functions of log-ratios: what the held-out rows are measured with, and what step 1 must be.

A log-ratio is log π(y|x) − log π_ref(y|x), summed over the completion's tokens, in nats.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignment.recipe import Dpo


def preference_loss(
    settings: Dpo, chosen_ratio: float, rejected_ratio: float, chosen_tokens: int = 1, rejected_tokens: int = 1
) -> float:
    """The loss of one pair, without the SFT term. Token counts matter to `ipo` and `sigmoid_norm` only.

    sigmoid: Rafailov et al. 2023 (eq. 7). hinge: Zhao et al. 2023 (SLiC-HF). ipo: Azar et al. 2023 (eq. 17),
    a token. robust: Chowdhury et al. 2024 (rDPO). sigmoid_norm: the DPO loss of mean log-ratios.
    """
    beta, margin = settings.beta, chosen_ratio - rejected_ratio
    per_token = chosen_ratio / chosen_tokens - rejected_ratio / rejected_tokens
    match settings.loss:
        case "sigmoid":
            return minus_log_sigmoid(beta * margin)
        case "hinge":
            return max(0.0, 1.0 - beta * margin)
        case "ipo":
            return (per_token - 1 / (2 * beta)) ** 2
        case "robust":
            flips = settings.label_smoothing
            clean, flipped = minus_log_sigmoid(beta * margin), minus_log_sigmoid(-beta * margin)
            return ((1 - flips) * clean - flips * flipped) / (1 - 2 * flips)
        case "sigmoid_norm":
            return minus_log_sigmoid(beta * per_token)


def first_loss(settings: Dpo) -> float:
    """The loss of a policy that is its reference, whatever the rows: ln 2 for `sigmoid`. Without the SFT term."""
    return preference_loss(settings, 0.0, 0.0)


def minus_log_sigmoid(x: float) -> float:
    """log(1 + exp(−x)), without overflow."""
    return math.log1p(math.exp(-abs(x))) + max(0.0, -x)


def trl_loss(settings: Dpo) -> tuple[list[str], list[float]]:
    """TRL's `loss_type` and `loss_weights`."""
    if settings.sft_weight:
        return [settings.loss, "sft"], [1.0, settings.sft_weight]
    return [settings.loss], [1.0]
