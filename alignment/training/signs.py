"""The signs of a preference training that goes wrong, read from its records; and when a recipe's `stop` ends it.

All is pure: histories in, sentences out. A record has `step` and what was logged there
(alignment/training/arguments.py); a look at the held-out pairs logs `held_out_accuracy`, `held_out_loss`,
`held_out_margin` and `held_out_median_margin`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from alignment.methods import method_of
from alignment.recipe.training import Dpo, Stop

Record = Mapping[str, Any]

NOT_LEARNED = 0.55
SEPARABLE = 0.80
"""Held-out accuracies of real preferences lie between. Below them the pairs were not learned, which is trouble; above
them the pairs are easy to tell apart, which is only worth knowing: nobody trained on them."""
MARGIN = 5.0
"""Median reward margin, β · (Δchosen − Δrejected), above which a policy is over-fitted: 1 − σ(5) is under 1 %."""
HARDLY = 0.05
"""Reward margin under which a policy is nearly its start: σ(0.05) is 51 %, and the loss 0.67 where it began at 0.69."""
SHARED = 0.1
"""Share of the chosen reward's rise from which on a rise of the rejected one says something."""
FALL = 0.02
"""Fall of the held-out accuracy up to which it is level, however many rows were measured."""
FEWEST = 8
"""Records that a quarter of a history needs two of."""
HIGHER_IS_BETTER = {"accuracy": True, "margin": True, "loss": False}


@dataclass(frozen=True)
class Sign:
    """A sentence; `bad` tells a sign of trouble from one that is usual, and only worth knowing."""

    text: str
    bad: bool


def signs(
    history: Sequence[Record], held_out: Mapping[str, float | None], settings: Dpo, rows: int | None = None
) -> list[Sign]:
    """What the records of a finished training say, the worst first; `held_out` is measured on the saved policy, and
    `rows` are how many it was measured on."""
    method = method_of(settings)
    if method.on_policy:  # it never saw a pair, so that these say nothing of its training
        return []
    swapped = "chosen and rejected are swapped" if method.data == "paired" else "thumbs up and down are swapped"
    found = [*_accuracy(held_out, swapped), *_margin(history, held_out), *_falling(history, rows)]
    if method.needs_reference:  # without one a reward is no change of a log-prob
        found += _hardly(held_out)
        found += _rewards(history, "sft_weight" if "sft_weight" in method.settings() else "sft_rows_fraction")
    return sorted(found, key=lambda sign: not sign.bad)


def _accuracy(held_out: Mapping[str, float | None], swapped: str) -> list[Sign]:
    accuracy = held_out.get("accuracy")
    if accuracy is None:
        return []
    share = f"{accuracy:.1%}".replace("%", " %")
    if accuracy <= NOT_LEARNED:
        text = f"held-out accuracy is {share}: the preferences were not learned, or {swapped}"
        return [Sign(text, True)]
    if accuracy > SEPARABLE:
        return [Sign(f"held-out accuracy is {share}, above 80 %: the pairs are easily told apart", False)]
    return []


def _hardly(held_out: Mapping[str, float | None]) -> list[Sign]:
    margin = held_out.get("margin")
    if margin is None or not 0 <= margin < HARDLY:
        return []
    text = (
        f"the held-out reward margin is {margin:.2g}: the policy is nearly where it began; more steps or a higher rate"
    )
    return [Sign(f"{text} would move it", False)]


def _margin(history: Sequence[Record], held_out: Mapping[str, float | None]) -> list[Sign]:
    found = []
    median = held_out.get("median_margin")
    margin = held_out.get("margin") if median is None else median
    if margin is not None and margin > MARGIN:
        cure = "fewer epochs, a lower rate or ipo"
        text = f"the held-out reward margin is {margin:.3g}, above {MARGIN:g}: over-fitted; {cure}"
        found.append(Sign(text, True))
    quarters = quarter_means(history, "margin")
    if quarters and quarters[3] > 1.0 and quarters[3] - quarters[2] >= max(quarters[1] - quarters[0], 0.0):
        text = (
            f"the reward margin has no plateau: it rose by {quarters[3] - quarters[2]:.2g} in the last quarter and by"
            f" {quarters[1] - quarters[0]:.2g} in the second"
        )
        found.append(Sign(text, True))
    return found


def _rewards(history: Sequence[Record], cure: str) -> list[Sign]:
    """`cure` is the setting of the method that keeps what SFT taught."""
    chosen, rejected = quarter_means(history, "chosen_reward"), quarter_means(history, "rejected_reward")
    if not chosen or not rejected:
        return []
    rise, with_it = chosen[3] - chosen[0], rejected[3] - rejected[0]
    if rejected[3] > 0 and rise > 0 and with_it > SHARED * rise:
        text = (
            f"the rejected reward rises with the chosen one ({rejected[3]:+.2g} and {chosen[3]:+.2g}): the policy"
            " learns what both sides share"
        )
        return [Sign(text, True)]
    if chosen[3] < min(chosen[0], 0.0):
        text = f"the log-probs of chosen completions fall (reward {chosen[3]:+.2g}); {cure} keeps them up"
        return [Sign(text, False)]
    return []


def _falling(history: Sequence[Record], rows: int | None) -> list[Sign]:
    """A fall that is no noise: of many looks at a level course one is the best by luck, and later ones are lower."""
    looks = [record["held_out_accuracy"] for record in history if record.get("held_out_accuracy") is not None]
    since, best = since_best(looks, True)
    if since < 2 or best is None or best - looks[-1] <= max(FALL, _noise((best + looks[-1]) / 2, rows)):
        return []
    return [Sign(f"held-out accuracy fell from {best:.3g} to {looks[-1]:.3g} over the last {since} looks", True)]


def _noise(share: float, rows: int | None) -> float:
    """Two standard errors of the difference of two shares of `rows` rows each; 0 where their number is not known."""
    return 2 * math.sqrt(2 * share * (1 - share) / rows) if rows else 0.0


def quarter_means(history: Sequence[Record], name: str) -> list[float]:
    """The mean of a record's number in each quarter of the history; empty if there are too few records to tell."""
    values = [float(record[name]) for record in history if record.get(name) is not None]
    if len(values) < FEWEST:
        return []
    ends = [round(len(values) * part / 4) for part in range(5)]
    return [math.fsum(values[start:end]) / (end - start) for start, end in pairwise(ends)]


def since_best(values: Sequence[float], higher: bool) -> tuple[int, float | None]:
    """(values after the best one, the best one); of equal values the first is the best."""
    if not values:
        return 0, None
    best = (max if higher else min)(values)
    return len(values) - 1 - list(values).index(best), best


def stop_reason(looks: Sequence[Record], stop: Stop) -> str | None:
    """Why training ends after the last of these looks at the held-out pairs; None if it goes on."""
    last = looks[-1]
    margin, kl = last.get("held_out_median_margin"), last.get("held_out_kl")
    if stop.median_margin is not None and margin is not None and margin > stop.median_margin:
        return f"the median reward margin of held-out pairs is {margin:.4g}, above {stop.median_margin:g}"
    if stop.kl is not None and kl is not None and kl > stop.kl:
        return f"KL(policy ‖ start) is {kl:.4g} nats a response, above {stop.kl:g}"
    if stop.patience is not None:
        values = [float(look[f"held_out_{stop.metric}"]) for look in looks]
        since, best = since_best(values, HIGHER_IS_BETTER[stop.metric])
        if since >= stop.patience:
            return f"{since} looks without a better held-out {stop.metric} than {best:.4g}, the last {values[-1]:.4g}"
    return None
