"""What a judge took to grade the answers behind a report, from the commit records of the scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from alignment.store import Commit


@dataclass(frozen=True)
class Judging:
    """The sum over suites and checkpoints. `usd` is None where no judge names a price; what has none adds nothing."""

    judgments: int
    input_tokens: int
    output_tokens: int
    usd: float | None


def judging(commits: Iterable[Commit]) -> Judging | None:
    """None where no endpoint judged."""
    bills = [bill for commit in commits if (bill := commit.summary.get("judge")) is not None]
    if not bills:
        return None
    prices = [float(bill["usd"]) for bill in bills if bill["usd"] is not None]
    return Judging(
        judgments=sum(bill.get("judgments", bill["asked"]) for bill in bills),
        input_tokens=sum(bill["input_tokens"] for bill in bills),
        output_tokens=sum(bill["output_tokens"] for bill in bills),
        usd=sum(prices) if prices else None,
    )
