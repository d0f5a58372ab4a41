"""`align score` and `align compare`: files in, files out, with no recipe and no store."""

from __future__ import annotations

import logging
import math
import tempfile
from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from eval.answer_files import read_answers
from eval.compare import compare_samples
from eval.grading import ALONE, BESIDE
from eval.grading.baseline import with_baseline
from eval.grading.grader import Grader
from eval.jsonl import read_rows
from eval.judge.stored import StoredJudge, stored_judgments
from eval.nltk_data import nltk_data_beside
from eval.samples import SAMPLES_FILE, read_samples, write_samples
from eval.scores import metrics_record, outcome, write_graded
from eval.scoring import score_suite
from eval.suites import Item, Suite, suite_named
from eval.suites.items import read_items

log = logging.getLogger(__name__)


def score_files(
    suite: str,
    responses: str | Path | None,
    data: str | Path | None,
    judgments: str | Path | None = None,
    out: str | Path | None = None,
    against: str | Path | None = None,
) -> dict[str, Any]:
    """Writes samples.parquet into `out` (default `scores/<suite>-<responses file>` here) and returns plain JSON values:
    `suite, n, metrics {name: {value, stderr, n}}, samples` (a path) and what did not count: `missing`, `failed`,
    `judged`, `unparsable`, `unjudged`, `left_out` (metrics of the task); `intervals` of metrics with an interval of
    their own; which answers are `empty`, their mean `length`, and `classes`, what a function of ours made of them.
    Judgments of pairs need the baseline's answers in `against` (AlpacaEval's may come with its data).

    Raises `BadInput` naming wrong, duplicate or malformed rows, or an `out` that takes no files, before it scores.
    """
    kind = suite_named(suite)
    if responses is None or data is None:
        raise BadInput(f"give --{'responses' if responses is None else 'data'}: a file of {kind.title}")
    if judgments is not None and not kind.needs_judge:
        raise BadInput(f"{suite} has a scorer of its own; judgments go with {', '.join(ALONE | BESIDE)}")
    if against is not None and judgments is None:
        raise BadInput("goes with --judgments of pairs", file=str(against), field="--against")
    items = read_items(kind, data)
    grader, items = _stored_grader(kind, items, judgments, against, str(data))
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
    suite: Suite, items: list[Item], judgments: str | Path | None, against: str | Path | None, data: str
) -> tuple[Grader | None, list[Item]]:
    """How stored judgments are graded, as what they are of says, and the items with the baseline where it is needed."""
    if judgments is None:
        return None, items
    stored = stored_judgments(judgments, items, suite.turns)
    pairs = any(judgment.game for judgment in stored)
    grading = (BESIDE if pairs else ALONE).get(suite.name)
    if grading is None:
        problem = f"{suite.title} is judged {'alone' if pairs else 'beside a baseline'}, and these judgments are not"
        raise BadInput(problem, file=str(judgments))
    if pairs:
        if against is None and suite.name != "alpaca_eval":
            raise BadInput("judgments of pairs need the baseline's answers: give --against", file=str(judgments))
        items = with_baseline(suite, items, None if against is None else read_rows(against), str(against or data))
    elif against is not None:
        raise BadInput("these judgments are of answers alone: leave --against out", file=str(judgments))
    return Grader((grading,), StoredJudge(stored)), items


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"no folder to write samples into: {reason}", file=str(folder), field="out") from error


def compare_files(
    baseline: str | Path, candidate: str | Path, metric: str | None = None, margin: float = 0.0
) -> dict[str, Any]:
    """`compare_samples` on two samples files (or folders holding one), as plain JSON values.

    A metric that one side alone has is left out, and named in a warning.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise BadInput(f"margin {margin}: expected a finite number, zero or above")
    sides = {"baseline": read_samples(baseline), "candidate": read_samples(candidate)}
    compared = compare_samples(sides["baseline"], sides["candidate"], metric, margin)
    for side, samples in sides.items():
        alone = {sample.metric for sample in samples} - set(compared)
        if alone and metric is None:
            log.warning("not compared, as the %s alone has it: %s", side, ", ".join(sorted(alone)))
    return {name: result.model_dump(mode="json") for name, result in compared.items()}
