"""Questions to a judge behind an OpenAI-compatible endpoint: many at a time, each asked once, no judgment lost."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.generation.openai_client import OpenAIClient, Reply, Trouble
from alignment.recipe.evaluation import Judge
from eval.judge.budget import Budget, Usage, most
from eval.judge.journal import Entry, Journal
from eval.judge.judgment import Judgment, Question

log = logging.getLogger(__name__)

PROGRESS_LINES = 10


@dataclass
class Outcome:
    """The result of asking. `judgments` has every judgment of the questions, in their order.

    `failed` gives the reason for questions without an answer that may get one later, `refused` for questions that the
    endpoint does not accept. `unasked` are the questions that did not fit `budget`. `served` are the models that the
    endpoint named in its answers.
    """

    judgments: list[Judgment] = field(default_factory=list)
    failed: dict[Question, str] = field(default_factory=dict)
    refused: dict[Question, str] = field(default_factory=dict)
    unasked: list[Question] = field(default_factory=list)
    budget: str = ""
    usage: Usage = field(default_factory=Usage)
    asked: int = 0
    served: set[str] = field(default_factory=set)


OVER_BUDGET = Trouble("the budget is reached", again=False)


class Endpoint:
    """A judge model. Every try of a call counts against the budget, because a call that was cut off may be charged."""

    def __init__(self, settings: Judge, seed: int | None = None) -> None:
        self.settings = settings
        self.model = str(settings.model)
        self._client = OpenAIClient(settings, self.model, who="the judge endpoint", field="judge", seed=seed)

    def digest(self, question: Question) -> str:
        """Identifies a question to this judge: its place, the model, the settings, and the exact messages."""
        settings: list[Any] = [self.model, self.settings.temperature, self.settings.max_tokens]
        if self.settings.snapshot is not None:
            settings.append(self.settings.snapshot)
        asked: list[Any] = [question.question_id, question.turn, question.game, settings, question.messages()]
        return json_digest(asked + ([question.repeat] if question.repeat else []))[:32]

    def ask(self, questions: Sequence[Question], journal: Journal, model: str = "", against: str = "") -> Outcome:
        """Asks the questions that the (open) journal lacks, `in_flight` at a time, and keeps each judgment at once.

        `model` and `against` name who answered. Raises `BadInput` for a refused key, an account without money,
        an unknown model, or when the endpoint refuses every question. Judgments made before that are kept.
        """
        digests = {question: self.digest(question) for question in questions}
        waiting = {q: digest for q, digest in digests.items() if journal.find(digest) is None}
        outcome = Outcome()
        if waiting:
            self._ask_all(waiting, journal, outcome, model, against)
        if questions and len(outcome.refused) == len(digests):
            reason = next(iter(outcome.refused.values()))
            raise BadInput(f"the judge endpoint refuses every question ({reason}); see the judge's settings")
        entries = [journal.find(digest) for digest in digests.values()]
        outcome.judgments = [entry.judgment for entry in entries if entry is not None]
        outcome.usage = journal.usage
        return outcome

    def _ask_all(
        self, waiting: Mapping[Question, str], journal: Journal, outcome: Outcome, model: str, against: str
    ) -> None:
        budget = Budget(self.settings, journal.usage)
        outcome.budget = budget.limit
        before, step = len(journal), max(1, (len(waiting) + len(journal)) // PROGRESS_LINES)

        def judge(question: Question) -> Trouble | None:
            digest = waiting[question]
            reply = self._reply(question, digest, budget, journal, outcome.served)
            if isinstance(reply, Trouble):
                return reply
            text, usage = reply
            names = (question.question_id, question.turn, self.model, question.prompt_name, question.user)
            judgment = Judgment(*names, text=text, model=model, game=question.game, against=against)
            known = journal.add(Entry(digest, judgment, usage))
            if known % step == 0:
                log.info("judge: %d of %d", known, len(waiting) + before)
            return None

        with self._client as client:
            for question, trouble in zip(waiting, client.each(judge, waiting, budget.close), strict=True):
                _note(question, trouble, outcome)
        outcome.asked = len(waiting) - len(outcome.unasked)
        usd = budget.used.usd(self.settings.price)
        cost = "" if usd is None else f", {usd:.4f} USD"
        log.info("judge: %d questions, %d tokens%s", outcome.asked, budget.used.tokens, cost)
        if len(outcome.served) > 1:
            models = ", ".join(sorted(outcome.served))
            log.warning("judge: the endpoint answered as several models (%s); give judge.snapshot to pin one", models)

    def _reply(
        self, question: Question, digest: str, budget: Budget, journal: Journal, served: set[str]
    ) -> tuple[str, Usage] | Trouble:
        """Asks until there is a judgment, or asking again is of no use or over the budget. Returns text and tokens."""
        messages = question.messages()
        worst = most(messages, self.settings.max_tokens)
        options: dict[str, Any] = {self.settings.max_tokens_name: self.settings.max_tokens}
        if self.settings.temperature is not None:
            options["temperature"] = self.settings.temperature

        def attempt() -> tuple[str, Usage] | Trouble:
            if not budget.reserve(worst):
                return OVER_BUDGET
            used = worst  # unless the endpoint says how many
            try:
                reply = self._client.chat(messages, **options)
                if isinstance(reply, Reply):
                    used = _usage(reply, worst)
                    if reply.model is not None:
                        served.add(reply.model)
                    if problem := self._other_model(reply.model):
                        journal.charge(digest, used)
                        raise BadInput(problem, field="judge.snapshot")
                    return reply.text, used
                if reply.billed:
                    journal.charge(digest, worst)
                else:
                    used = Usage()
                return reply
            finally:
                budget.settle(worst, used)

        return self._client.persist(attempt)

    def _other_model(self, served: str | None) -> str | None:
        """The problem with an answer that is not of the pinned snapshot."""
        snapshot = self.settings.snapshot
        if snapshot is None or served == snapshot:
            return None
        answers = "does not name its model" if served is None else f"answers as {served}"
        return f"the judge endpoint {answers}, not as the pinned {snapshot}; the judgments made before are kept"


def _usage(reply: Reply, worst: Usage) -> Usage:
    """The tokens that the endpoint reports; the most that the call can have taken where it reports none."""
    if reply.input_tokens is None or reply.output_tokens is None:
        return worst
    return Usage(reply.input_tokens, reply.output_tokens)


def _note(question: Question, trouble: Trouble | None, outcome: Outcome) -> None:
    if trouble is OVER_BUDGET:
        outcome.unasked.append(question)
    elif trouble is not None:
        (outcome.failed if trouble.passing else outcome.refused)[question] = trouble.reason
