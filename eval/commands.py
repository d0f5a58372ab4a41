"""`align score` and `align compare`: files in, files out, with no recipe and no store."""

from __future__ import annotations

import logging
import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alignment.errors import BadInput
from alignment.recipe.evaluation import Judge
from alignment.recipe.faults import fault
from eval.answers.files import model_name, read_answers
from eval.gate.compare import compare_samples, margin_of
from eval.grading import ALONE, BESIDE
from eval.grading.choose import bill, questions_of, shortfall
from eval.grading.grading import Grader, Grading
from eval.grading.pairs import with_baseline
from eval.grading.published import read_published
from eval.grading.score import score_suite
from eval.judge.endpoint import Endpoint, Outcome
from eval.judge.files import ALL, Selection, StoredJudge, stored_judgments
from eval.judge.journal import Journal
from eval.judge.judgment import Judgment, Question
from eval.judge.prompts import default_prompts, parse_prompts, reference_turns
from eval.stages.scores import metrics_record, outcome, write_graded
from eval.suites import Item, Suite, pin_tasks, suite_named
from eval.suites.items import read_items
from eval.suites.lm_eval_task import nltk_data_beside
from eval.suites.rows import read_rows
from eval.suites.samples import SAMPLES_FILE, read_samples, write_samples

log = logging.getLogger(__name__)

NOT_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")
ENDINGS = re.compile(r"(\.(jsonl?|csv|parquet))?(\.gz)?$")


def score_files(
    suite: str,
    responses: str | Path | None,
    data: str | Path | None,
    judgments: str | Path | None = None,
    out: str | Path | None = None,
    against: str | Path | None = None,
    select: Selection = ALL,
    difficulty: str | Path | None = None,
    include_path: str | Path | None = None,
) -> dict[str, Any]:
    """Scores stored responses, writes samples.parquet into `out`, and returns plain JSON values.

    The values are `suite, n, metrics {name: {value, stderr, n}}, samples` (a path); what does not count (`missing`,
    `failed`, `judged`, `unparsable`, `unjudged`, `left_out`: metrics of the task that cannot be compared); `intervals`
    of metrics that have an interval of their own; the `empty` answers, their mean `length`, and `classes` (answers
    counted by class, for a suite with a classifier). `out` is `scores/<suite>-<responses file>` by default. Judgments
    of pairs need the baseline's answers in `against`; AlpacaEval's data may hold them. `select` says whose judgments
    count, and how verdicts are read. `include_path` is a folder of own lm-eval tasks. `judgments` without `responses`
    and `data` is a published file of its own
    (`score_published`).

    Raises `BadInput` that names wrong, duplicate or malformed rows, or a folder that cannot be written to, before
    anything is scored.
    """
    if responses is None and data is None and judgments is not None:
        if against is not None:
            raise BadInput("goes with --responses and --data", file=str(against), field="--against")
        return score_published(suite, judgments, out, select, difficulty)
    if difficulty is not None:
        raise BadInput("goes with published annotations alone", file=str(difficulty), field="--difficulty")
    kind = suite_named(suite, pin_tasks(str(include_path)) if include_path is not None else ())
    if responses is None or data is None:
        alone = " (a published file of judgments needs neither)" if judgments is not None else ""
        raise BadInput(f"give --{'responses' if responses is None else 'data'}: a file of {kind.title}{alone}")
    if judgments is not None and suite not in ALONE | BESIDE:
        raise BadInput(f"{suite} has a scorer of its own; judgments go with {', '.join(ALONE | BESIDE)}")
    if against is not None and judgments is None:
        raise BadInput("goes with --judgments of pairs", file=str(against), field="--against")
    items = read_items(kind, data)
    grader, items = _stored_grader(kind, items, judgments, against, str(data), select)
    answers = read_answers(responses, items)
    folder = Path(out) if out is not None else Path("scores") / f"{suite}-{Path(responses).stem}"
    _make_folder(folder)
    with nltk_data_beside(data):
        scored = score_suite(kind, items, answers, grader, str(responses))
    write_samples(folder / SAMPLES_FILE, scored.samples)
    write_graded(folder, scored)
    return {
        "suite": suite,
        "n": scored.n,
        "metrics": metrics_record(scored.metrics),
        "samples": str(folder / SAMPLES_FILE),
        **outcome(scored),
        "missing": scored.missing,
        "failed": scored.failed,
        "empty": scored.empty,
        "length": scored.length,
        "classes": scored.classes,
        "left_out": list(kind.left_out),
    }


def _stored_grader(
    suite: Suite,
    items: list[Item],
    judgments: str | Path | None,
    against: str | Path | None,
    data: str,
    select: Selection,
) -> tuple[Grader | None, list[Item]]:
    """The grader for stored judgments of single answers or of pairs, and the items, for pairs with the baseline's
    turns."""
    if judgments is None:
        return None, items
    stored = stored_judgments(judgments, items, suite.turns, select)
    pairs = any(judgment.game for judgment in stored)
    grading = (BESIDE if pairs else ALONE).get(suite.name)
    if grading is None:
        problem = f"{suite.title} is judged {'answer by answer' if pairs else 'in pairs'}, and these judgments are not"
        raise BadInput(problem, file=str(judgments))
    if pairs:
        if against is None and suite.name != "alpaca_eval":
            raise BadInput("judgments of pairs need the baseline's answers: give --against", file=str(judgments))
        items = with_baseline(suite, items, None if against is None else read_rows(against), str(against or data))
    elif against is not None:
        raise BadInput("these judgments are of single answers: leave out --against", file=str(judgments))
    return Grader((grading,), StoredJudge(stored)), items


def score_published(
    suite: str,
    judgments: str | Path,
    out: str | Path | None = None,
    select: Selection = ALL,
    difficulty: str | Path | None = None,
) -> dict[str, Any]:
    """Scores a published file of judgments as its leaderboard does, and returns plain JSON values like `score_files`.

    The file may have several models: `models` has each with its `metrics`, `intervals`, `unparsable`, `method`,
    `notes` and further figures, and its samples are in a folder of its own. With several models `metrics` are named
    `model/metric`, and `samples` is the folder above theirs.

    Raises `BadInput` for another form, for several judges, and for a file without a verdict.
    """
    found = read_published(suite, judgments, select, difficulty)
    folder = Path(out) if out is not None else Path("scores") / f"{suite}-{ENDINGS.sub('', Path(judgments).name)}"
    models: list[dict[str, Any]] = []
    for number, one in enumerate(found, start=1):
        place = folder if len(found) == 1 else folder / f"{number:02d}-{NOT_A_NAME.sub('_', one.model)[:80]}"
        _make_folder(place)
        write_samples(place / SAMPLES_FILE, one.samples)
        models.append(
            {
                "model": one.model,
                "n": one.n,
                "metrics": metrics_record(one.metrics),
                "intervals": {metric: list(ends) for metric, ends in one.intervals.items()},
                "unparsable": one.unparsable,
                "method": one.method,
                "notes": one.notes,
                "samples": str(place / SAMPLES_FILE),
                **one.more,
            }
        )
    result: dict[str, Any] = {"missing": [], "failed": {}, "empty": [], "left_out": [], "models": models}
    if len(models) == 1:
        return {"suite": suite, **models[0], **result}
    metrics = {f"{of['model']}/{name}": metric for of in models for name, metric in of["metrics"].items()}
    return {"suite": suite, "n": max(of["n"] for of in models), "metrics": metrics, "samples": str(folder), **result}


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"samples cannot be written here: {reason}", file=str(folder), field="out") from error


def compare_files(
    baseline: str | Path, candidate: str | Path, metric: str | None = None, margin: float | None = None
) -> dict[str, Any]:
    """`compare_samples` on two samples files (or folders holding one), as plain JSON values, each with its `margin`.

    Without a `margin` it is the report's: a twentieth of each metric's scale, 0 where that has no bounds. A metric that
    one side alone has is left out, and named in a warning. Raises `BadInput` that names the file.
    """
    if margin is not None and not (math.isfinite(margin) and margin >= 0):
        raise BadInput(f"margin {margin}: expected a finite number, zero or above")
    files = {"baseline": str(baseline), "candidate": str(candidate)}
    sides = {side: read_samples(file) for side, file in files.items()}
    try:
        compared = compare_samples(sides["baseline"], sides["candidate"], metric, margin)
    except BadInput as error:
        named = next((file for side, file in files.items() if error.message.startswith(f"the {side} has")), None)
        raise BadInput(error.message, file=named or f"{baseline} and {candidate}") from error
    for side, samples in sides.items():
        alone = {sample.metric for sample in samples} - set(compared)
        if alone and metric is None:
            log.warning("not compared, as the %s alone has it: %s", side, ", ".join(sorted(alone)))
    return {
        name: result.model_dump(mode="json") | {"margin": margin_of(result.width) if margin is None else margin}
        for name, result in compared.items()
    }


# `align judge`: questions, answers and a judge in, judgments out, with no recipe and no store.


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
    """Asks a judge for every judgment that `out` does not hold yet, and returns plain JSON values.

    The values are `suite, n, judgments, metrics, intervals, out`; what does not count (`missing`, `failed`,
    `unparsable`); what was not judged (`not_judged`: name to reason; `problem`: one line or None); and the cost
    (`judge`). Each judgment is appended to `out` when it arrives; when all have arrived, `out` is in FastChat's form.
    With `against` each answer is judged against that file's answer, in both orders.

    Raises `BadInput`, before anything is asked, for files that do not belong together, or if `out` holds judgments of
    other answers.
    """
    kind = suite_named(suite)
    beside = against is not None or suite not in ALONE
    gradings = (_grading_of(suite, beside=beside),)  # a file holds judgments of pairs or of single answers, never both
    items = read_items(kind, questions)
    responses = read_answers(answers, items)
    if beside:
        items = with_baseline(kind, items, None if against is None else read_rows(against), str(against or questions))
    asked_by = parse_prompts(read_rows(prompts), str(prompts), gradings[0].prompts) if prompts else default_prompts()
    references = reference_turns(read_rows(reference), str(reference)) if reference else {}
    endpoint, model = Endpoint(judge), model_name(answers)
    baseline = model_name(against or questions) if beside else ""
    path = Path(out)
    judging: dict[str, Any] = {}

    def ask(answered: Sequence[Any]) -> list[Judgment]:
        asked = questions_of(gradings, answered, asked_by, references)
        outcome = _ask_into(path, endpoint, asked, model, baseline)
        judging.update(
            judge=bill(outcome, judge),
            problem=shortfall(outcome, len(asked)) or None,
            not_judged=_not_judged(outcome.failed, outcome.refused, outcome.unasked, outcome.budget),
        )
        return outcome.judgments

    scored = score_suite(kind, items, responses, Grader(gradings, ask), str(answers))
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
        **judging,
    }


def _grading_of(suite: str, *, beside: bool) -> Grading:
    """How a judge grades the suite's answers, beside a baseline's or alone; raises `BadInput` where it does not."""
    grading = (BESIDE if beside else ALONE).get(suite)
    if grading is None:
        judged = suite in ALONE or suite in BESIDE
        raise BadInput(f"{suite} is judged without a baseline" if judged else f"{suite} has a scorer of its own")
    return grading


def _ask_into(path: Path, endpoint: Endpoint, asked: Sequence[Question], model: str, baseline: str) -> Outcome:
    """Asks what the file at `path` does not hold yet; it is in FastChat's form afterwards, also if asking fails."""
    digests = {endpoint.digest(question): None for question in asked}
    with Journal(path) as journal:
        journal.refuse_others(digests)
        try:
            return endpoint.ask(asked, journal, model, baseline)
        finally:
            journal.tidy(list(digests))


def judge_settings(price: dict[str, float | None], **given: Any) -> Judge:
    """An endpoint's settings from options; raises `BadInput` that names the first invalid option."""
    prices = None if all(value is None for value in price.values()) else price
    try:
        return Judge.model_validate({"kind": "openai", "price": prices, **given})
    except ValidationError as error:
        field, told = fault(error, Judge)
        raise BadInput(told, field=field) from None


def unparsable(judgments: Sequence[Judgment]) -> list[str]:
    """Names of the judgments from which no verdict could be read."""
    return [
        Question(judgment.question_id, judgment.turn, judgment.prompt_name, "", "", judgment.game).name
        for judgment in judgments
        if judgment.score is None
    ]


def _not_judged(
    failed: dict[Question, str], refused: dict[Question, str], unasked: Sequence[Question], budget: str
) -> dict[str, str]:
    reasons = {question.name: reason for question, reason in (failed | refused).items()}
    return reasons | {question.name: f"the budget of {budget} is reached" for question in unasked}
