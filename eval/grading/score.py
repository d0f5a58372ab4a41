"""From items and responses to samples: by lm-eval's scorer, a classifier of ours, or a judge. Needs no GPU."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from alignment.errors import BadInput
from eval.answers.files import Response, match_responses
from eval.grading.grading import Answered, Grader
from eval.grading.lm_eval import replayed, sample_ids
from eval.judge.judgment import Judgment
from eval.statistics import Mean
from eval.suites.samples import Sample, metric_means, sample_detail
from eval.suites.suite import Classify, Item, Suite


@dataclass(frozen=True)
class Scored:
    """The result of scoring a suite.

    `missing` are items without a response, and `failed` items without a whole answer, with the reason; neither counts
    in a metric. `judged` is False if the suite needs a judge and there is none; then there are no samples. `unparsable`
    counts judgments without a readable verdict, and `unjudged` answers without a judgment. `intervals` are those of
    metrics whose interval the grading computes itself. `length` has the number of `answers` and their mean length in
    `characters` and, if known, in `tokens`. `classes` counts answers by metric and class, for a suite with a
    classifier. `empty` are items with a blank turn in their answer, which counts like every other answer.
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
    length: dict[str, float] = field(default_factory=dict)
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)


def score_suite(
    suite: Suite,
    items: Sequence[Item],
    responses: Sequence[Response],
    grader: Grader | None = None,
    file: str = "responses",
) -> Scored:
    """Samples and metrics of stored responses; errors name `file`.

    Without a `grader` a suite that needs a judge gets no samples. Raises `BadInput` as `match_responses` does.
    """
    matched, missing = match_responses(items, responses, suite.turns, file, suite.id_field)
    answered = [(item, response) for item, response in matched if response.failed is None]
    failed = {item.id: response.failed for item, response in matched if response.failed is not None}
    judgments: list[Judgment] = []
    samples: list[Sample] = []
    judged = grader is not None or not suite.needs_judge
    if grader is not None:
        judgments = grader.judge(answered) if answered else []
        samples = grader.samples(suite, answered, judgments) if answered else []
    elif suite.classify is not None:
        samples = _classified(suite, suite.classify, answered)
    elif suite.rank is not None:
        samples, problems = _ranked(suite, answered)
        failed |= problems
    elif not suite.needs_judge:
        samples, problems = replayed(suite, items, answered)
        failed |= problems
    intervals = {} if grader is None else grader.intervals(samples, judgments)
    if judged:
        lost = [item for item, _ in matched if item.id in failed]
        samples += [sample for item in lost for sample in _lost(suite, item, failed[item.id], grader)]
    places = 0 if grader is None else sum(len(grader.places(suite, item)) for item, _ in answered)
    return Scored(
        samples=samples,
        metrics=metric_means(samples, suite.metrics),
        n=sum(item.id not in failed for item, _ in matched),
        missing=missing,
        failed=failed,
        judged=judged,
        unparsable=sum(judgment.score is None for judgment in judgments),
        unjudged=places - len(judgments),
        judgments=judgments,
        intervals=intervals,
        length=mean_length([response for _, response in answered]),
        empty=[item.id for item, response in answered if not all(turn.strip() for turn in response.turns)],
        classes=_classes(samples) if suite.classify is not None else {},
    )


def mean_length(responses: Sequence[Response]) -> dict[str, float]:
    """Mean lengths of whole answers, all turns together; empty if there are no texts."""
    texts = [response for response in responses if response.turns]
    if not texts:
        return {}
    lengths = {
        "answers": float(len(texts)),
        "characters": sum(len("".join(response.turns)) for response in texts) / len(texts),
    }
    if all(len(response.tokens) == len(response.turns) for response in texts):
        lengths["tokens"] = sum(sum(response.tokens) for response in texts) / len(texts)
    return lengths


def _classified(suite: Suite, classify: Classify, answered: Answered) -> list[Sample]:
    samples: list[Sample] = []
    for item, response in answered:
        values, detail = classify(item, response.turns[0])
        text = sample_detail(**detail)
        samples += [
            Sample(suite.name, item.id, item.id, name, value, response.turns[0], text) for name, value in values.items()
        ]
    return sorted(samples, key=lambda sample: suite.metrics.index(sample.metric))


def _ranked(suite: Suite, answered: Answered) -> tuple[list[Sample], dict[str, str]]:
    """Samples of a suite of choices, and by id the items with another number of scores than of completions."""
    assert suite.choices is not None and suite.rank is not None
    failed: dict[str, str] = {}
    scored: list[tuple[Item, list[float]]] = []
    for item, response in answered:
        wanted, scores = len(suite.choices(item)[1]), [score for score, _ in response.loglikelihoods]
        if len(scores) == wanted:
            scored.append((item, scores))
        else:
            failed[item.id] = f"{len(scores)} scores for {wanted} completions"
    if failed and not scored:
        raise BadInput(f"{suite.title}: item {next(iter(failed))}: {next(iter(failed.values()))}")
    ranked = suite.rank(scored) if scored else []
    return [
        Sample(suite.name, item.id, item.id, metric, value, "", sample_detail(**detail))
        for metric, item, value, detail in sorted(ranked, key=lambda one: suite.metrics.index(one[0]))
    ], failed


def _classes(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    by_metric: dict[str, Counter[str]] = {}
    for sample in samples:
        if sample.value is not None:
            by_metric.setdefault(sample.metric, Counter())[json.loads(sample.detail)["class"]] += 1
    return {metric: dict(sorted(counts.items())) for metric, counts in by_metric.items()}


def _lost(suite: Suite, item: Item, why: str, grader: Grader | None) -> list[Sample]:
    if grader is not None:
        rows = grader.ids(suite, item)
    else:
        metrics = suite.metrics[:1] if suite.rank else suite.classify(item, "")[0] if suite.classify else suite.metrics
        rows = [(metric, name) for metric in metrics for name in sample_ids(suite, item, metric)]
    return [Sample(suite.name, name, item.id, metric, None, "", sample_detail(failed=why)) for metric, name in rows]
