"""Records with two answers and a verdict on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alignment.data.forms.messages import (
    Unusable,
    assistant,
    messages_of,
    split_last_turn,
    text_of,
    turns_of,
    user,
    with_system,
)
from alignment.data.forms.pairs import Fields, Pair, Sample, context, number, said
from alignment.data.forms.ranked import TIE
from alignment.data.rows import Content, Message, Scores
from alignment.recipe.data import Reading

Read = Callable[[Fields, Reading], Iterator[Sample]]

FIRST = frozenset({"a", "model_a", "response_a", "answer_a", "left", "first", "chosen_a"})
SECOND = frozenset({"b", "model_b", "response_b", "answer_b", "right", "second", "chosen_b"})
TIES = frozenset({"tie", "ties", "tied", "tie (bothbad)", "both_bad", "both", "neither", "none", "equal", "draw"})
NO_VERDICT = "winner is neither a, b nor tie"


def _ordered(
    prompts: tuple[Content, Content], answers: tuple[Content, Content], first: bool, scores: Scores = (None, None)
) -> Pair:
    """The pair in the order of the verdict."""
    if first:
        return Pair(prompts, *answers, scores)
    return Pair(prompts[::-1], *answers[::-1], scores[::-1])


def _winner(value: Any, reading: Reading) -> bool:
    """Whether the first answer won. Raises for a tie, and for what names neither."""
    if (first := said(value, reading)) is not None:
        return first
    word = value.strip().lower() if isinstance(value, str) else None
    if word in TIES:
        raise Unusable(TIE)
    if word not in FIRST | SECOND:
        raise Unusable(NO_VERDICT)
    return word in FIRST


def winner(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """Any comparison: `response_a`, `response_b` and `winner` (a, b, tie)."""
    prompt, sides = context(fields), (fields["response_a"], fields["response_b"])
    if prompt is None:
        raise Unusable("missing field prompt")
    first = _winner(fields["winner"], reading)
    if isinstance(prompt, str) and all(isinstance(side, str) for side in sides) and "system" not in reading.columns:
        if fields.get("system"):
            raise Unusable("system beside plain strings")
        texts = text_of(sides[0], "response_a"), text_of(sides[1], "response_b")
        yield _ordered((prompt, prompt), texts, first)
        return
    asked = with_system((user(prompt),) if isinstance(prompt, str) else prompt, fields)
    turns = turns_of(sides[0], "response_a", assistant), turns_of(sides[1], "response_b", assistant)
    yield _ordered((asked, asked), turns, first)


def arena(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """Chatbot Arena's and MT-Bench's `conversation_a`, `conversation_b` and `winner`."""
    first = _winner(fields["winner"], reading)
    sides = [split_last_turn(messages_of(fields[name], name)) for name in ("conversation_a", "conversation_b")]
    yield _ordered((sides[0][0], sides[1][0]), (sides[0][1], sides[1][1]), first)


def arena_table(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """The Arena's table of 55,000: `prompt`, `response_a` and `response_b` are JSON lists of a turn each."""
    won = [number(fields.get(f"winner_{side}")) for side in ("model_a", "model_b")]
    if None in won or won[0] == won[1]:
        raise Unusable(TIE)
    asked = _turns(fields["prompt"], "prompt")
    sides = [_interleaved(asked, _turns(fields[name], name)) for name in ("response_a", "response_b")]
    yield _ordered((sides[0][:-1], sides[1][:-1]), (sides[0][-1:], sides[1][-1:]), won[0] == 1)


def _turns(value: Any, field: str) -> list[str]:
    try:
        turns = json.loads(value) if isinstance(value, str) and value.lstrip().startswith("[") else [value]
    except (ValueError, RecursionError):
        turns = [value]
    return [text_of(turn, field) for turn in turns]


def _interleaved(asked: list[str], answered: list[str]) -> tuple[Message, ...]:
    if len(asked) != len(answered) or not asked:
        raise Unusable("prompts and answers differ in number")
    return tuple(turn for pair in zip(map(user, asked), map(assistant, answered), strict=True) for turn in pair)


def shp(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """SHP's `history`, `human_ref_A`, `human_ref_B`; `labels` is 1 where A is preferred, the scores are votes."""
    prompt = (user(text_of(fields["history"], "history")),)
    answers = tuple((assistant(text_of(fields[name], name)),) for name in ("human_ref_A", "human_ref_B"))
    label = number(fields["labels"])
    if label not in (0, 1):
        raise Unusable("labels is not 0 or 1")
    yield _ordered((prompt, prompt), (answers[0], answers[1]), label == 1, _both(fields, "score_A", "score_B"))


def webgpt(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """WebGPT's `answer_0`, `answer_1` to `question.full_text`, with scores that sum to 0."""
    question = fields["question"]
    asked = question.get("full_text") if isinstance(question, Mapping) else question
    prompt = (user(text_of(asked, "question")),)
    scores = _both(fields, "score_0", "score_1")
    if scores[0] is None or scores[1] is None:
        raise Unusable("score_0 or score_1 is not a number")
    if scores[0] == scores[1]:
        raise Unusable(TIE)
    answers = tuple((assistant(text_of(fields[name], name)),) for name in ("answer_0", "answer_1"))
    yield _ordered((prompt, prompt), (answers[0], answers[1]), scores[0] > scores[1], scores)


def _both(fields: Fields, first: str, second: str) -> Scores:
    scores = number(fields.get(first)), number(fields.get(second))
    return (None, None) if None in scores else scores


def numbered(verdict: str, answers: tuple[str, str], values: tuple[int, int], prompt: str = "prompt") -> Read:
    """A form of two columns of answers and a number (or letter) that says which is better; others are a tie.

    The rows are conversations.
    """

    def read(fields: Fields, reading: Reading) -> Iterator[Sample]:
        asked = context(fields) if prompt in ("prompt", "instruction") else text_of(fields[prompt], prompt)
        if asked is None:
            raise Unusable(f"missing field {prompt}")
        turns = with_system((user(asked),) if isinstance(asked, str) else asked, fields)
        contents = [turns_of(fields[name], name, assistant) for name in answers]
        value = number(fields[verdict])
        if value not in values:
            raise Unusable(TIE if value is not None else f"{verdict} is not a number")
        yield _ordered((turns, turns), (contents[0], contents[1]), value == values[0])

    return read


def strength(verdict: str, answers: tuple[str, str], prompt: str) -> Read:
    """HelpSteer's verdicts from -3 (the first is much better) to 3 (the second is); 0 is a tie."""

    def read(fields: Fields, reading: Reading) -> Iterator[Sample]:
        value = number(fields[verdict])
        if value is None:
            raise Unusable(f"{verdict} is not a number")
        if not value:
            raise Unusable(TIE)
        turns = nemo_turns(fields[prompt], prompt)
        contents = [turns_of(fields[name], name, assistant) for name in answers]
        yield _ordered((turns, turns), (contents[0], contents[1]), value < 0)

    return read


NEMO_TURN = "<extra_id_1>"


def nemo_turns(value: Any, field: str) -> tuple[Message, ...]:
    """HelpSteer's prompt: messages, or a text in which `<extra_id_1>User` and `<extra_id_1>Assistant` begin the later
    turns."""
    turns = turns_of(value, field, user)
    if not isinstance(value, str) or NEMO_TURN not in value:
        return turns
    first, *later = value.split(NEMO_TURN)
    found = [user(first.strip("\n"))] if first.strip() else []
    for turn in later:
        name, _, text = turn.partition("\n")
        speak = {"user": user, "assistant": assistant}.get(name.strip().lower())
        if speak is None:
            raise Unusable("wrong roles")
        if speak is user or text.strip():  # the last mark only opens the answer
            found.append(speak(text.strip("\n")))
    return tuple(found)


def summaries(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """OpenAI's summarize_from_feedback: two `summaries` of a post and the `choice` of one; text that ends in TL;DR."""
    info, given = fields["info"], fields["summaries"]
    choice = number(fields["choice"])
    if not isinstance(info, Mapping) or not isinstance(given, list) or len(given) != 2 or choice not in (0, 1):
        raise Unusable("not two summaries and a choice")
    parts = [
        f"{name.upper()}: {info[key].strip()}"
        for name, key in (("subreddit", "subreddit"), ("title", "title"), ("post", "post"), ("article", "article"))
        if isinstance(info.get(key), str) and info[key].strip()
    ]
    prompt = "\n\n".join([*parts, "TL;DR:"])
    texts = [text_of(item.get("text") if isinstance(item, Mapping) else None, "summaries") for item in given]
    yield _ordered((prompt, prompt), (texts[0], texts[1]), choice == 0)
