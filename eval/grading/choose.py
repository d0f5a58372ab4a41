"""The grader that a recipe names, with the prompts, references and baseline of the suite's spec."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.errors import BadInput, first_few
from alignment.recipe.evaluation import Judge
from alignment.stages.stage import SourceFile
from eval.grading import Answered, Grading, gradings
from eval.grading.grading import Grader
from eval.grading.pairs import with_baseline
from eval.grading.ratings import RATINGS
from eval.judge.budget import Usage
from eval.judge.endpoint import Endpoint, Outcome
from eval.judge.journal import Entry, Journal
from eval.judge.judgment import Judgment, Question
from eval.judge.prompts import Prompts, References, default_prompts, parse_prompts, reference_turns
from eval.judge.rubric import rubric_judge
from eval.suites.rows import Row, read_pinned_rows
from eval.suites.suite import Item, Suite, SuiteSpec

log = logging.getLogger(__name__)

JOURNAL_FILE = "judgments.jsonl"
NOTHING = Usage()


class JudgeUnavailable(RuntimeError):
    """Some answers were not judged. The judgments that were made are kept for the next run."""


@dataclass(frozen=True)
class GraderAndItems:
    """The grader and the items that it takes, which may have a baseline's turns added.

    `grader` is None if the suite has a scorer of its own, or if there is no judge. `bill` gives the cost of judging, as
    an entry of a summary, once the grader has judged.
    """

    grader: Grader | None
    items: list[Item]
    bill: Callable[[], dict[str, Any]] = dict


def choose_grader(
    suite: Suite,
    settings: Judge | None,
    spec: SuiteSpec,
    items: list[Item],
    journal: Path,
    known: Sequence[Judgment] = (),
    paid: Usage = NOTHING,
) -> GraderAndItems:
    """The grader of a suite, by a recipe's settings.

    `journal` is the file that keeps paid judgments over interruptions. `known` are judgments of the same judge on these
    answers, for which the tokens `paid` were taken: their questions are not asked again. Raises `BadInput` for a
    `rubric` judge of questions that are not embedded, and for files that do not fit.
    """
    if not spec.judged(suite) or settings is None:
        return GraderAndItems(None, items)
    if settings.kind == "rubric":
        if spec.embedded is None:
            raise BadInput("judge kind rubric grades embedded questions only", field="judge.kind")
        return GraderAndItems(Grader((RATINGS,), rubric_judge), items)
    beside = spec.baseline_answers is not None or not gradings(suite.name, baseline=False)
    suite_gradings = gradings(suite.name, beside)
    if beside:
        pinned = spec.baseline_answers
        file = pinned.url if pinned else spec.data.url if spec.data else suite.name
        items = with_baseline(suite, items, _rows(pinned), file)
    prompts = default_prompts()
    if spec.judge_prompts is not None:
        needed = [name for grading in suite_gradings for name in grading.prompts]
        prompts = parse_prompts(read_pinned_rows(spec.judge_prompts), spec.judge_prompts.url, needed)
    references: References = {}
    if spec.reference_answers is not None:
        references = reference_turns(read_pinned_rows(spec.reference_answers), spec.reference_answers.url)
    judge = EndpointJudge(settings, suite_gradings, prompts, references, journal, known, paid)
    return GraderAndItems(Grader(suite_gradings, judge), items, judge.bill)


def _rows(source: SourceFile | None) -> list[Row] | None:
    return None if source is None else read_pinned_rows(source)


def questions_of(
    suite_gradings: Sequence[Grading], answered: Answered, prompts: Prompts, references: References
) -> list[Question]:
    """All questions to a judge about these answers."""
    return [
        q
        for item, response in answered
        for grading in suite_gradings
        for q in grading.questions(item, response, prompts, references)
    ]


class EndpointJudge:
    """Puts all questions to an endpoint; raises `JudgeUnavailable` if a later run may get judgments that are
    missing."""

    def __init__(
        self,
        settings: Judge,
        gradings: Sequence[Grading],
        prompts: Prompts,
        references: References,
        journal: Path,
        known: Sequence[Judgment] = (),
        paid: Usage = NOTHING,
    ) -> None:
        self.settings = settings
        self.gradings = gradings
        self.prompts = prompts
        self.references = references
        self.journal = journal
        self.known = {_asked(judgment): judgment for judgment in known}
        self.paid = paid
        self.outcome = Outcome()

    def __call__(self, answered: Answered) -> list[Judgment]:
        """The judgments of all questions about these answers; see `Grader.judge`."""
        asked = questions_of(self.gradings, answered, self.prompts, self.references)
        endpoint = Endpoint(self.settings)
        with Journal(self.journal) as journal:
            self._keep_known(asked, endpoint, journal)
            self.outcome = endpoint.ask(asked, journal)
        for question, reason in self.outcome.refused.items():
            log.warning("the judge endpoint does not take %s: %s", question.name, reason)
        if problem := shortfall(self.outcome, len(asked)):
            raise JudgeUnavailable(problem)
        return self.outcome.judgments

    def _keep_known(self, asked: Sequence[Question], endpoint: Endpoint, journal: Journal) -> None:
        """Adds the known judgments of these questions to the journal, each with its share of what they took."""
        kept = [(endpoint.digest(question), self.known.get(_asked(question))) for question in asked]
        new = [(digest, judgment) for digest, judgment in kept if judgment is not None and not journal.find(digest)]
        if not new:
            return
        log.info("judge: %d stored judgments are read anew and not asked for again", len(new))
        share = Usage(self.paid.input_tokens // len(self.known), self.paid.output_tokens // len(self.known))
        for digest, judgment in new:
            journal.add(Entry(digest, judgment, share))

    def bill(self) -> dict[str, Any]:
        """The cost of judging, as the summary's entry `judge`."""
        return {"judge": bill(self.outcome, self.settings)}


def _asked(about: Question | Judgment) -> tuple[Any, ...]:
    """What a question and its judgment share: the place, and the text that the judge is shown."""
    shown = about.user if isinstance(about, Question) else about.user_prompt
    return about.question_id, about.turn, about.game, about.prompt_name, shown


def bill(outcome: Outcome, settings: Judge) -> dict[str, Any]:
    """The cost of judging: questions asked in this run; judgments, tokens and USD (None without a price) over all
    runs."""
    usage = outcome.usage
    return {
        "asked": outcome.asked,
        "judgments": len(outcome.judgments),
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "usd": usage.usd(settings.price),
        "refused": {question.name: reason for question, reason in outcome.refused.items()},
        **({"served": sorted(outcome.served)} if outcome.served else {}),
    }


def shortfall(outcome: Outcome, asked: int) -> str:
    """The questions that were not judged and can be asked again, in one line; empty if there are none."""
    parts = []
    if outcome.failed:
        failures = [f"{question.name}: {reason}" for question, reason in outcome.failed.items()]
        parts.append(f"{len(failures)} of {asked} judgments failed: {first_few(failures, '; ')}")
    if outcome.unasked:
        names = first_few([question.name for question in outcome.unasked], "; ")
        count = len(outcome.unasked)
        parts.append(f"{count} of {asked} were not asked, as the budget of {outcome.budget} is reached: {names}")
    return "; ".join(parts) and f"{'; '.join(parts)}. The other judgments are kept; run again to ask only for these"
