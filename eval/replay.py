"""Stored responses scored by lm-eval's own filters and metrics, as if a model had just given them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.lm_eval_calls import quiet, seeded
from eval.lm_eval_task import ItemError

Stored = str | tuple[tuple[float, bool], ...]
"""A text, or per continuation its log-likelihood in nats and whether it is what greedy decoding would give."""


def replay(task: Any, responses: Mapping[int, Stored]) -> dict[int, dict[str, Any] | ItemError]:
    """Scores stored responses by their document's position.

    Gives per document a metric's name (with its filter, where the task has more than one) to its value:
    a number or truth value, or a list of them for metrics counted per instruction. Under
    `extracted,<filter>` stands what a filter took from a text, under `chosen` the likeliest choice. Repeats exactly:
    what is random in a scorer is seeded by the document alone. A document that the scorer fails on has an `ItemError`
    instead.
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
