"""When the untrained policy is held to be its reference, and when not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from alignment.data.tokens import TokenSequence
from alignment.recipe import Dpo
from alignment.training.agreement import Difference, Disagreement, allowed, probe_noise, require_agreement
from alignment.training.pairs import PolicyPair

TOKENS = 100
ROWS = [
    PolicyPair(f"row{n}", TokenSequence((0, n), (1,) * TOKENS), TokenSequence((0, n), (2,) * TOKENS), -90.0, -95.0, "p")
    for n in range(6)
]
FLOAT32, BFLOAT16 = Dpo(precision="float32", beta=0.1), Dpo(precision="bfloat16")


def scorer(off: Callable[[int, str], float] = lambda row, side: 0.0) -> Any:
    """Gives each side of each row its reference's value, and what `off` says beside."""

    def score(sequences: Sequence[TokenSequence]) -> list[float]:
        sides = [(each.prompt_ids[1], "chosen" if each.completion_ids[0] == 1 else "rejected") for each in sequences]
        return [(-90.0 if side == "chosen" else -95.0) + off(row, side) for row, side in sides]

    return score


def one(row: int, nats: float) -> Any:
    return scorer(lambda at, side: nats if (at, side) == (row, "rejected") else 0.0)


def alternating(nats: float) -> Any:
    return scorer(lambda row, side: nats if (row + (side == "chosen")) % 2 else -nats)


def test_float32_is_held_to_every_sequence() -> None:
    assert require_agreement(ROWS, FLOAT32, scorer())["worst_nats"] == 0.0
    require_agreement(ROWS, FLOAT32, alternating(0.0099))  # of 100 tokens
    with pytest.raises(Disagreement, match=r"row row3 \(rejected, 100 tokens\).*\+0\.0110 nat, .* explains 0\.0100"):
        require_agreement(ROWS, FLOAT32, one(3, 0.011))


@pytest.mark.parametrize(("settings", "nats"), [(FLOAT32, 0.009), (BFLOAT16, 0.018)])
def test_a_shift_of_both_sides_is_seen_though_no_margin_moves(settings: Dpo, nats: float) -> None:
    """Each sequence within its bound, the loss exactly ln 2, and still another model."""
    with pytest.raises(Disagreement, match=rf"by \+{nats:.5f} nat a sequence on average, inf standard errors"):
        require_agreement(ROWS, settings, scorer(lambda row, side: nats))
    require_agreement(ROWS, settings, scorer(lambda row, side: nats / 20))  # rounding, however regular


@pytest.mark.parametrize(("beta", "nats"), [(0.1, 50.0), (0.01, 5.0)])
def test_a_gross_shift_is_refused_at_any_beta(beta: float, nats: float) -> None:
    """+50 nat on both sides leave the loss at ln 2; 5 nats at beta 0.01 move it by 6e-4."""
    for off in (scorer(lambda row, side: nats), alternating(nats)):
        with pytest.raises(Disagreement, match="explains"):
            require_agreement(ROWS, Dpo(precision="float32", beta=beta), off)


def test_16_bits_on_the_same_device_are_held_to_two_hundredths_of_a_nat() -> None:
    require_agreement(ROWS, BFLOAT16, alternating(0.019))
    with pytest.raises(Disagreement, match=r"row row3 .*explains 0\.0200"):
        require_agreement(ROWS, BFLOAT16, one(3, 0.021))


def test_16_bits_of_another_device_are_held_to_what_another_pass_shows_here() -> None:
    limit = (4 * 0.01 + 2**-8) * 10
    for nats, agrees in ((0.9, True), (1.1, False)):
        score = alternating(nats * limit)
        elsewhere = lambda sequences, score=score: [logp + 0.1 for logp in score(sequences)]  # noqa: E731
        if agrees:  # two passes differ by 0.01 nat a square root of a token
            require_agreement(ROWS, BFLOAT16, score, elsewhere)
        else:
            with pytest.raises(Disagreement, match=rf"explains {limit:.4f}"):
                require_agreement(ROWS, BFLOAT16, score, elsewhere)


def test_no_noise_excuses_more_than_a_nat() -> None:
    long = Difference("row", "chosen", 10_000, -9000.0, 0.0)
    assert allowed(long, "bfloat16", 10.0) == 1.0
    with pytest.raises(Disagreement, match=r"explains 1\.0000"):
        require_agreement(ROWS, BFLOAT16, one(1, 1.1), scorer(lambda row, side: 6.0))


def test_a_log_prob_that_is_no_number_never_agrees() -> None:
    for settings in (FLOAT32, BFLOAT16):
        with pytest.raises(Disagreement, match="row row2"):
            require_agreement(ROWS, settings, one(2, math.nan))


def test_the_probe_sees_the_largest_difference_between_two_passes() -> None:
    assert probe_noise(
        [side for row in ROWS for side in (row.chosen, row.rejected)], scorer(), one(4, 0.2)
    ) == pytest.approx(0.02)
