"""Tokens and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

from alignment.recipe import JudgePrice

PER_MILLION = 1e-6


@dataclass(frozen=True)
class Usage:
    """Tokens of what was asked and of what was answered."""

    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.input_tokens - other.input_tokens, self.output_tokens - other.output_tokens)

    def usd(self, price: JudgePrice | None) -> float | None:
        """None where no price is known."""
        if price is None:
            return None
        return PER_MILLION * (self.input_tokens * price.input_usd + self.output_tokens * price.output_usd)


MESSAGE_TOKENS = 16
"""More than what a chat format puts around one message."""


def most(messages: list[dict[str, str]], max_tokens: int) -> Usage:
    """The most that one call can take: a token of any byte-level vocabulary stands for at least one byte."""
    size = sum(len(message["content"].encode()) + MESSAGE_TOKENS for message in messages)
    return Usage(size, max_tokens)
