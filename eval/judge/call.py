"""One call of a judge model through the `openai` client."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignment.errors import BadInput
from alignment.recipe import Judge
from eval.judge.trouble import NoJudgment
from eval.judge.usage import Usage

if TYPE_CHECKING:
    from openai import OpenAI

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
