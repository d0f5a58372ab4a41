from __future__ import annotations

import pytest

from alignment.logprobs.effort import Effort, side_by_side


def test_speed_waste_and_utilisation() -> None:
    told = Effort(tokens=1000, forwarded=800, positions=808, seconds=2.0, flops=3e12, peak=10e12).numbers()
    assert told == {
        "forwarded_tokens": 800,
        "tokens_per_second": 500.0,
        "padding_waste": 0.01,
        "useful_tflops_per_second": 1.5,
        "mfu": 0.15,
    }


def test_what_is_not_known_is_not_told() -> None:
    assert "mfu" not in Effort(10, 10, 10, 1.0, flops=1e12, peak=None).numbers()
    assert "useful_tflops_per_second" not in Effort(10, 10, 10, 1.0, flops=None, peak=1e12).numbers()
    assert Effort().numbers() == {}


def test_one_after_the_other_seconds_add_and_side_by_side_devices_do() -> None:
    one, other = Effort(10, 8, 9, 2.0, 4e12, 5e12), Effort(20, 16, 16, 3.0, 8e12, 5e12)
    assert one.then(other) == Effort(30, 24, 25, 5.0, 12e12, 5e12)
    together = side_by_side([one, other])
    assert together == Effort(30, 24, 25, 3.0, 12e12, 10e12, (8, 16))
    assert together.then(together).numbers()["forwarded_per_rank"] == [16, 32]
    assert one.then(Effort()) == one


def test_an_idle_rank_counts_as_a_device_that_could_have_worked() -> None:
    assert side_by_side([Effort(10, 8, 8, 2.0, 4e12, 5e12), Effort()]).numbers()["mfu"] == pytest.approx(0.2)
