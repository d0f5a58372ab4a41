from __future__ import annotations

import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from alignment.generation.openai_client import LONGEST_DELAY, backoff, error_word, retry_after


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "3", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-4"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_seconds(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)  # such a date tells no fractions
    before = datetime.now(UTC)
    found = retry_after({"retry-after": format_datetime(later, usegmt=True)})
    after = datetime.now(UTC)
    assert found is not None
    assert (later - after).total_seconds() - 1e-3 <= found <= (later - before).total_seconds() + 1e-3
    assert retry_after({"retry-after": "Fri, 01 Jan 2021 00:00:00 GMT"}) == 0.0


def test_waits_double_are_bounded_and_differ_by_chance() -> None:
    draw = random.Random(0)
    for attempt, longest in ((0, 0.5), (1, 1.0), (4, 8.0), (6, LONGEST_DELAY), (10_000, LONGEST_DELAY)):
        drawn = [backoff(attempt, draw) for _ in range(50)]
        assert longest / 2 <= min(drawn) < max(drawn) <= longest


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"error": {"code": "context_length_exceeded"}}, "context_length_exceeded"),
        ({"code": "content_filter"}, "content_filter"),
        ({"error": {"code": "Your key sk-1234 is wrong"}}, ""),
        ({"error": "text"}, ""),
        ({"error": {"code": 7}}, ""),
        ("text", ""),
        (None, ""),
    ],
)
def test_only_a_bare_word_of_an_error_body_is_repeated(body: Any, word: str) -> None:
    assert error_word(body) == word


def test_what_asks_endpoints_can_be_imported_without_the_openai_package() -> None:
    code = "import sys; sys.modules['openai'] = None; import alignment.generation.endpoint, eval.judge.endpoint"
    subprocess.run([sys.executable, "-c", code], check=True)
