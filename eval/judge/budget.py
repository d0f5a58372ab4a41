"""A limit on what judging may cost, checked before a call is sent."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from alignment.errors import BadInput
from alignment.generation.journal import append_line, read_lines
from alignment.recipe.evaluation import Judge, JudgePrice

# Tokens and what they cost.

PER_MILLION = 1e-6


@dataclass(frozen=True)
class Usage:
    """Tokens of questions and of answers."""

    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.input_tokens - other.input_tokens, self.output_tokens - other.output_tokens)

    def usd(self, price: JudgePrice | None) -> float | None:
        """The cost in USD; None without a price."""
        if price is None:
            return None
        return PER_MILLION * (self.input_tokens * price.input_usd + self.output_tokens * price.output_usd)


MESSAGE_TOKENS = 16
"""More than what a chat format puts around one message."""


def most(messages: list[dict[str, str]], max_tokens: int) -> Usage:
    """The most tokens that one call can take: a token of a byte-level vocabulary is at least one byte long."""
    size = sum(len(message["content"].encode()) + MESSAGE_TOKENS for message in messages)
    return Usage(size, max_tokens)


class Budget:
    """Every call reserves the most it can take, and later gives the rest back. Safe to share between threads.

    A call that does not fit waits for running calls, because most of them take less than they reserved. It is refused
    only when no call runs. So the limit is never passed, and no call is refused that still fits.
    """

    def __init__(self, settings: Judge, used: Usage) -> None:
        self.settings = settings
        self.used = used
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
        """True when `worst` fits; waits while running calls may still leave room for it."""
        with self._changed:
            while not self._closed and not self._fits(self.used + self._reserved + worst):
                if not self._under_way:
                    return False
                self._changed.wait()
            if self._closed:
                return False
            self._reserved += worst
            self._under_way += 1
            return True

    def settle(self, reserved: Usage, used: Usage) -> None:
        """Ends a call that reserved `reserved` and used `used`."""
        with self._changed:
            self._reserved -= reserved
            self._under_way -= 1
            self.used += used
            self._changed.notify_all()

    def close(self) -> None:
        """Refuses every call that waits, and every later call."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, total: Usage) -> bool:
        usd = total.usd(self.settings.price)
        if self.settings.budget_usd is not None and usd is not None and usd > self.settings.budget_usd:
            return False
        return self.settings.budget_tokens is None or total.tokens <= self.settings.budget_tokens


# Tokens that an endpoint may have charged for calls without a judgment, so that a budget holds after a resumption.

START = b'{"asked": '
"""How every line begins."""


class Charges:
    """Tokens of calls without a judgment, one line a call. They have their own file, as other tools read the judgments.

    The file is made at the first such call. The lock on the judgments' file guards it.
    """

    def __init__(self, judgments: Path) -> None:
        self.path = judgments.with_name(f"{judgments.name}.charges")
        self.total = Usage()

    def read(self) -> None:
        """Reads the file; raises `BadInput` naming a row that is not a charge."""
        self.total = Usage()
        for row, record in read_lines(self.path, START, "not a file of charges that was written here"):
            tokens = record.get("tokens")
            if not isinstance(tokens, list) or [type(number) for number in tokens] != [int, int]:
                raise BadInput("not a charge that was written here", file=str(self.path), row=row, field="tokens")
            self.total += Usage(*tokens)

    def add(self, asked: str, used: Usage) -> None:
        """Records the tokens of a call; `asked` is the digest of its question."""
        with self.path.open("ab") as stream:
            append_line(stream, {"asked": asked, "tokens": [used.input_tokens, used.output_tokens]})
        self.total += used
