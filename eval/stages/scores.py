"""The stage that scores one suite's stored responses, on the CPU. A judge may ask an endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ValidationError

from alignment.address import shown
from alignment.digest import json_digest
from alignment.errors import BadInput, CorruptArtifact, MissingArtifact
from alignment.recipe.evaluation import Judge
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.stage import Context, Request, Result, Stage
from alignment.store import Artifact, Commit, Store
from eval.answers.files import ITEMS_FILE, RESPONSES_FILE, read_responses
from eval.grading.choose import JOURNAL_FILE, choose_grader
from eval.grading.score import Scored, score_suite
from eval.judge.budget import Usage
from eval.judge.files import read_judgments, write_judgments
from eval.judge.judgment import READING, Judgment
from eval.statistics import Mean
from eval.suites import SUITES, Item, SuiteSpec, suite_named
from eval.suites.lm_eval_task import nltk_data_beside
from eval.suites.rows import read_records
from eval.suites.samples import SAMPLES_FILE, samples_digest, write_samples
from eval.summaries import Metric, ResponsesSummary, ScoresSummary

CODE_VERSION = 2
METRICS_FILE = "metrics.json"
JUDGMENTS_FILE, PAIR_JUDGMENTS_FILE = "judgments.jsonl", "pair_judgments.jsonl"
JUDGE_MONEY = frozenset({"price", "budget_usd", "budget_tokens"})
JUDGE_ACCESS = JUDGE_MONEY | {"api_key_env", "in_flight", "timeout_seconds", "retries", "max_tokens_name", "retires"}
JUDGE_SETTINGS = {"kind", "model", "temperature", "max_tokens"}
JUDGE_PLACE = {"base_url", "snapshot"}
"""Settings that say which model answers under the judge's name; part of the settings where they are given."""


class ScoresRequest(Request):
    """Stored responses and the suite to score; `judge` grades suites that have no scorer.

    `earlier` are the scores that the recipe had of this suite. If they are the answer to this same request, under
    another reading of verdicts, their judgments are read anew and the judge is not asked again. It is no input: without
    it, or once it is erased, the scores are the same and cost more.
    """

    speed_only: ClassVar[frozenset[str]] = frozenset({"earlier"})

    responses: Artifact
    suite: SuiteSpec
    judge: Judge | None
    seed: int
    earlier: Artifact | None = None

    def artifacts(self) -> dict[str, Artifact]:
        """The inputs: the responses."""
        return {path: artifact for path, artifact in super().artifacts().items() if path != "earlier"}

    def identity(self) -> Any:
        """The request without settings that cannot change a score: the judge of a suite that has a scorer, and an
        endpoint's speed, key, retirement and price. With the version of what reads answers or verdicts, if a suite's
        scores depend on it."""
        value = super().identity() | self._reading()
        if self.judge is None or not self.suite.judged(suite_named(self.suite.name, self.suite.tasks)):
            return value | {"judge": None}  # checked first: to find a task of lm-eval takes seconds
        return value | {"judge": {k: v for k, v in value["judge"].items() if k not in JUDGE_ACCESS}}

    def settings(self, answers: Commit) -> str:
        """Digest of the settings of answers, judge and scorer: scores of different settings are not compared."""
        judge = None if self.judge is None else self.judge.model_dump(include=JUDGE_SETTINGS)
        if judge is not None and self.judge is not None:
            place = self.judge.model_dump(include=JUDGE_PLACE)
            judge |= {name: value for name, value in place.items() if value is not None} | self._reading()
        judged = judge if self.suite.judged(suite_named(self.suite.name, self.suite.tasks)) else self._reading() or None
        how = ResponsesSummary.of(answers)
        answered = [how.precision, how.generator, answers.code_version]
        return json_digest([self.suite.digest(), judged, self.seed, answered, CODE_VERSION])

    def _reading(self) -> dict[str, Any]:
        """The versions of our classifier, and of the rule that reads an endpoint's verdicts. The rubric's ratings and
        lm-eval's scores do not depend on them, so their keys hold when a version moves."""
        suite = SUITES.get(self.suite.name)  # a task of lm-eval is not looked up: that takes seconds
        if suite is None:
            return {}
        if self.suite.judged(suite):
            return {"reading": READING} if self.judge is not None and self.judge.kind != "rubric" else {}
        return {"classifier": suite.classifier_version()} if suite.classifier else {}


def read_otherwise(store: Store, scores: Artifact) -> bool:
    """Whether scores of this code version answer a request that has another key today: its verdicts, or its answers,
    are read by other rules now. False for scores whose request is not kept."""
    try:
        if store.commit_of(scores).code_version != CODE_VERSION:
            return False
        request = ScoresRequest.model_validate_json(store.read(scores, REQUEST_FILE))
    except (MissingArtifact, CorruptArtifact, ValidationError):
        return False
    return STAGE.key(request) != scores.key


def judge_behind(store: Store, scores: Artifact) -> str | None:
    """The judge that graded scores, as a reader names it; None if none did, or if their request is not kept."""
    try:
        request = ScoresRequest.model_validate_json(store.read(scores, REQUEST_FILE))
    except (MissingArtifact, CorruptArtifact, ValidationError):
        return None
    if request.judge is None or request.identity()["judge"] is None:
        return None
    judge = request.judge
    named = judge.model or judge.kind
    if judge.snapshot and judge.snapshot != judge.model:
        named += f" ({judge.snapshot})"
    return f"{named} at {shown(judge.base_url)}" if judge.base_url else named


def known_judgments(request: ScoresRequest, store: Store) -> tuple[list[Judgment], Usage]:
    """The judgments behind `request.earlier`, and what they took, if nothing but the reading of verdicts is another."""
    if request.earlier is None or request.judge is None or request.judge.kind == "rubric":
        return [], Usage()
    try:
        commit = store.commit_of(request.earlier)
        if commit.code_version != CODE_VERSION or commit.inputs["responses"].digest != request.responses.digest:
            return [], Usage()
        asked = ScoresRequest.model_validate_json(store.read(request.earlier, REQUEST_FILE))
        if STAGE.key(asked) != STAGE.key(request):
            return [], Usage()
        folder = store.fetch(request.earlier, deep="once")
        names = [name for name in (JUDGMENTS_FILE, PAIR_JUDGMENTS_FILE) if name in commit.files]
        judgments = [judgment for name in names for judgment in read_judgments(folder / name)]
        bill = ScoresSummary.of(commit).judge
    except (MissingArtifact, CorruptArtifact, ValidationError, KeyError):
        return [], Usage()
    return judgments, Usage() if bill is None else Usage(bill.input_tokens, bill.output_tokens)


def run(request: ScoresRequest, context: Context) -> Result:
    """Writes `samples.parquet`, `metrics.json` and, for a judged suite, judgments in FastChat's forms:
    `judgments.jsonl` of answers alone, `pair_judgments.jsonl` of answers beside the baseline's."""
    suite = suite_named(request.suite.name, request.suite.tasks)
    folder = context.fetch(request.responses) / suite.name
    if not folder.is_dir():
        raise BadInput(f"these responses have no suite {suite.name}", file=str(folder.parent))
    items = [Item(str(record["id"]), record["item"]) for record in read_records(folder / ITEMS_FILE)]
    known = known_judgments(request, context.store)
    chosen = choose_grader(suite, request.judge, request.suite, items, context.work / JOURNAL_FILE, *known)
    path = folder / RESPONSES_FILE
    with nltk_data_beside(request.suite.data.url if request.suite.data else None):
        scored = score_suite(suite, chosen.items, read_responses(path), chosen.grader, str(path))
    write_samples(context.out / SAMPLES_FILE, scored.samples)
    metrics = metrics_record(scored.metrics)
    text = json.dumps(metrics, indent=1, sort_keys=True) + "\n"
    (context.out / METRICS_FILE).write_text(text, encoding="utf-8")
    write_graded(context.out, scored)
    settings = request.settings(context.store.commit_of(request.responses))
    shown: dict[str, Any] = {  # a field without a value is not set
        "length": {name: round(value, 3) for name, value in scored.length.items()},
        "classes": scored.classes,
        "left_out": list(suite.left_out),
    }
    summary = ScoresSummary(
        n=scored.n,
        metrics={name: Metric(**metric) for name, metric in metrics.items()},
        **outcome(scored),
        **chosen.bill(),
        settings=settings,
        **{name: value for name, value in shown.items() if value},
    )
    digest = json_digest([samples_digest(scored.samples), scored.failed, scored.judged, settings])
    return Result(digest, summary)


def write_graded(folder: Path, scored: Scored) -> None:
    """Writes the judgments behind a suite's scores to FastChat's files; no file without judgments."""
    for name, pairs in ((JUDGMENTS_FILE, False), (PAIR_JUDGMENTS_FILE, True)):
        if judgments := [judgment for judgment in scored.judgments if bool(judgment.game) == pairs]:
            write_judgments(folder / name, judgments)


def metrics_record(metrics: dict[str, Mean]) -> dict[str, dict[str, Any]]:
    """Metric to value, standard error (None when unknown) and number of values, as files and people read them."""
    return {name: {"value": mean.value, "stderr": mean.stderr, "n": mean.n} for name, mean in metrics.items()}


def outcome(scored: Scored) -> dict[str, Any]:
    """Counts of what was not scored: failed, missing and empty answers, and judgments without a rating."""
    return {
        "failed": len(scored.failed),
        "missing": len(scored.missing),
        "empty": len(scored.empty),
        "judged": scored.judged,
        "unparsable": scored.unparsable,
        "unjudged": scored.unjudged,
        "intervals": {metric: list(ends) for metric, ends in scored.intervals.items()},
    }


STAGE = Stage("scores", CODE_VERSION, ScoresRequest, run)
