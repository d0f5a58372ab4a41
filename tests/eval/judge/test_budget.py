from __future__ import annotations

import threading

from alignment.recipe import Judge
from eval.judge.budget import Budget, Usage, most


class Noticing(threading.Condition):
    """Says when a thread begins to wait; the lock is held from there on until it does."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.waiting.set()
        return super().wait(timeout)


def budget(tokens: int, spent: int = 0) -> Budget:
    return Budget(Judge(kind="openai", model="m", budget_tokens=tokens), Usage(spent, 0))


def test_what_would_pass_the_limit_is_refused_when_nothing_is_under_way() -> None:
    one = budget(100, spent=40)
    assert not one.reserve(Usage(61, 0))
    assert one.reserve(Usage(50, 10))
    one.settle(Usage(50, 10), Usage(5, 5))
    assert one.used == Usage(45, 5) and not one.reserve(Usage(51, 0)) and one.reserve(Usage(50, 0))


def test_what_does_not_fit_yet_waits_for_what_is_under_way() -> None:
    one, done = budget(100), threading.Event()
    one._changed = changed = Noticing()
    assert one.reserve(Usage(80, 0))
    fits: list[bool] = []
    thread = threading.Thread(target=lambda: (fits.append(one.reserve(Usage(80, 0))), done.set()))
    thread.start()
    assert changed.waiting.wait(30) and not done.is_set()
    one.settle(Usage(80, 0), Usage(20, 0))
    assert done.wait(30) and fits == [True]
    thread.join()


def test_closing_refuses_whoever_waits() -> None:
    one, done = budget(10), threading.Event()
    one._changed = changed = Noticing()
    assert one.reserve(Usage(10, 0))
    fits: list[bool] = []
    thread = threading.Thread(target=lambda: (fits.append(one.reserve(Usage(10, 0))), done.set()))
    thread.start()
    assert changed.waiting.wait(30) and not done.is_set()
    one.close()
    assert done.wait(30) and fits == [False] and not one.reserve(Usage(0, 0))
    thread.join()


def test_without_a_limit_everything_fits() -> None:
    free = Budget(Judge(kind="openai", model="m"), Usage())
    assert all(free.reserve(Usage(10**9, 10**9)) for _ in range(3))


def test_the_most_a_call_can_take_is_at_least_a_token_a_byte() -> None:
    assert most([{"role": "user", "content": "ab€"}, {"role": "system", "content": ""}], 7) == Usage(5 + 16 + 16, 7)
