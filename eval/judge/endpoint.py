"""Questions to a judge behind any OpenAI-compatible endpoint: many at a time, each once, none of them lost."""

from __future__ import annotations

import email.utils
import json
import logging
import math
import os
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.recipe import Judge
from eval.judge.budget import Budget, Usage, most
from eval.judge.journal import Entry, Journal
from eval.judge.judgment import Judgment, Question

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI


# What an endpoint's refusal means: stop everything, give up this question, or ask again and when.

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


# One call of a judge model through the `openai` client.

SHORTEST_SECRET = 8
"""A shorter key is a placeholder such as "none", and may stand in a text by chance."""
REDACTED = "[key]"


@dataclass(frozen=True)
class Reply:
    """What a judge wrote, and the tokens it took."""

    text: str
    usage: Usage


def open_client(settings: Judge) -> OpenAI:
    """A client that does not try again by itself. The key is read from the environment and handed to it only."""
    from openai import OpenAI

    key = os.environ.get(settings.api_key_env)
    if not key and settings.base_url is None:
        problem = f"the judge needs its key in the environment variable {settings.api_key_env}"
        raise BadInput(problem, field="judge.api_key_env")
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        problem = f"what stands in the environment variable {settings.api_key_env} is no key: it holds spaces,"
        raise BadInput(f"{problem} line breaks or other than plain characters", field="judge.api_key_env")
    return OpenAI(
        api_key=key or "none",  # endpoints of one's own often ask for none, but the client wants a value
        base_url=settings.base_url,
        max_retries=0,
        timeout=settings.timeout_seconds,
    )


def call(client: OpenAI, settings: Judge, messages: list[dict[str, str]], worst: Usage) -> Reply:
    """Asks once; `worst` stands for a usage that is not told. Raises what the client raises, and `NoJudgment`."""
    options: dict[str, Any] = {settings.max_tokens_name: settings.max_tokens}
    if settings.temperature is not None:
        options["temperature"] = settings.temperature
    sent: Any = messages
    completion: Any = client.chat.completions.create(model=str(settings.model), messages=sent, **options)
    try:
        text = completion.choices[0].message.content
    except (AttributeError, IndexError, TypeError):
        raise NoJudgment("no choice") from None
    if text is None:
        text = ""  # said nothing: a judgment without a verdict
    if not isinstance(text, str):
        raise NoJudgment("no text")
    return Reply(_clean(text, settings), _usage(getattr(completion, "usage", None), worst))


def _clean(text: str, settings: Judge) -> str:
    """Without the key, should the endpoint repeat it, and as text that a file can hold."""
    key = os.environ.get(settings.api_key_env, "")
    if len(key) >= SHORTEST_SECRET:
        text = text.replace(key, REDACTED)
    return text.encode("utf-8", "replace").decode()


def _usage(told: Any, worst: Usage) -> Usage:
    """What the endpoint says the call took; the most it can have taken where it does not say."""
    counts = getattr(told, "prompt_tokens", None), getattr(told, "completion_tokens", None)
    asked, answered = (count if type(count) is int and count >= 0 else None for count in counts)
    return worst if asked is None or answered is None else Usage(asked, answered)


log = logging.getLogger(__name__)

PROGRESS_LINES = 10


@dataclass
class Outcome:
    """What came of asking. `judgments` are all there are of what was asked, in its order.

    `failed` gives the reason for questions that stayed without an answer and may get one later, `refused` for
    those that the endpoint will not take; `unasked` are those that no longer fitted `budget`.
    """

    judgments: list[Judgment] = field(default_factory=list)
    failed: dict[Question, str] = field(default_factory=dict)
    refused: dict[Question, str] = field(default_factory=dict)
    unasked: list[Question] = field(default_factory=list)
    budget: str = ""
    usage: Usage = field(default_factory=Usage)
    asked: int = 0


OVER_BUDGET = Trouble("the budget is reached", again=True)


class Endpoint:
    """A judge model. The key is read from the environment variable that the settings name, and handed to the client
    only.

    Calls are tried again here and not by the client: each try is held against the budget, as one that was cut
    off may have been charged; an answer that is none is tried again too; and a refused key ends all waiting.
    """

    def __init__(self, settings: Judge, seed: int | None = None) -> None:
        self.settings = settings
        self.model = str(settings.model)
        self._draw = random.Random(seed)
        self._stop = threading.Event()

    def digest(self, question: Question) -> str:
        """What names a question to this judge: its place, and model, settings and messages to the letter."""
        settings = [self.model, self.settings.temperature, self.settings.max_tokens]
        return json_digest([question.question_id, question.turn, question.game, settings, question.messages()])[:32]

    def ask(self, questions: Sequence[Question], journal: Journal, model: str = "", against: str = "") -> Outcome:
        """Asks what the (open) journal does not hold, `in_flight` at a time, and keeps each judgment as it comes.

        `model` and `against` name who answered. Raises `BadInput` for a refused key, an account without money,
        an unknown model, or a request that the endpoint refuses whatever the question; what was judged is kept.
        """
        digests = {question: self.digest(question) for question in questions}
        waiting = {q: digest for q, digest in digests.items() if journal.find(digest) is None}
        outcome = Outcome()
        if waiting:
            self._ask_all(waiting, journal, outcome, model, against)
        if questions and len(outcome.refused) == len(digests):
            reason = next(iter(outcome.refused.values()))
            raise BadInput(f"the judge endpoint refuses every question ({reason}); see the judge's settings")
        found = [journal.find(digest) for digest in digests.values()]
        outcome.judgments = [entry.judgment for entry in found if entry is not None]
        outcome.usage = journal.usage
        return outcome

    def _ask_all(
        self, waiting: Mapping[Question, str], journal: Journal, outcome: Outcome, model: str, against: str
    ) -> None:
        budget = Budget(self.settings, journal.usage)
        outcome.budget = budget.limit
        self._stop.clear()
        before, step = len(journal), max(1, (len(waiting) + len(journal)) // PROGRESS_LINES)

        def judge(client: OpenAI, question: Question, digest: str) -> Trouble | None:
            told = self._reply(client, question, digest, budget, journal)
            if isinstance(told, Trouble):
                return told
            names = (question.question_id, question.turn, self.model, question.prompt_name, question.user)
            judgment = Judgment(*names, text=told.text, model=model, game=question.game, against=against)
            known = journal.add(Entry(digest, judgment, told.usage))
            if known % step == 0:
                log.info("judge: %d of %d", known, len(waiting) + before)
            return None

        with open_client(self.settings) as client, ThreadPoolExecutor(self.settings.in_flight) as pool:
            futures = {q: pool.submit(judge, client, q, digest) for q, digest in waiting.items()}
            try:
                wait(futures.values(), return_when=FIRST_EXCEPTION)
                for future in futures.values():
                    if future.done():
                        future.result()  # raises what ended the waiting
            except BaseException:
                self._stop.set()
                budget.close()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            for question, future in futures.items():
                _note(question, future.result(), outcome)
        outcome.asked = len(waiting) - len(outcome.unasked)
        usd = budget.spent.usd(self.settings.price)
        cost = "" if usd is None else f", {usd:.4f} USD"
        log.info("judge: %d questions, %d tokens%s", outcome.asked, budget.spent.tokens, cost)

    def _reply(
        self, client: OpenAI, question: Question, digest: str, budget: Budget, journal: Journal
    ) -> Reply | Trouble:
        """Asks until there is a judgment, or no use or no money in asking again."""
        messages = question.messages()
        worst = most(messages, self.settings.max_tokens)
        attempt = 0
        while True:
            if not budget.reserve(worst):
                return OVER_BUDGET
            used = worst  # unless we learn better
            try:
                reply = call(client, self.settings, messages, worst)
                used = reply.usage
                return reply
            except Exception as error:
                trouble = trouble_of(error, self.settings)
                if trouble.billed:
                    journal.charge(digest, worst)
                else:
                    used = Usage()
            finally:
                budget.settle(worst, used)
            if not trouble.again or attempt >= self.settings.retries:
                return trouble
            delay = backoff(attempt, self._draw) if trouble.after is None else trouble.after + backoff(0, self._draw)
            attempt += 1
            if self._stop.wait(delay):
                return trouble


def _note(question: Question, trouble: Trouble | None, outcome: Outcome) -> None:
    if trouble is OVER_BUDGET:
        outcome.unasked.append(question)
    elif trouble is not None:
        (outcome.failed if trouble.passing else outcome.refused)[question] = trouble.reason
