"""What an endpoint's refusal means: stop everything, give up this question, or ask again and when."""

from __future__ import annotations

import email.utils
import json
import math
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignment.errors import BadInput
from alignment.recipe import Judge

if TYPE_CHECKING:
    from openai import APIStatusError

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
LONGEST_RETRY_AFTER = 300.0
WORD = re.compile(r"[a-z][a-z0-9_.]{1,60}")
NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "InvalidURL")
"""The HTTP library's errors before a request has left."""
NO_QUOTA = "insufficient_quota"


class NoJudgment(ValueError):
    """An answer of the endpoint that holds no judgment: not JSON, no choice, no text."""


@dataclass(frozen=True)
class Trouble:
    """Why a call gave no judgment, in our words: the endpoint's own may quote the key.

    `again`: asking again at once may help, not before `after` seconds where the endpoint says so. `passing`:
    it may help some other day. `billed`: it may have been answered and charged for all the same.
    """

    reason: str
    again: bool
    after: float | None = None
    passing: bool = True
    billed: bool = False


def trouble_of(error: Exception, settings: Judge) -> Trouble:
    """What an exception of a call means; raises `BadInput` for what no other question would fare better with, and
    the error itself when it is none of an endpoint's."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _of_status(error, settings)
    if isinstance(error, openai.APITimeoutError):
        return Trouble(f"no answer within {settings.timeout_seconds:g} s", again=True, billed=_was_sent(error))
    if isinstance(error, openai.APIConnectionError):
        return Trouble(f"the connection to {settings.base_url or 'OpenAI'} failed", again=True, billed=_was_sent(error))
    if isinstance(error, openai.APIError | NoJudgment | json.JSONDecodeError | UnicodeDecodeError):
        return Trouble("the answer is not one of a chat model", again=True, billed=True)
    raise error


def _was_sent(error: Exception) -> bool:
    return type(error.__cause__).__name__ not in NOT_SENT


def _of_status(error: APIStatusError, settings: Judge) -> Trouble:
    status, word = error.status_code, error_word(error.body)
    if status in (401, 403):
        problem = f"the judge endpoint refuses the key in {settings.api_key_env} (HTTP {status})"
        raise BadInput(problem, field="judge.api_key_env") from None
    if status == 402 or word == NO_QUOTA:
        problem = f"the account of the key in {settings.api_key_env} has nothing left to spend (HTTP {status})"
        raise BadInput(problem, field="judge.api_key_env") from None
    if status == 404:
        problem = f"the judge endpoint has no model '{settings.model}', or base_url is wrong (HTTP 404)"
        raise BadInput(problem, field="judge.model") from None
    reason = f"HTTP {status}" + (f" {word}" if word else "")
    if status in (408, 409, 429) or status >= 500:
        after = retry_after(error.response.headers)
        if after is not None and after > LONGEST_RETRY_AFTER:
            return Trouble(f"{reason}, not to be asked again for {after:.0f} s", again=False)
        return Trouble(reason, again=True, after=after)
    return Trouble(reason, again=False, passing=False)


def error_word(body: Any) -> str:
    """The code of an error body, such as `context_length_exceeded`: a bare word, or nothing."""
    inner = body.get("error", body) if isinstance(body, dict) else {}
    code = inner.get("code") if isinstance(inner, dict) else None
    return code if isinstance(code, str) and WORD.fullmatch(code) else ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Retry-After` (seconds or a date) or `Retry-After-Ms` asks to wait; None without a sensible one."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    try:
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
        return max(0.0, date.timestamp() - time.time())
    except (KeyError, ValueError, OverflowError):
        return None


def backoff(attempt: int, draw: random.Random) -> float:
    """Seconds to wait after the `attempt`-th try (from 0): doubling, with up to half of it left out by chance, so
    that calls that failed together do not come back together."""
    longest = min(FIRST_DELAY * 2.0 ** min(attempt, 30), LONGEST_DELAY)
    return longest * (1.0 - 0.5 * draw.random())
