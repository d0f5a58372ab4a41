"""Calls to an endpoint that speaks the OpenAI API: many at a time, each tried again if that may help, every refusal in
our own words.

Calls are tried again here and not by the `openai` package. So each try can count against a budget, because a try that
was cut off may be charged; an unusable answer is tried again too; and a refused key ends all waiting. The package is
imported when a client is first opened.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from alignment.address import shown
from alignment.errors import BadInput

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

T = TypeVar("T")
R = TypeVar("R")


class EndpointSettings(Protocol):
    """The settings of an endpoint in a recipe."""

    @property
    def base_url(self) -> str | None:
        """Address of the API; None for OpenAI's own."""

    @property
    def api_key_env(self) -> str:
        """Name of the environment variable that holds the key."""

    @property
    def in_flight(self) -> int:
        """Calls that run at the same time."""

    @property
    def timeout_seconds(self) -> float:
        """Seconds to wait for the answer to one call."""

    @property
    def retries(self) -> int:
        """How often a call is tried again."""


@dataclass(frozen=True)
class Reply:
    """The text that an endpoint wrote, the tokens that it reports, and the model that it names; None if it says
    nothing."""

    text: str
    input_tokens: int | None
    output_tokens: int | None
    model: str | None = None


@dataclass(frozen=True)
class Trouble:
    """Why a call gave no answer, in our words, because the endpoint's text may quote the key.

    `again`: the call may succeed now, after `after` seconds if the endpoint names them. `passing`: it may succeed on
    another day. `billed`: the endpoint may have answered and charged for it. `status` is the HTTP status, if there was
    one.
    """

    reason: str
    again: bool
    after: float | None = None
    passing: bool = True
    billed: bool = False
    status: int | None = None


# The meaning of an endpoint's refusal: stop everything, give up this call, or ask again, and when.

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
LONGEST_RETRY_AFTER = 300.0
WORD = re.compile(r"[a-z][a-z0-9_.]{1,60}")
NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "InvalidURL")
"""Errors of the HTTP library before it sent the request."""
NO_QUOTA = "insufficient_quota"


class NoAnswer(ValueError):
    """A response of the endpoint without an answer: no choice, or no text."""


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
    that calls that failed together are not repeated together."""
    longest = min(FIRST_DELAY * 2.0 ** min(attempt, 30), LONGEST_DELAY)
    return longest * (1.0 - 0.5 * draw.random())


# The client.

SHORTEST_SECRET = 8
"""A shorter key is a placeholder such as "none", and may occur in a text by chance."""
REDACTED = "[key]"


class OpenAIClient:
    """One model of one endpoint. `who` names the endpoint in errors, and `field` is its section of the recipe.

    Use it as a context manager. The key is read from the environment variable that the settings name, and only the
    `openai` package gets it.
    """

    def __init__(
        self, settings: EndpointSettings, model: str, *, who: str, field: str, seed: int | None = None
    ) -> None:
        self.settings = settings
        self.model = model
        self.address = shown(settings.base_url or "OpenAI")
        self._who, self._field = who, field
        self._draw = random.Random(seed)
        self._stop = threading.Event()
        self._opened: OpenAI | None = None

    def __enter__(self) -> OpenAIClient:
        self._stop.clear()
        self._opened = self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def each(self, work: Callable[[T], R], items: Iterable[T], ended: Callable[[], None] | None = None) -> list[R]:
        """`work` on every item, `in_flight` at a time, in order.

        The first exception ends all: no further call begins, waiting ends, and `ended` is called. The exception is
        raised when the running calls have returned.
        """
        failed: list[BaseException] = []

        def run(item: T) -> R:
            if self._stop.is_set():  # started before it could be cancelled
                raise CancelledError
            try:
                return work(item)
            except BaseException as error:
                failed.append(error)  # before other calls see the stop and fail because of it
                self._stop.set()
                raise

        with ThreadPoolExecutor(self.settings.in_flight) as pool:
            futures = [pool.submit(run, item) for item in items]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                if failed:
                    raise failed[0]
            except BaseException:
                self._stop.set()
                if ended is not None:
                    ended()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return [future.result() for future in futures]

    def persist(self, attempt: Callable[[], R | Trouble]) -> R | Trouble:
        """Tries until there is an answer, or until another try cannot help."""
        tries = 0
        while isinstance(outcome := attempt(), Trouble):
            if not outcome.again or tries >= self.settings.retries:
                break
            delay = backoff(tries, self._draw) if outcome.after is None else outcome.after + backoff(0, self._draw)
            tries += 1
            if self._stop.wait(delay):
                break
        return outcome

    def chat(self, messages: list[dict[str, str]], **options: Any) -> Reply | Trouble:
        """Asks a chat model once. A response without content is an empty text.

        Raises `BadInput` for a problem of every call: a refused key, an account without money, an unknown model.
        """

        def call(client: OpenAI) -> Reply:
            sent: Any = messages
            response: Any = client.chat.completions.create(model=self.model, messages=sent, **options)
            text = _at(lambda: response.choices[0].message.content)
            return self._reply("" if text is None else text, response)

        return self._of_model(self._once(call, "the answer is not a chat completion"))

    def complete(self, prompt: list[int], **options: Any) -> Reply | Trouble:
        """Asks once for a continuation of token ids. Raises `BadInput` as `chat` does."""

        def call(client: OpenAI) -> Reply:
            response: Any = client.completions.create(model=self.model, prompt=prompt, **options)
            return self._reply(_at(lambda: response.choices[0].text), response)

        return self._of_model(self._once(call, "the answer is not a completion"))

    def served(self) -> list[str]:
        """The names of the models that the endpoint serves; raises `BadInput` when it does not list them."""

        def call(client: OpenAI) -> list[str]:
            models = client.models.list()
            return _at(lambda: [str(model.id) for model in models])

        names = self.persist(lambda: self._once(call, "the answer is not a list of models"))
        if isinstance(names, Trouble):
            problem = f"{self.address} does not list its models ({names.status or names.reason})"
            raise BadInput(problem, field=f"{self._field}.base_url")
        return names

    def _open(self) -> OpenAI:
        from openai import OpenAI

        variable = self.settings.api_key_env
        key = os.environ.get(variable)
        if not key and self.settings.base_url is None:
            problem = f"{self._who} needs its key in the environment variable {variable}"
            raise BadInput(problem, field=f"{self._field}.api_key_env")
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            problem = f"the environment variable {variable} holds no usable key: it has spaces, line breaks or"
            raise BadInput(f"{problem} characters beyond ASCII", field=f"{self._field}.api_key_env")
        return OpenAI(
            api_key=key or "none",  # private endpoints often need no key, but the package requires a value
            base_url=self.settings.base_url,
            max_retries=0,
            timeout=self.settings.timeout_seconds,
        )

    def _once(self, call: Callable[[OpenAI], R], no_answer: str) -> R | Trouble:
        """The result of a call, or the meaning of its exception. Exceptions of another origin are raised."""
        assert self._opened is not None
        import openai

        try:
            return call(self._opened)
        except openai.APIStatusError as error:
            return self._of_status(error)
        except openai.APITimeoutError as error:
            reason = f"no answer within {self.settings.timeout_seconds:g} s"
            return Trouble(reason, again=True, billed=_was_sent(error))
        except openai.APIConnectionError as error:
            return Trouble(f"the connection to {self.address} failed", again=True, billed=_was_sent(error))
        except (openai.APIError, NoAnswer, json.JSONDecodeError, UnicodeDecodeError):
            return Trouble(no_answer, again=True, billed=True)

    def _of_status(self, error: APIStatusError) -> Trouble:
        status, word = error.status_code, error_word(error.body)
        variable, field = self.settings.api_key_env, f"{self._field}.api_key_env"
        if status in (401, 403):
            raise BadInput(f"{self._who} refuses the key in {variable} (HTTP {status})", field=field) from None
        if status == 402 or word == NO_QUOTA:
            problem = f"the account of the key in {variable} has nothing left to spend (HTTP {status})"
            raise BadInput(problem, field=field) from None
        reason = f"HTTP {status}" + (f" {word}" if word else "")
        if status in (408, 409, 429) or status >= 500:
            after = retry_after(error.response.headers)
            if after is not None and after > LONGEST_RETRY_AFTER:
                return Trouble(f"{reason}, the endpoint asks to wait {after:.0f} s", again=False, status=status)
            return Trouble(reason, again=True, after=after, status=status)
        return Trouble(reason, again=False, passing=False, status=status)

    def _of_model(self, reply: Reply | Trouble) -> Reply | Trouble:
        if isinstance(reply, Trouble) and reply.status == 404:
            problem = f"{self._who} has no model '{self.model}', or base_url is wrong (HTTP 404)"
            raise BadInput(problem, field=f"{self._field}.model")
        return reply

    def _reply(self, text: Any, response: Any) -> Reply:
        if not isinstance(text, str):
            raise NoAnswer("no text")
        usage = getattr(response, "usage", None)
        counts = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
        asked, answered = (count if type(count) is int and count >= 0 else None for count in counts)
        model = getattr(response, "model", None)
        return Reply(self._clean(text), asked, answered, self._clean(model) if isinstance(model, str) else None)

    def _clean(self, text: str) -> str:
        """The text without the key, in case the endpoint repeats it, and without what UTF-8 cannot encode."""
        key = os.environ.get(self.settings.api_key_env, "")
        if len(key) >= SHORTEST_SECRET:
            text = text.replace(key, REDACTED)
        return text.encode("utf-8", "replace").decode()


def _at(read: Callable[[], R]) -> R:
    """Reads a part of a response; raises `NoAnswer` if the response has no such part."""
    try:
        return read()
    except (AttributeError, IndexError, TypeError, KeyError):
        raise NoAnswer("no such place") from None


def _was_sent(error: Exception) -> bool:
    return type(error.__cause__).__name__ not in NOT_SENT
