"""`align judge`: questions, answers and a judge in, judgments out, with no recipe and no store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alignment.errors import BadInput
from alignment.recipe import Judge
from eval.answer_files import model_name, read_answers
from eval.grading import ALONE, BESIDE
from eval.grading.baseline import with_baseline
from eval.grading.choose import bill, questions_of, shortfall
from eval.grading.grader import Grader
from eval.jsonl import read_rows
from eval.judge.endpoint import Endpoint
from eval.judge.journal import Journal
from eval.judge.judgment import Judgment
from eval.judge.prompts import default_prompts, parse_prompts, reference_turns
from eval.judge.question import Question
from eval.scores import metrics_record
from eval.scoring import score_suite
from eval.suites import suite_named
from eval.suites.items import read_items


def judge_files(
    suite: str,
    questions: str | Path,
    answers: str | Path,
    out: str | Path,
    judge: Judge,
    reference: str | Path | None = None,
    prompts: str | Path | None = None,
    against: str | Path | None = None,
) -> dict[str, Any]:
    """Asks the judge what `out` does not hold yet, appends each judgment as it comes, and returns plain JSON values:
    `suite, n, judgments, metrics, intervals, out`, what does not count (`missing`, `failed`, `unparsable`), what was
    not judged (`not_judged`: name to reason, `problem` in one line or None), and what it took (`judge`).

    With `against` answers are judged beside that file's, in both orders. At its end `out` is in FastChat's form.
    Raises `BadInput` before anything is asked for files that do not fit each other, or an `out` that holds
    judgments of something else.
    """
    kind = suite_named(suite)
    beside = against is not None or suite not in ALONE
    found = (BESIDE if beside else ALONE).get(suite)
    if found is None:
        judged = suite in ALONE or suite in BESIDE
        raise BadInput(f"{suite} is judged without a baseline" if judged else f"{suite} has a scorer of its own")
    ways = (found,)  # a file holds judgments of pairs or of answers alone
    items = read_items(kind, questions)
    responses = read_answers(answers, items)
    if beside:
        items = with_baseline(kind, items, None if against is None else read_rows(against), str(against or questions))
    asked_by = parse_prompts(read_rows(prompts), str(prompts), found.prompts) if prompts else default_prompts()
    references = reference_turns(read_rows(reference), str(reference)) if reference else {}
    endpoint, model = Endpoint(judge), model_name(answers)
    baseline = model_name(against or questions) if beside else ""
    path = Path(out)
    told: dict[str, Any] = {}

    def ask(answered: Sequence[Any]) -> list[Judgment]:
        asked = questions_of(ways, answered, asked_by, references)
        digests = {endpoint.digest(question): None for question in asked}
        with Journal(path) as journal:
            journal.refuse_others(digests)
            try:
                outcome = endpoint.ask(asked, journal, model, baseline)
            finally:
                journal.tidy(list(digests))
        told.update(
            judge=bill(outcome, judge),
            problem=shortfall(outcome, len(asked)) or None,
            not_judged=_not_judged(outcome.failed, outcome.refused, outcome.unasked, outcome.budget),
        )
        return outcome.judgments

    scored = score_suite(kind, items, responses, Grader(ways, ask), str(answers))
    return {
        "suite": suite,
        "n": scored.n,
        "judgments": len(scored.judgments),
        "metrics": metrics_record(scored.metrics),
        "intervals": {metric: list(ends) for metric, ends in scored.intervals.items()},
        "out": str(path),
        "missing": scored.missing,
        "failed": scored.failed,
        "unparsable": unparsable(scored.judgments),
        **told,
    }


def judge_settings(price: dict[str, float | None], **given: Any) -> Judge:
    """An endpoint's settings from options; raises `BadInput` naming the first that will not do."""
    prices = None if all(value is None for value in price.values()) else price
    try:
        return Judge.model_validate({"kind": "openai", "price": prices, **given})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or None
        raise BadInput(first["msg"].removeprefix("Value error, "), field=field) from None


def unparsable(judgments: Sequence[Judgment]) -> list[str]:
    """The judgments without a verdict that can be read, by name."""
    return [
        Question(one.question_id, one.turn, one.prompt_name, "", "", one.game).name
        for one in judgments
        if one.score is None
    ]


def _not_judged(
    failed: dict[Question, str], refused: dict[Question, str], unasked: Sequence[Question], budget: str
) -> dict[str, str]:
    reasons = {question.name: reason for question, reason in (failed | refused).items()}
    return reasons | {question.name: f"the budget of {budget} is reached" for question in unasked}
