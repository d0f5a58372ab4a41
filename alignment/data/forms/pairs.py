"""Records that say which side is chosen, or give one completion a thumb up or down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from alignment.data.forms.messages import (
    EMPTY,
    TOOLS,
    Unusable,
    assistant,
    instruction_prompt,
    messages_of,
    plain_texts,
    require_no_steps,
    require_no_system,
    split_last_turn,
    text_of,
    turns_of,
    user,
    whole_conversation,
    with_steps,
    with_system,
)
from alignment.data.rows import Content, Message, Scores
from alignment.recipe.data import Reading

HH_TURN = "\n\nAssistant:"
Fields = dict[str, Any]


class Pair(NamedTuple):
    """Two answers to one prompt, before it is known whether they say anything. `prompts` are of either side."""

    prompts: tuple[Content, Content]
    chosen: Content
    rejected: Content
    scores: Scores = (None, None)


class Thumb(NamedTuple):
    """One answer that is wanted or not."""

    prompt: Content
    completion: Content
    label: bool


Sample = Pair | Thumb


# Pairs ------------------------------------------------------------------------------------------


def pair(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """`chosen` and `rejected`: strings, messages or whole conversations; the prompt apart from them or in both."""
    if fields.get("status") == "tie":  # distilabel's word for two answers of one rating
        raise Unusable("tie")
    (prompt, chosen), (other, rejected) = _sides(fields, speaks="system" in reading.columns)
    yield Pair((prompt, other), chosen, rejected, scores_of(fields))


def asked_pair(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """Intel's orca pairs and others whose prompt is a `question` (or distilabel's `input`): conversations."""
    name, chosen = ("question" if "question" in fields else "input"), fields["chosen"]
    bare = without(fields, name)
    if HH_TURN in chosen if isinstance(chosen, str) else isinstance(chosen, list) and len(chosen) > 1:
        yield from pair(bare, reading)  # both sides hold the whole conversation
        return
    yield from pair(bare | {"prompt": list(turns_of(fields[name], name, user))}, reading)


def argilla_pair(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """argilla's `chosen_response` and `rejected_response` to an `instruction`."""
    sides = {"chosen": fields["chosen_response"], "rejected": fields["rejected_response"]}
    yield from pair(fields | sides, reading)


def output_pair(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """OpenAI's, Together's and Fireworks' `input`, `preferred_output` and `non_preferred_output`."""
    given = fields["input"]
    if isinstance(given, Mapping):
        if given.get("tools") not in EMPTY:
            raise Unusable(TOOLS)
        given = given.get("messages")
    prompt = turns_of(given, "input.messages", user)
    sides = {
        side: list(turns_of(fields[name], name, assistant))
        for side, name in (("chosen", "preferred_output"), ("rejected", "non_preferred_output"))
    }
    yield from pair({"prompt": list(prompt), **sides}, reading)


def question_answers(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """The paired StackExchange's `response_j`, the better one, and `response_k`."""
    prompt = (user(text_of(fields["question"], "question")),)
    better, worse = ((assistant(text_of(fields[name], name)),) for name in ("response_j", "response_k"))
    yield Pair((prompt, prompt), better, worse)


SCORES = (
    ("chosen_score", "rejected_score"),
    ("score_chosen", "score_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("chosen_reward", "rejected_reward"),
)
"""How data sets call the two sides' scores."""
SCORE_NAMES = frozenset(name for names in SCORES for name in names)


def scores_of(fields: Mapping[str, Any]) -> Scores:
    """The scores of both sides, or of none: one alone says nothing."""
    if SCORE_NAMES.isdisjoint(fields):  # as of most data sets
        return None, None
    for names in SCORES:
        chosen, rejected = (number(fields.get(name)) for name in names)
        if chosen is not None and rejected is not None:
            return chosen, rejected
    return None, None


def number(value: Any) -> float | None:
    """A finite number, or one that is written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        read = float(value)
    except (ValueError, OverflowError):
        return None
    return read if abs(read) < float("inf") else None  # false for NaN too


def without(fields: Fields, *names: str) -> Fields:
    """The fields but those of these names."""
    return {name: value for name, value in fields.items() if name not in names}


def _sides(fields: Fields, *, speaks: bool) -> tuple[tuple[Content, Content], tuple[Content, Content]]:
    """(prompt, completion) of the chosen and of the rejected side; `speaks` makes messages of plain strings."""
    chosen, rejected = fields["chosen"], fields["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Unusable("chosen and rejected have different forms")
    prompt = context(fields)
    if isinstance(chosen, str) and isinstance(prompt, str) and speaks:
        prompt = (user(prompt),)
    if isinstance(chosen, str) and (prompt is None or isinstance(prompt, str)):
        chosen, rejected = text_of(chosen, "chosen"), text_of(rejected, "rejected")
        require_no_system(fields)
        if prompt is not None:
            prompt = with_steps(prompt, fields)
            return (prompt, chosen), (prompt, rejected)
        require_no_steps(fields)
        return _split_hh(chosen), _split_hh(rejected)
    return _side(prompt, chosen, "chosen", fields), _side(prompt, rejected, "rejected", fields)


def context(fields: Fields) -> Content | None:
    """What comes before both completions, if the record says it apart from them."""
    if "prompt" in fields:
        prompt = fields["prompt"]
        return text_of(prompt, "prompt") if isinstance(prompt, str) else messages_of(prompt, "prompt")
    if "instruction" in fields:
        return instruction_prompt(fields)
    if isinstance(fields.get("chosen"), list):
        return None
    for name in ("conversations", "messages"):
        if name in fields:
            return messages_of(fields[name], name)
    return None


def _side(prompt: Content | None, completion: Any, field: str, fields: Fields) -> tuple[Content, Content]:
    turns = turns_of(completion, field, assistant)
    return split_last_turn(with_system(_conversation(prompt, turns), fields))


def _conversation(prompt: Content | None, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Prompt and turns in one, where the turns may already begin with the prompt."""
    if prompt is None:
        if len(turns) < 2:
            raise Unusable("missing field prompt")
        return turns
    if isinstance(prompt, str):
        if len(turns) < 2:
            return (user(prompt), *turns)
        asked = [message["content"].strip() for message in turns if message["role"] == "user"]
        if prompt.strip() not in asked:
            raise Unusable("prompts differ")
        return turns
    return turns if prompt and turns[: len(prompt)] == prompt else prompt + turns


def _split_hh(text: str) -> tuple[str, str]:
    """Prompt up to and with the last "\\n\\nAssistant:", completion the rest exactly."""
    before, mark, completion = text.rpartition(HH_TURN)
    if not mark:
        raise Unusable("missing field prompt")
    return before + mark, completion


# Unpaired ---------------------------------------------------------------------------------------


LABELS = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "good", "up", "thumbs_up", "thumbsup", "like", "positive"), True),
    **dict.fromkeys(("+1", "👍", "desirable", "chosen", "accepted"), True),
    **dict.fromkeys(("false", "0", "0.0", "no", "bad", "down", "thumbs_down", "thumbsdown", "dislike"), False),
    **dict.fromkeys(("negative", "-1", "-1.0", "👎", "undesirable", "rejected"), False),
}
"""Words of a label, in lower case, with _ for a blank or a hyphen between words."""


def unpaired(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """A completion, or a whole conversation, with `label` or LLaMA-Factory's `kto_tag`."""
    label = label_of(fields["label"] if "label" in fields else fields["kto_tag"], reading)
    prompt, completion = _answered(fields)
    yield Thumb(prompt, completion, label)


def feedback(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """A `response` with a `feedback` or `label`, or BeaverTails' `is_safe`: conversations."""
    name = next(name for name in ("feedback", "label", "is_safe") if name in fields)
    label = label_of(fields[name], reading, name)
    turns = turns_of(fields["prompt"], "prompt", user) + turns_of(fields["response"], "response", assistant)
    yield Thumb(*split_last_turn(with_system(turns, fields)), label)


def _answered(fields: Fields) -> tuple[Content, Content]:
    if "completion" not in fields and "instruction" in fields and "output" in fields:
        fields = fields | {"completion": fields["output"]}  # Alpaca's name for the answer
    if "completion" not in fields:
        if (conversation := whole_conversation(fields)) is None:
            raise Unusable("missing field completion")
        return conversation
    if "prompt" not in fields and "instruction" in fields:
        return _side(instruction_prompt(fields), fields["completion"], "completion", fields)
    if (texts := plain_texts(fields)) is not None:
        return texts
    prompt = fields["prompt"]
    context: Content = prompt if isinstance(prompt, str) else messages_of(prompt, "prompt")
    return _side(context, fields["completion"], "completion", fields)


def label_of(value: Any, reading: Reading, name: str = "label") -> bool:
    """Whether a completion is wanted, by the recipe's own words first."""
    if (label := said(value, reading)) is not None:
        return label
    word = str(value).strip().lower() if isinstance(value, str | int | float) else ""
    if word not in LABELS:
        word = word.replace("-", "_").replace(" ", "_")
    if word not in LABELS:
        raise Unusable(f"{name} is not true or false")
    return LABELS[word]


def said(value: Any, reading: Reading) -> bool | None:
    """What the recipe's `labels` says of a word, if it says anything."""
    word = str(value).strip().lower()
    if word not in reading.labels and isinstance(value, float) and value.is_integer():
        word = str(int(value))  # pandas makes 1.0 of a 1 beside a missing one
    return reading.labels.get(word)
