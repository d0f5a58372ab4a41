"""What a policy does on held-out pairs: loss, accuracy and margin as exact means over pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignment.recipe import Dpo
from alignment.training.agreement import Score, differences
from alignment.training.history import rounded
from alignment.training.losses import preference_loss
from alignment.training.pairs import PolicyPair

MOST_PAIRS = 512


def measured(pairs: Sequence[PolicyPair]) -> list[PolicyPair]:
    """The held-out pairs that are measured: all, or the 512 of lowest row id, longest first."""
    return sorted(sorted(pairs, key=lambda pair: pair.row_id)[:MOST_PAIRS], key=lambda pair: -pair.longest)


def measure(pairs: Sequence[PolicyPair], settings: Dpo, score: Score, batch_rows: int) -> dict[str, float]:
    """Sums over pairs: {pairs, loss, accuracy, margin}. `margin` is the reward margin, β times the log-ratios'.

    A pair counts to accuracy when the policy moved towards its chosen side, relative to the reference.
    The SFT term is not in the loss. Divide with `means`.
    """
    sums = {"pairs": float(len(pairs)), "loss": 0.0, "accuracy": 0.0, "margin": 0.0}
    for chosen, rejected in differences(pairs, score, batch_rows):
        sums["loss"] += preference_loss(settings, chosen.nats, rejected.nats, chosen.tokens, rejected.tokens)
        sums["accuracy"] += float(chosen.nats > rejected.nats)
        sums["margin"] += settings.beta * (chosen.nats - rejected.nats)
    return sums


def means(parts: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The means of several processes' sums, six significant digits; only {pairs: 0} where nothing was held out."""
    pairs = int(sum(part["pairs"] for part in parts))
    names = ("loss", "accuracy", "margin") if pairs else ()
    return {"pairs": pairs, **{name: rounded(sum(part[name] for part in parts) / pairs) for name in names}}
