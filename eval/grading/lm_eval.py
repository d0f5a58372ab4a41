"""Samples of lm-eval's tasks: stored responses replayed through its own scorers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.errors import BadInput
from eval.answers.files import Response
from eval.suites.lm_eval_task import ItemError, open_task
from eval.suites.lm_eval_tasks import quiet, root_cause, seeded, tasks_of
from eval.suites.samples import Sample, sample_detail
from eval.suites.suite import Item, Suite

# lm-eval's own filters and metrics score stored responses as if a model had just given them.

Stored = str | tuple[tuple[float, bool], ...]
"""A text; or for each continuation its log-likelihood in nats, and whether it is the greedy continuation."""


def replay(task: Any, responses: Mapping[int, Stored]) -> dict[int, dict[str, Any] | ItemError]:
    """Scores stored responses, which are given by the position of their document.

    Returns, for each document, metric to value: a number or truth value, or a list of them for metrics that are counted
    per instruction. A metric's name contains its filter if the task has several. `extracted,<filter>` is the text that
    a filter extracted, and `chosen` the likeliest choice. A document on which the scorer fails has an `ItemError`
    instead. Results are reproducible, because random numbers in a scorer are seeded for each document.
    """
    docs = list(task.eval_docs)
    instances = {index: _instances(task, docs[index], index, stored) for index, stored in responses.items()}
    task._instances = [instance for made in instances.values() for instance in made]
    task.apply_filters()
    scores: dict[int, dict[str, Any] | ItemError] = {}
    with quiet():
        for index, made in instances.items():
            try:
                scores[index] = _score(task, docs[index], made)
            except Exception as error:
                scores[index] = ItemError(index)
                scores[index].__cause__ = error  # type: ignore[union-attr]
    return scores


def _instances(task: Any, doc: dict[str, Any], index: int, stored: Stored) -> list[Any]:
    from lm_eval.api.instance import Instance

    answers: list[Any] = [stored] if isinstance(stored, str) else list(stored)
    kind = "generate_until" if isinstance(stored, str) else "loglikelihood"
    return [
        Instance(kind, doc, ("", ""), place, (task.config.task, index, 1), resps=[answer])
        for place, answer in enumerate(answers)
    ]


def _score(task: Any, doc: dict[str, Any], instances: list[Any]) -> dict[str, Any]:
    if task.OUTPUT_TYPE != "generate_until" and len(instances) != (expected := _choices(task, doc)):
        raise ValueError(f"{len(instances)} log-likelihoods for {expected} continuations")
    scores: dict[str, Any] = {}
    if task.OUTPUT_TYPE == "multiple_choice" and not task.multiple_input:
        choices = task.doc_to_choice(doc)
        likeliest = max(range(len(choices)), key=lambda place: instances[place].resps[0][0])
        scores["chosen"] = str(choices[likeliest])
    for name in instances[0].filtered_resps:
        results = [instance.filtered_resps[name] for instance in instances]
        with seeded():
            metrics = task.process_results(doc, results)
        if name == "none":
            scores |= metrics
        else:
            scores |= {f"{metric},{name}": value for metric, value in metrics.items()}
            scores[f"extracted,{name}"] = str(results[0])
    return scores


def _choices(task: Any, doc: dict[str, Any]) -> int:
    """How many continuations lm-eval asks about a document."""
    context: Any = [""] * len(task.doc_to_choice(doc)) if task.multiple_input else ""
    asked = task.construct_requests(doc=doc, ctx=context, metadata=(task.config.task, 0, 1))
    return len(asked) if isinstance(asked, list) else 1


def replayed(
    suite: Suite, items: Sequence[Item], answered: Sequence[tuple[Item, Response]]
) -> tuple[list[Sample], dict[str, str]]:
    """Samples in the items' order, and by id the items that the scorer failed on, with the reason.

    Raises `BadInput` that names an item if the scorer fails on all of them, or if its language data is missing.
    """
    stored = {item.id: response for item, response in answered}
    samples: dict[str, list[Sample]] = {}
    failed: dict[str, str] = {}
    for stock, own in tasks_of(suite, items) if answered else ():
        part = [items[place] for place in own]
        responses = {place: _stored(stored[item.id]) for place, item in enumerate(part) if item.id in stored}
        if not responses:
            continue
        with open_task(stock, part) as task:
            scores = replay(task, responses)
        for place, values in scores.items():
            item = part[place]
            if isinstance(values, ItemError):
                failed[item.id] = _problem(suite, values)
            else:
                subset = stock.subset if suite.members else None
                samples[item.id] = _item_samples(suite, item, stored[item.id], values, subset)
    if failed and not samples:
        raise BadInput(f"{suite.title}: item {next(iter(failed))}: {next(iter(failed.values()))}")
    return [sample for item, _ in answered for sample in samples.get(item.id, ())], failed


def sample_ids(suite: Suite, item: Item, metric: str) -> list[str]:
    """The ids of an item's samples in a metric: one id, or one for each instruction (IFEval)."""
    if metric.startswith("inst_level"):
        return [f"{item.id}:{index}" for index in range(len(item.fields["instruction_id_list"]))]
    return [item.id]


def _stored(response: Response) -> Stored:
    return response.loglikelihoods or response.turns[0]


def _problem(suite: Suite, error: ItemError) -> str:
    cause = error.__cause__
    if isinstance(cause, LookupError) and "punkt" in str(cause):
        raise BadInput(
            f"{suite.title} splits sentences with NLTK's punkt_tab, which is not installed: run "
            "`python -m nltk.downloader punkt_tab`, set NLTK_DATA to a folder that holds tokenizers/punkt_tab, "
            "or put such a folder, named nltk_data, beside the data file"
        ) from error
    return f"the suite's own scorer fails: {root_cause(error)}"


def _item_samples(
    suite: Suite, item: Item, response: Response, values: dict[str, Any], subset: str | None
) -> list[Sample]:
    return [
        sample for metric in suite.metrics for sample in _metric_samples(suite, item, response, metric, values, subset)
    ]


def _metric_samples(
    suite: Suite, item: Item, response: Response, metric: str, values: dict[str, Any], subset: str | None
) -> list[Sample]:
    value, names = values.get(metric), sample_ids(suite, item, metric)
    text = response.turns[0] if response.turns else str(values.get("chosen", ""))
    if isinstance(value, list):  # one sample for each instruction; they share a cluster
        kinds = item.fields["instruction_id_list"]
        return [
            Sample(suite.name, name, item.id, metric, float(part), text, sample_detail(instruction=kind))
            for name, kind, part in zip(names, kinds, value, strict=True)
        ]
    detail = sample_detail(
        extracted=values.get(f"extracted,{metric.partition(',')[2]}"),
        subset=subset,
        loglikelihoods=[number for number, _ in response.loglikelihoods] or None,
    )
    return [Sample(suite.name, item.id, item.id, metric, None if value is None else float(value), text, detail)]
