"""A judge behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.errors import BadInput
from alignment.recipe import Judge
from eval.judge.journal import Journal, asked_digest
from eval.judge.judgment import Judgment
from eval.judge.prompts import JudgePrompt, Question, messages, questions
from eval.response_files import Response
from eval.suites.suite import Item

if TYPE_CHECKING:
    from openai import OpenAI

RETRIES = 6
TIMEOUT_SECONDS = 120.0
MAX_TOKENS = 2048
NAMED_QUESTIONS = 5


class JudgeUnavailable(RuntimeError):
    """The endpoint did not judge everything; what it did judge is kept for the next try."""


class OpenAIJudge:
    """Asks once per item and turn at temperature 0, `in_flight` at a time, and keeps each judgment as it comes.

    The key is read from the environment variable that the settings name, and handed to the client only.
    """

    def __init__(
        self,
        settings: Judge,
        prompts: Mapping[str, JudgePrompt],
        references: Mapping[str, tuple[str, ...]],
        journal: Path,
    ) -> None:
        self.settings = settings
        self.model = str(settings.model)
        self.prompts = prompts
        self.references = references
        self.journal = Journal(journal)

    def __call__(self, answered: Sequence[tuple[Item, Response]]) -> list[Judgment]:
        """Raises `BadInput` for a refused key or unknown model, `JudgeUnavailable` when some were not judged."""
        asked = [q for item, response in answered for q in questions(item, response, self.prompts, self.references)]
        digests = [asked_digest(self.model, messages(question)) for question in asked]
        waiting = {d: q for d, q in zip(digests, asked, strict=True) if self.journal.find(d) is None}
        failures = self._ask_all(waiting) if waiting else []
        if failures:
            more = "" if len(failures) <= NAMED_QUESTIONS else f" and {len(failures) - NAMED_QUESTIONS} more"
            raise JudgeUnavailable(
                f"{len(failures)} of {len(asked)} judgments failed: {'; '.join(failures[:NAMED_QUESTIONS])}{more}. "
                "The others are kept; run again to ask for these only"
            )
        found = [(self.journal.find(digest), question) for digest, question in zip(digests, asked, strict=True)]
        return [self._judgment(question, judgment.text) for judgment, question in found if judgment is not None]

    def _ask_all(self, waiting: Mapping[str, Question]) -> list[str]:
        failures: list[str] = []
        client = self._client()
        with client, ThreadPoolExecutor(self.settings.in_flight) as pool:
            futures = {digest: pool.submit(self._ask, client, digest, q) for digest, q in waiting.items()}
            try:
                for digest, future in futures.items():
                    problem = future.result()
                    if problem is not None:
                        failures.append(
                            f"question {waiting[digest].question_id} turn {waiting[digest].turn}: {problem}"
                        )
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return failures

    def _ask(self, client: OpenAI, digest: str, question: Question) -> str | None:
        """Asks and keeps the judgment; returns what went wrong, in our words: the endpoint's may quote the key."""
        import openai

        try:
            completion = client.chat.completions.create(
                model=self.model,
                messages=messages(question),  # type: ignore[arg-type]
                temperature=0.0,
                max_tokens=MAX_TOKENS,
            )
            text = completion.choices[0].message.content or ""
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            problem = f"the judge endpoint refuses the key in {self.settings.api_key_env}"
            raise BadInput(problem, field="judge.api_key_env") from None
        except openai.NotFoundError:
            raise BadInput(f"the judge endpoint has no model '{self.model}'", field="judge.model") from None
        except openai.APIStatusError as error:
            return f"HTTP {error.status_code}"
        except (openai.APIError, ValueError, IndexError, AttributeError, TypeError) as error:
            return type(error).__name__
        self.journal.add(digest, self._judgment(question, text))
        return None

    def _judgment(self, question: Question, text: str) -> Judgment:
        name = question.prompt_name
        return Judgment(question.question_id, question.turn, self.model, name, question.user, text)

    def _client(self) -> OpenAI:
        from openai import OpenAI

        key = os.environ.get(self.settings.api_key_env)
        if not key and self.settings.base_url is None:
            problem = f"the judge needs its key in the environment variable {self.settings.api_key_env}"
            raise BadInput(problem, field="judge.api_key_env")
        return OpenAI(
            api_key=key or "none",  # endpoints of one's own often ask for none, but the client wants a value
            base_url=self.settings.base_url,
            max_retries=RETRIES,
            timeout=TIMEOUT_SECONDS,
        )
