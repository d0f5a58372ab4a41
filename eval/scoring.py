"""From items and responses to samples: lm-eval's scorer where there is one, else a judge's verdicts. No GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.errors import BadInput
from eval.grading.grader import Grader
from eval.grading.grading import Answered
from eval.judge.judgment import Judgment
from eval.lm_eval_task import ScorerError, open_task, replay
from eval.response_files import Response, match_responses
from eval.samples import Sample, metric_means
from eval.statistics import Mean
from eval.suites.suite import Item, StockTask, Suite


@dataclass(frozen=True)
class Scored:
    """What scoring a suite gives.

    `missing` are items without a response, `failed` those whose answer is not whole; neither counts in a
    metric. `judged` is False where a suite needs a judge and has none: there are no samples then.
    `unparsable` counts judgments without a verdict (never guessed), `unjudged` answers without a judgment.
    `intervals` are those of metrics that are published with one of their own making.
    """

    samples: list[Sample]
    metrics: dict[str, Mean]
    n: int
    missing: list[str]
    failed: dict[str, str]
    judged: bool = True
    unparsable: int = 0
    unjudged: int = 0
    judgments: list[Judgment] = field(default_factory=list)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


def score_suite(
    suite: Suite,
    items: Sequence[Item],
    responses: Sequence[Response],
    grader: Grader | None = None,
    file: str = "responses",
) -> Scored:
    """Samples and metrics of stored responses; `file` is named in errors about them."""
    matched, missing = match_responses(items, responses, suite.turns, file)
    answered = [(item, response) for item, response in matched if response.failed is None]
    failed = [(item, response.failed) for item, response in matched if response.failed is not None]
    judgments: list[Judgment] = []
    samples: list[Sample] = []
    if suite.task is not None:
        samples = _replayed(suite, suite.task, answered) if answered else []
    elif grader is not None and answered:
        judgments = grader.judge(answered)
        samples = grader.samples(suite, answered, judgments)
    judged = suite.task is not None or grader is not None
    intervals = grader.intervals(samples, judgments) if grader is not None else {}
    if judged:
        samples += [sample for item, why in failed for sample in _failed_samples(suite, item, why, grader)]
    places = 0 if grader is None else sum(len(grader.places(suite, item)) for item, _ in answered)
    return Scored(
        samples=samples,
        metrics=metric_means(samples, suite.metrics),
        n=len(answered),
        missing=missing,
        failed={item.id: why for item, why in failed},
        judged=judged,
        unparsable=sum(judgment.score is None for judgment in judgments),
        unjudged=places - len(judgments),
        judgments=judgments,
        intervals=intervals,
    )


def _replayed(suite: Suite, task: StockTask, answered: Answered) -> list[Sample]:
    with open_task(task, [item for item, _ in answered]) as opened:
        try:
            scores = replay(opened, [response.turns[0] for _, response in answered])
        except ScorerError as error:
            raise _scorer_problem(suite, answered[error.index][0], error.__cause__) from error
    samples: list[Sample] = []
    for (item, response), values in zip(answered, scores, strict=True):
        for metric in suite.metrics:
            samples += _samples_of(suite, item, response, metric, values)
    return samples


def _scorer_problem(suite: Suite, item: Item, cause: BaseException | None) -> BadInput:
    if isinstance(cause, LookupError) and "punkt" in str(cause):
        return BadInput(
            f"{suite.title} splits sentences with NLTK's punkt_tab, which is not here: run "
            "`python -m nltk.downloader punkt_tab`, set NLTK_DATA to a folder that holds tokenizers/punkt_tab, "
            "or put such a folder, named nltk_data, beside the data file"
        )
    return BadInput(f"{suite.title}'s own scorer fails on item {item.id}: {type(cause).__name__}: {cause}")


def _samples_of(suite: Suite, item: Item, response: Response, metric: str, values: dict[str, Any]) -> list[Sample]:
    value, text, names = values[metric], response.turns[0], sample_ids(suite, item, metric)
    if isinstance(value, list):  # one value per instruction: rows of their own that share a cluster
        kinds = item.fields["instruction_id_list"]
        return [
            Sample(suite.name, name, item.id, metric, float(part), text, _detail(instruction=kind))
            for name, kind, part in zip(names, kinds, value, strict=True)
        ]
    extracted = values.get(f"extracted,{metric.partition(',')[2]}")
    detail = "{}" if extracted is None else _detail(extracted=extracted)
    return [Sample(suite.name, item.id, item.id, metric, float(value), text, detail)]


def sample_ids(suite: Suite, item: Item, metric: str) -> list[str]:
    """The ids of an item's rows in one metric of a suite with a scorer: one row, or one per instruction (IFEval)."""
    if metric.startswith("inst_level"):
        return [f"{item.id}:{index}" for index in range(len(item.fields["instruction_id_list"]))]
    return [item.id]


def _failed_samples(suite: Suite, item: Item, why: str, grader: Grader | None) -> list[Sample]:
    if grader is not None:
        rows = grader.ids(suite, item)
    else:
        rows = [(metric, name) for metric in suite.metrics for name in sample_ids(suite, item, metric)]
    return [Sample(suite.name, name, item.id, metric, None, "", _detail(failed=why)) for metric, name in rows]


def _detail(**values: Any) -> str:
    return json.dumps(values, ensure_ascii=False, sort_keys=True)
