"""Answers from an endpoint that speaks the OpenAI API and serves the checkpoint.

Prompts are sent as token ids, which the completions API takes: they are those of training to the id, whatever
template or special tokens the endpoint would add to a text. Every whole answer is kept as it comes, so that an
interruption asks for none twice; what was refused is asked again, as the endpoint may be repaired by then.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.generation.generator import GREEDY, Answer, Prompt, PromptEncoder, Sampling, cut_at
from alignment.recipe import Generate

if TYPE_CHECKING:
    from openai import OpenAI

MOST_STOPS = 4
"""The API takes no more stop strings; with more of them answers are cut here only."""


REFUSED = "the endpoint refuses the prompt"


class EndpointDown(RuntimeError):
    """The endpoint gives no answer now; what it has answered is kept for the next time."""


class EndpointGenerator:
    """`digest` is the checkpoint's; `kept` the file that answers are kept in."""

    def __init__(self, settings: Generate, digest: str, encoder: PromptEncoder, kept: Path) -> None:
        self.settings = settings
        self.name = settings.model.format(digest=digest[:12])
        self.encoder = encoder
        self._journal = _Journal(kept)
        self._client = _client(settings)
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

        def one(prompt: Prompt, sampling: Sampling) -> Answer:
            ids = self.encoder.encode(prompt)
            if (problem := self.encoder.problem(ids, max_new_tokens)) is not None:
                return Answer("", failed=problem)
            return self._ask(ids, self.encoder.room(ids, max_new_tokens), tuple(until), sampling)

        with ThreadPoolExecutor(self.settings.in_flight) as pool:
            futures = [pool.submit(one, prompt, sampling) for prompt, sampling in zip(prompts, drawn, strict=True)]
            try:
                answers = [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if answers and all((answer.failed or "").startswith(REFUSED) for answer in answers):
            raise BadInput(f"every prompt: {answers[0].failed}", field="evals.generate")
        return answers

    def _ask(self, ids: list[int], limit: int, until: tuple[str, ...], sampling: Sampling) -> Answer:
        asked: dict[str, Any] = {
            "model": self.name,
            "prompt": ids,
            "max_tokens": limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": int(json_digest(sampling.seed)[:8], 16) >> 1,
        }
        if 0 < len(until) <= MOST_STOPS:
            asked["stop"] = list(until)
        digest = json_digest([asked, until])
        if (known := self._journal.find(digest)) is not None:
            return known
        answer = self._call(asked, until)
        if answer.failed is None:
            self._journal.add(digest, answer)
        return answer

    def _call(self, asked: dict[str, Any], until: tuple[str, ...]) -> Answer:
        import openai

        try:
            completion: Any = self._client.completions.create(**asked)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return Answer("", failed=f"{REFUSED} ({error.status_code})")
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            problem = f"the endpoint refuses the key in {self.settings.api_key_env}: {error.status_code}"
            raise BadInput(problem, field="evals.generate.api_key_env") from None
        except openai.APIError as error:
            status = getattr(error, "status_code", None) or type(error).__name__
            raise EndpointDown(f"{self.settings.base_url} gives no answer ({status})") from None
        try:
            text, tokens = completion.choices[0].text, completion.usage.completion_tokens
        except (AttributeError, IndexError, TypeError):
            text, tokens = None, None
        if not isinstance(text, str) or not isinstance(tokens, int):
            raise EndpointDown(f"{self.settings.base_url} answers with something that is no completion")
        return Answer(cut_at(text, until), tokens)

    def _require_served(self) -> None:
        import openai

        try:
            served = [model.id for model in self._client.models.list()]
        except openai.APIError as error:
            reason = getattr(error, "status_code", None) or type(error).__name__
            problem = f"{self.settings.base_url} cannot be asked what it serves ({reason})"
            raise BadInput(problem, field="evals.generate.base_url") from None
        if self.name not in served:
            problem = (
                f"{self.settings.base_url} does not serve {self.name} (it serves {', '.join(served) or 'nothing'})"
            )
            raise BadInput(problem, field="evals.generate.model")


def _client(settings: Generate) -> OpenAI:
    from openai import OpenAI

    return OpenAI(
        api_key=os.environ.get(settings.api_key_env) or "none",  # endpoints of one's own often ask for none
        base_url=settings.base_url,
        max_retries=settings.retries,
        timeout=settings.timeout_seconds,
    )


class _Journal:
    """Whole answers by what was asked, one line each; a last line that was cut off is asked again."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, Answer] = {}
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        for line in lines[:-1]:
            entry = json.loads(line)
            if entry.get("failed") is None:
                self._known[entry["asked"]] = Answer(entry["text"], entry["tokens"])
        path.write_bytes(b"".join(line + b"\n" for line in lines[:-1]))
        self._path = path

    def find(self, digest: str) -> Answer | None:
        return self._known.get(digest)

    def add(self, digest: str, answer: Answer) -> None:
        entry = {"asked": digest, "text": answer.text, "tokens": answer.tokens}
        with self._lock, self._path.open("ab") as stream:
            stream.write(json.dumps(entry).encode() + b"\n")
            self._known[digest] = answer
