"""When the untrained policy is held to be its reference, and when not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from alignment.data.tokens import TokenSequence
from alignment.recipe import Dpo
from alignment.training.agreement import Disagreement, allowed, probe_noise, require_agreement
from alignment.training.pairs import PolicyPair

TOKENS = 100
ROWS = [
    PolicyPair(f"row{n}", TokenSequence((0, n), (1,) * TOKENS), TokenSequence((0, n), (2,) * TOKENS), -90.0, -95.0, "p")
    for n in range(6)
]


def scorer(noise: float, row: int = -1, off: float = 0.0) -> Any:
    """Gives each row its reference's value: `noise` off in any batch of several, and one row's `off` beside."""

    def score(sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        return [
            (-90.0 if completion[0] == 1 else -95.0)
            + (noise if len(sequences) > 1 else 0.0)
            + (off if prompt[1] == row and completion[0] == 2 else 0.0)
            for prompt, completion in sequences
        ]

    return score


def test_float32_is_held_to_the_loss() -> None:
    settings = Dpo(precision="float32", beta=0.1)
    assert require_agreement(ROWS, settings, scorer(0.0), 2)["worst_nats"] == 0.0
    require_agreement(ROWS, settings, scorer(0.0, row=3, off=0.1), 2)  # 0.1 nat in one of six rows: 8e-4 in the loss
    with pytest.raises(Disagreement, match=r"theory says 0\.693147; row row3 \(rejected"):
        require_agreement(ROWS, settings, scorer(0.0, row=3, off=0.5), 2)


def test_lower_precision_is_held_to_what_this_device_shows() -> None:
    settings = Dpo(precision="bfloat16")
    require_agreement(ROWS, settings, scorer(0.3, row=3, off=0.8), 2)
    with pytest.raises(Disagreement, match=r"row row3 \(rejected, 100 tokens\).*\+1\.5000 nat"):
        require_agreement(ROWS, settings, scorer(0.3, row=3, off=1.2), 2)


def test_no_noise_excuses_more_than_a_twentieth_of_a_nat_a_token() -> None:
    with pytest.raises(Disagreement, match=r"explains 5\.0000"):
        require_agreement(ROWS, Dpo(precision="bfloat16"), scorer(6.0), 2)
    assert allowed(TOKENS, 10.0) == pytest.approx(5.0)


def test_a_log_prob_that_is_no_number_never_agrees() -> None:
    for precision in ("float32", "bfloat16"):
        with pytest.raises(Disagreement):
            require_agreement(ROWS, Dpo(precision=precision), scorer(0.0, row=2, off=float("nan")), 2)


def test_the_probe_sees_the_largest_difference_between_batched_and_alone() -> None:
    assert probe_noise(ROWS, scorer(0.2)) == pytest.approx(0.02)
