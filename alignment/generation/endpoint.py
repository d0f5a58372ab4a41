"""Answers from an endpoint that speaks the OpenAI API and serves the checkpoint.

Prompts are sent as token ids, which the completions API takes. So they are exactly the ids of training, whatever
template or special tokens the endpoint would add to a text. Every whole answer is kept at once, so that no prompt is
asked twice after an interruption. Refused prompts are asked again, as the endpoint may be repaired by then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.generation import journal
from alignment.generation.generator import GREEDY, Answer, Prompt, PromptEncoder, Sampling, cut_at
from alignment.generation.openai_client import OpenAIClient, Trouble
from alignment.progress import ProgressLog
from alignment.recipe.evaluation import Generate

log = logging.getLogger(__name__)

FIELD = "evals.generate"

MOST_STOPS = 4
"""The API takes at most this many stop strings; with more of them, answers are cut here only."""

REFUSED = "the endpoint refuses the prompt"


class EndpointDown(RuntimeError):
    """The endpoint gives no answer now; its earlier answers are kept for the next try."""


class EndpointGenerator:
    """Answers from an endpoint. `digest` is the checkpoint's, and `kept` is the file that answers are kept in."""

    def __init__(self, settings: Generate, digest: str, encoder: PromptEncoder, kept: Path) -> None:
        self.settings = settings
        self.name = settings.model.format(digest=digest[:12])
        self.encoder = encoder
        self._journal = _Journal(kept)
        self._client = OpenAIClient(settings, self.name, who="the endpoint", field=FIELD)
        with self._client:
            self._require_served()

    @property
    def is_chat(self) -> bool:
        """Whether prompts go through the tokenizer's chat template."""
        return self.encoder.is_chat

    def answer(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        until: Sequence[str] = (),
        samplings: Sequence[Sampling] | None = None,
    ) -> list[Answer]:
        """One answer per prompt, in order.

        Raises `EndpointDown` when a call fails for good, `BadInput` when the endpoint refuses the key or every prompt.
        """
        drawn = [GREEDY] * len(prompts) if samplings is None else samplings
        requests: list[_Request | Answer] = []
        for prompt, sampling in zip(prompts, drawn, strict=True):
            ids = self.encoder.encode(prompt)
            if (problem := self.encoder.problem(ids, max_new_tokens)) is not None:
                requests.append(Answer("", failed=problem))
            else:
                requests.append(self._request(ids, self.encoder.room(ids, max_new_tokens), tuple(until), sampling))
        with self._journal:
            known = self._ask([request for request in requests if isinstance(request, _Request)])
        answers = [known[asked.digest] if isinstance(asked, _Request) else asked for asked in requests]
        if answers and all((answer.failed or "").startswith(REFUSED) for answer in answers):
            raise BadInput(f"every prompt: {answers[0].failed}", field=FIELD)
        return answers

    def _request(self, ids: list[int], limit: int, until: tuple[str, ...], sampling: Sampling) -> _Request:
        options: dict[str, Any] = {
            "max_tokens": limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": int(json_digest(sampling.seed)[:8], 16) >> 1,
        }
        if 0 < len(until) <= MOST_STOPS:
            options["stop"] = list(until)
        digest = json_digest([{"model": self.name, "prompt": ids} | options, until])
        return _Request(digest, ids, options, until)

    def _ask(self, requests: Sequence[_Request]) -> dict[str, Answer]:
        """Answers by the requests' digests, from the (open) journal or else from the endpoint."""
        waiting = {request.digest: request for request in requests if self._journal.find(request.digest) is None}
        refused: dict[str, Answer] = {}
        if waiting:
            progress = ProgressLog(log, "prompts answered", len(waiting))

            def ask(request: _Request) -> Answer | None:
                answer = self._call(request)
                progress.add(1)
                return answer

            with self._client as client:
                answers = client.each(ask, waiting.values())
            refused = {digest: answer for digest, answer in zip(waiting, answers, strict=True) if answer is not None}
        kept = {
            request.digest: entry.answer
            for request in requests
            if (entry := self._journal.find(request.digest)) is not None
        }
        return kept | refused

    def _call(self, request: _Request) -> Answer | None:
        """Keeps the endpoint's answer; returns a failed answer only when the endpoint refuses the prompt."""
        reply = self._client.persist(lambda: self._client.complete(request.ids, **request.options))
        if isinstance(reply, Trouble):
            if not reply.passing:
                return Answer("", failed=f"{REFUSED} ({reply.status})")
            raise EndpointDown(f"{self._client.address} gives no answer ({reply.status or reply.reason})")
        if reply.output_tokens is None:
            raise EndpointDown(f"{self._client.address} does not say how many tokens its answers have (no usage)")
        self._journal.add(_Kept(request.digest, Answer(cut_at(reply.text, request.until), reply.output_tokens)))
        return None

    def _require_served(self) -> None:
        served = self._client.served()
        if self.name not in served:
            problem = f"{self._client.address} does not serve {self.name} (it serves {', '.join(served) or 'nothing'})"
            raise BadInput(problem, field=f"{FIELD}.model")


@dataclass(frozen=True)
class _Request:
    """A prompt as it is sent, with the digest under which its answer is kept."""

    digest: str
    ids: list[int]
    options: dict[str, Any]
    until: tuple[str, ...]


@dataclass(frozen=True)
class _Kept:
    asked: str
    answer: Answer


class _Journal(journal.Journal[_Kept]):
    """Whole answers only. A refusal in a file of an older version is asked again."""

    start = b'{"asked": '
    content = "answers"
    remedy = "remove the file to ask everything again"

    def _record(self, entry: _Kept) -> dict[str, Any]:
        return {"asked": entry.asked, "text": entry.answer.text, "tokens": entry.answer.tokens}

    def _parse(self, record: dict[str, Any], row: int) -> Iterator[_Kept]:
        asked, text, tokens = (record.get(name) for name in ("asked", "text", "tokens"))
        if not (isinstance(asked, str) and isinstance(text, str) and type(tokens) is int):
            problem = f"not an answer that was written here; {self.remedy}"
            raise BadInput(problem, file=str(self.path), row=row)
        if record.get("failed") is None:
            yield _Kept(asked, Answer(text, tokens))
