"""A limit on what judging may take, held before a call is sent and not after."""

from __future__ import annotations

import threading

from alignment.recipe import Judge
from eval.judge.usage import Usage


class Budget:
    """Every call reserves the most it can take, and gives back what it did not. Shared between threads.

    A call that does not fit waits for those under way, which mostly take less than they reserved; it is refused
    only when nothing is under way. So the limit is never passed, and nothing is left over that would have done.
    """

    def __init__(self, settings: Judge, spent: Usage) -> None:
        self.settings = settings
        self.spent = spent
        self._reserved = Usage()
        self._under_way = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def limit(self) -> str:
        """The limit as a person reads it."""
        usd, tokens = self.settings.budget_usd, self.settings.budget_tokens
        words = [] if usd is None else [f"{usd:g} USD"]
        return " and ".join([*words, *([] if tokens is None else [f"{tokens} tokens"])])

    def reserve(self, worst: Usage) -> bool:
        """True when `worst` still fits; waits while calls under way may leave room for it."""
        with self._changed:
            while not self._closed and not self._fits(self.spent + self._reserved + worst):
                if not self._under_way:
                    return False
                self._changed.wait()
            if self._closed:
                return False
            self._reserved += worst
            self._under_way += 1
            return True

    def settle(self, reserved: Usage, used: Usage) -> None:
        """Ends a call that reserved `reserved` and took `used`."""
        with self._changed:
            self._reserved -= reserved
            self._under_way -= 1
            self.spent += used
            self._changed.notify_all()

    def close(self) -> None:
        """Refuses whoever waits and whoever comes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, total: Usage) -> bool:
        usd = total.usd(self.settings.price)
        if self.settings.budget_usd is not None and usd is not None and usd > self.settings.budget_usd:
            return False
        return self.settings.budget_tokens is None or total.tokens <= self.settings.budget_tokens
