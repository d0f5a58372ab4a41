"""Questions to a judge behind any OpenAI-compatible endpoint: many at a time, each once, none of them lost."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.recipe import Judge
from eval.judge.budget import Budget
from eval.judge.call import Reply, call, open_client
from eval.judge.journal import Entry, Journal
from eval.judge.judgment import Judgment
from eval.judge.question import Question
from eval.judge.trouble import Trouble, backoff, trouble_of
from eval.judge.usage import Usage, most

if TYPE_CHECKING:
    from openai import OpenAI

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
