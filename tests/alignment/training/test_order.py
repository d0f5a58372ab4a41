"""The order of training."""

from __future__ import annotations

from collections import Counter

from alignment.training.arguments import training_order

IDS = [f"{number * 7919 % 1000:03d}" for number in range(50)]
LENGTHS = [number * 31 % 17 for number in range(50)]


def named(order: list[int], ids: list[str] = IDS) -> list[str]:
    return [ids[index] for index in order]


def test_each_epoch_holds_every_row_once_and_another_order() -> None:
    order = training_order(IDS, LENGTHS, "d", 1, 2.0, 5)
    assert Counter(order[:50]) == Counter(order[50:]) == Counter(range(50))
    assert order[:50] != order[50:]


def test_the_order_in_which_rows_are_given_plays_no_part() -> None:
    shuffled = sorted(range(50), key=lambda index: LENGTHS[index])
    again = training_order([IDS[i] for i in shuffled], [LENGTHS[i] for i in shuffled], "d", 1, 1.3, 4)
    assert named(again, [IDS[i] for i in shuffled]) == named(training_order(IDS, LENGTHS, "d", 1, 1.3, 4))


def test_seed_and_digest_decide_and_part_of_an_epoch_is_its_beginning() -> None:
    whole = training_order(IDS, LENGTHS, "d", 1, 1.0, 1)
    assert whole != training_order(IDS, LENGTHS, "d", 2, 1.0, 1)
    assert whole != training_order(IDS, LENGTHS, "e", 1, 1.0, 1)
    assert whole[:25] == training_order(IDS, LENGTHS, "d", 1, 0.5, 1)
    assert len(training_order(IDS, LENGTHS, "d", 1, 0.001, 1)) == 1


def test_a_step_sees_the_same_rows_whatever_their_lengths_longest_first() -> None:
    plain = training_order(IDS, [1] * 50, "d", 1, 1.0, 8)
    by_length = training_order(IDS, LENGTHS, "d", 1, 1.0, 8)
    for start in range(0, 50, 8):
        step = by_length[start : start + 8]
        assert set(step) == set(plain[start : start + 8])
        assert [LENGTHS[i] for i in step] == sorted((LENGTHS[i] for i in step), reverse=True)
