"""`align score` and `align compare`: files in, files out, with no recipe and no store."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from eval.compare import compare_samples
from eval.judge.judgment import write_judgments
from eval.judge.stored import stored_judge
from eval.nltk_data import nltk_data_beside
from eval.response_files import read_responses
from eval.samples import SAMPLES_FILE, read_samples, write_samples
from eval.scores import JUDGMENTS_FILE, metrics_record
from eval.scoring import score_suite
from eval.suites import suite_named
from eval.suites.items import read_items


def score_files(
    suite: str,
    responses: str | Path | None,
    data: str | Path | None,
    judgments: str | Path | None = None,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Writes samples.parquet into `out` (default `scores/<suite>-<responses file>` here) and returns plain JSON values:
    `suite, n, metrics {name: {value, stderr, n}}, samples` (a path) and what did not count: `missing`, `failed`,
    `judged`, `unparsable`, `unjudged`, `left_out` (metrics of the task); which answers are `empty`, their mean
    `length`, and `classes`, what a function of ours made of them.

    Raises `BadInput` naming wrong, duplicate or malformed rows, or an `out` that takes no files, before it scores.
    """
    kind = suite_named(suite)
    if responses is None or data is None:
        raise BadInput(f"give --{'responses' if responses is None else 'data'}: a file of {kind.title}")
    if judgments is not None and not kind.needs_judge:
        raise BadInput(f"{suite} has a scorer of its own; judgments go with mt_bench")
    items = read_items(kind, data)
    judge = None if judgments is None else stored_judge(judgments, items, kind.turns)
    answers = read_responses(responses)
    folder = Path(out) if out is not None else Path("scores") / f"{suite}-{Path(responses).stem}"
    _make_folder(folder)
    with nltk_data_beside(data):
        scored = score_suite(kind, items, answers, judge, str(responses))
    write_samples(folder / SAMPLES_FILE, scored.samples)
    if scored.judgments:
        write_judgments(folder / JUDGMENTS_FILE, scored.judgments)
    return {
        "suite": suite,
        "n": scored.n,
        "metrics": metrics_record(scored.metrics),
        "samples": str(folder / SAMPLES_FILE),
        "missing": scored.missing,
        "failed": scored.failed,
        "empty": scored.empty,
        "judged": scored.judged,
        "unparsable": scored.unparsable,
        "unjudged": scored.unjudged,
        "length": scored.length,
        "classes": scored.classes,
        "left_out": list(kind.left_out),
    }


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
    """`compare_samples` on two samples files (or folders holding one), as plain JSON values."""
    if not (math.isfinite(margin) and margin >= 0):
        raise BadInput(f"margin {margin}: expected a finite number, zero or above")
    compared = compare_samples(read_samples(baseline), read_samples(candidate), metric, margin)
    return {name: result.model_dump(mode="json") for name, result in compared.items()}
