"""Answers to lm-eval's tasks: texts to its prompts, or log-likelihoods of its continuations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from alignment.errors import BadInput
from eval.asking import Asking
from eval.encoding import Prompt
from eval.generate import Answer, Generator
from eval.jsonl import read_pinned_rows
from eval.lm_eval_calls import told
from eval.lm_eval_task import ItemError, chat_prompts, continuations, open_task, plain_prompts, stop_strings
from eval.loglikelihood import ContinuationScorer
from eval.response_files import Response
from eval.suites.hub import hub_rows
from eval.suites.subsets import subsets, tasks_of
from eval.suites.suite import Item, StockTask


def task_texts(asking: Asking, items: Sequence[Item], positions: Sequence[int]) -> list[Response]:
    """The answers to the prompts at these positions. Prompts are made of all items, as examples are drawn in order."""
    prompts: dict[int, tuple[Prompt, tuple[str, ...]]] = {}
    for own, task, shots in _opened(asking, items):
        with _naming([items[place] for place in own]):
            made: Sequence[Prompt] = (chat_prompts if asking.chat else plain_prompts)(task, shots)
        prompts |= {place: (prompt, stop_strings(task)) for place, prompt in zip(own, made, strict=True)}
    answers: dict[int, Answer] = {}
    for until in dict.fromkeys(prompts[place][1] for place in positions):
        these = [place for place in positions if prompts[place][1] == until]
        given = asking.generator.answer(
            [prompts[place][0] for place in these],
            asking.spec.max_new_tokens,
            until,
            [asking.sampling(items[place]) for place in these],
        )
        answers |= dict(zip(these, given, strict=True))
    return [_response(items[place], answers[place]) for place in positions]


def task_choices(asking: Asking, items: Sequence[Item], positions: Sequence[int]) -> list[Response]:
    """The log-likelihoods of what lm-eval would have the model go on with, for the items at these positions."""
    loaded = asking.generator
    if not isinstance(loaded, Generator):
        problem = f"{asking.suite.name} wants log-likelihoods, which only a loaded model gives: kind: transformers"
        raise BadInput(problem, field="evals.generate.kind")
    scorer = ContinuationScorer(loaded.model, loaded.tokenizer, loaded.batch_tokens)
    wanted = set(positions)
    requests: dict[int, list[Any]] = {}
    for own, task, shots in _opened(asking, items):
        with _naming([items[place] for place in own]):
            made = continuations(task, shots, scorer.template if asking.chat else None)
        requests |= {place: part for place, part in zip(own, made, strict=True) if place in wanted}
    problems = {place: scorer.problem(requests[place]) for place in positions}
    fitting = [place for place in positions if problems[place] is None]
    found = iter(scorer.score([request for place in fitting for request in requests[place]]))
    scored = {place: tuple(next(found) for _ in requests[place]) for place in fitting}
    return [Response(items[place].id, (), problems[place], scored.get(place, ())) for place in positions]


def _response(item: Item, answer: Answer) -> Response:
    if answer.failed is not None:
        return Response(item.id, (), answer.failed)
    return Response(item.id, (answer.text,), tokens=(answer.tokens,))


def _opened(asking: Asking, items: Sequence[Item]) -> Iterator[tuple[list[int], Any, int]]:
    """The suite's tasks one after the other: positions of its items, the open task, how many examples it shows."""
    given = _examples(asking)
    for stock, own in tasks_of(asking.suite, items):
        shots = stock.num_fewshot if asking.spec.num_fewshot is None else asking.spec.num_fewshot
        shown = given if stock is asking.suite.task else _of_subset(asking, stock, given)
        _check_examples(asking, stock, shots, len(shown))
        part = [items[place] for place in own]
        with open_task(stock, part, shown if shots else (), shots) as task:
            yield own, task, shots


@contextmanager
def _naming(items: Sequence[Item]) -> Iterator[None]:
    try:
        yield
    except ItemError as error:
        raise BadInput(f"lm-eval cannot ask item {items[error.index].id}: {told(error)}") from error


def _examples(asking: Asking) -> list[dict[str, Any]]:
    if asking.spec.few_shot_data is not None:
        return [record for _, record in read_pinned_rows(asking.spec.few_shot_data)]
    if asking.spec.few_shot_hub is not None:
        return [record for _, record in hub_rows(asking.suite, asking.spec.few_shot_hub)]
    return []


def _of_subset(asking: Asking, stock: StockTask, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = subsets(asking.suite, examples) if examples else []
    return [record for name, record in zip(names, examples, strict=True) if asking.suite.members[name] is stock]


def _check_examples(asking: Asking, stock: StockTask, wanted: int, given: int) -> None:
    field = f"evals.{asking.suite.name}.few_shot_data"
    among_items = stock.few_shot_split == stock.split
    if not wanted or stock.own_examples or (among_items and not given):
        return
    if not given:
        raise BadInput(f"num_fewshot: {wanted} needs few_shot_data to draw examples from", field=field)
    if among_items:
        raise BadInput(f"{stock.name} draws its examples from other items; leave few_shot_data out", field=field)
    if given < wanted:
        raise BadInput(f"{given} examples for {stock.name}, {wanted} asked for", field=field)
