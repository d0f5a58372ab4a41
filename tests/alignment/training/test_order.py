"""The order of training."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from alignment.training.arguments import longer_first, training_order

EARLIER = [22, 27, 40, 2, 1, 16, 11, 4]
IDS = [f"{number * 7919 % 1000:03d}" for number in range(50)]
LENGTHS = [number * 31 % 17 for number in range(50)]


def ordered(ids: Any = IDS, digest: str = "d", seed: int = 1, epochs: float = 1.0) -> list[int]:
    return list(training_order(ids, digest, seed, epochs).tolist())


def test_each_epoch_holds_every_row_once_and_another_order() -> None:
    order = ordered(epochs=2.0)
    assert Counter(order[:50]) == Counter(order[50:]) == Counter(range(50))
    assert order[:50] != order[50:]


def test_the_order_in_which_rows_are_given_plays_no_part() -> None:
    shuffled = [IDS[place] for place in sorted(range(50), key=lambda index: LENGTHS[index])]
    again = [shuffled[place] for place in ordered(pa.chunked_array([shuffled[:7], shuffled[7:]]), epochs=1.3)]
    assert again == [IDS[place] for place in ordered(epochs=1.3)]


def test_seed_and_digest_decide_and_part_of_an_epoch_is_its_beginning() -> None:
    whole = ordered()
    assert whole != ordered(seed=2)
    assert whole != ordered(digest="e")
    assert whole[:25] == ordered(epochs=0.5)
    assert len(ordered(epochs=0.001)) == 1


def test_a_run_that_ends_early_sees_the_beginning_of_the_whole_order() -> None:
    assert training_order(IDS, "d", 1, 2.0, 60).tolist() == ordered(epochs=2.0)[:60]
    assert training_order(IDS, "d", 1, 1.0, 60).tolist() == ordered()


def test_the_order_is_that_of_earlier_versions() -> None:
    assert ordered()[:8] == EARLIER


def test_a_step_sees_the_same_rows_longest_first() -> None:
    plain = training_order(IDS, "d", 1, 1.0)
    by_length = longer_first(plain, LENGTHS, 8).tolist()
    for start in range(0, 50, 8):
        step = by_length[start : start + 8]
        assert set(step) == set(plain[start : start + 8].tolist())
        assert [LENGTHS[i] for i in step] == sorted((LENGTHS[i] for i in step), reverse=True)
