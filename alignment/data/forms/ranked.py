"""Records with several answers to one prompt, in an order of scores or ranks, and the pairs that are made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any, NamedTuple

from alignment.data.forms.messages import Unusable, assistant, text_of, turns_of, user
from alignment.data.forms.pairs import HH_TURN, Fields, Pair, Sample, context, number
from alignment.data.rows import Content, encode
from alignment.digest import json_digest
from alignment.recipe.data import Reading


class Answer(NamedTuple):
    """One answer; a higher `order` is better. `score` is the order where the data gives scores, None for ranks."""

    content: Content
    order: float
    score: float | None = None


def scored(content: Content, score: float) -> Answer:
    """An answer that is ranked by its score; the score is kept with it."""
    return Answer(content, score, score)


def ranked(content: Content, rank: float) -> Answer:
    """Rank 1 (or 0) is the best."""
    return Answer(content, -rank)


TOO_FEW = "fewer than two answers that are scored or ranked"
TIE = "tie"


def compared(prompt: Content, answers: Sequence[Answer], reading: Reading) -> Iterator[Sample]:
    """The pairs that `pairing` makes of the answers, the best first. Raises where all are equal or alone."""
    if len(answers) < 2:
        raise Unusable(TOO_FEW)
    order = sorted(answers, key=lambda answer: -answer.order)  # stable: the first of equals stays the first
    pairs = {
        "best_worst": [(order[0], order[-1])],
        "adjacent": pairwise(order),
    }.get(reading.pairing, combinations(order, 2))
    unequal = [(better, worse) for better, worse in pairs if better.order > worse.order]
    if not unequal:
        raise Unusable(TIE)
    if reading.pairing == "random":
        said = json_digest([encode(prompt), *sorted(encode(answer.content) for answer in answers)])
        unequal = [unequal[int(said[:16], 16) % len(unequal)]]
    for better, worse in unequal:
        yield Pair((prompt, prompt), better.content, worse.content, (better.score, worse.score))


def listed(value: Any, field: str) -> list[Any]:
    """The value as a list; raises `Unusable` where it is none."""
    if not isinstance(value, list | tuple):
        raise Unusable(f"{field} is not a list")
    return list(value)


def each(value: Any, field: str) -> list[Mapping[str, Any]]:
    """A list of objects; Parquet's struct of lists is turned into one."""
    if isinstance(value, Mapping) and value and all(isinstance(column, list | tuple) for column in value.values()):
        value = [dict(zip(value, cells, strict=False)) for cells in zip(*value.values(), strict=False)]
    if not all(isinstance(item, Mapping) for item in listed(value, field)):
        raise Unusable(f"{field} is not a list of objects")
    return list(value)


def said(text: Any, field: str) -> Content:
    """A conversation's end in one assistant's turn of this text."""
    return (assistant(text_of(text, field)),)


# The forms --------------------------------------------------------------------------------------


def responses(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """Any N-way data: `responses` with `scores`, more for better, or `ranks`, 1 for the best."""
    prompt = context(fields)
    if prompt is None:
        raise Unusable("missing field prompt")
    name, make = ("scores", scored) if "scores" in fields else ("ranks", ranked)
    texts, values = listed(fields["responses"], "responses"), listed(fields[name], name)
    if len(texts) != len(values):
        raise Unusable(f"responses and {name} differ in number")
    plain = isinstance(prompt, str) and all(isinstance(text, str) for text in texts) and "system" not in reading.columns
    if not plain and isinstance(prompt, str):
        prompt = (user(prompt),)
    if not plain and fields.get("system"):
        prompt = ({"role": "system", "content": text_of(fields["system"], "system")}, *prompt)
    elif fields.get("system"):
        raise Unusable("system beside plain strings")
    contents: list[Content] = [
        text_of(text, "responses") if plain else turns_of(text, "responses", assistant) for text in texts
    ]
    numbers = [number(value) for value in values]
    answers = [make(content, value) for content, value in zip(contents, numbers, strict=True) if value is not None]
    yield from compared(prompt, answers, reading)


def ultrafeedback(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """The raw UltraFeedback's `completions`: by `overall_score`, or else the mean of the aspects' ratings."""
    prompt = (user(text_of(fields["instruction"], "instruction")),)
    answers = []
    for item in each(fields["completions"], "completions"):
        scores = [number(item.get(name)) for name in ("overall_score", "fine-grained_score")]
        if ratings := _ratings(item.get("annotations")):
            scores.append(sum(ratings) / len(ratings))
        if (score := next((score for score in scores if score is not None), None)) is not None:
            answers.append(scored(said(item.get("response"), "response"), score))
    yield from compared(prompt, answers, reading)


def _ratings(annotations: Any) -> list[float]:
    aspects = annotations.values() if isinstance(annotations, Mapping) else ()
    rated = (number(aspect.get("Rating")) for aspect in aspects if isinstance(aspect, Mapping))
    return [rating for rating in rated if rating is not None]


def distilabel(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """distilabel's `generations` with `ratings` (or an older `rating`) of an `instruction` or `input`."""
    name = "instruction" if "instruction" in fields else "input"
    prompt: tuple[Any, ...] = (user(text_of(fields[name], name)),)
    if system := fields.get("system") or fields.get("system_prompt"):
        prompt = ({"role": "system", "content": text_of(system, "system")}, *prompt)
    rated = "ratings" if "ratings" in fields else "rating"
    texts, ratings = listed(fields["generations"], "generations"), listed(fields[rated], rated)
    if len(texts) != len(ratings):
        raise Unusable(f"generations and {rated} differ in number")
    numbers = zip(texts, map(number, ratings), strict=True)
    answers = [scored(said(text, "generations"), value) for text, value in numbers if value is not None and text]
    yield from compared(prompt, answers, reading)


def nectar(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """Nectar's `answers` with a `rank`, to a dialogue written as HH-RLHF writes it: text, as HH-RLHF's own."""
    prompt = text_of(fields["prompt"], "prompt")
    opened = prompt.rstrip().endswith(HH_TURN)
    prompt = prompt.rstrip() if opened else prompt
    answers = []
    for item in each(fields["answers"], "answers"):
        rank, text = number(item.get("rank")), text_of(item.get("answer"), "answer")
        if rank is not None:
            content: Content = f" {text.lstrip()}" if opened else said(text, "answer")
            answers.append(ranked(content, rank))
    yield from compared(prompt if opened else (user(prompt),), answers, reading)


def stack_exchange(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """StackExchange's `answers` with `pm_score` to a `question`."""
    prompt = (user(text_of(fields["question"], "question")),)
    answers = [
        scored(said(item.get("text"), "text"), score)
        for item in each(fields["answers"], "answers")
        if (score := number(item.get("pm_score"))) is not None
    ]
    yield from compared(prompt, answers, reading)
