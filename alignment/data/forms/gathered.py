"""Data in which several records make one prompt with its answers: trees of messages, flat or nested, and HelpSteer 2.

Records of one prompt must follow each other, as the published files have them: only those of one prompt are in memory.
A source that is cut by `split_into` may part such a run at the cuts; what lacks its other half is quarantined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from alignment.data.forms.messages import Unusable, assistant, is_missing, text_of, user
from alignment.data.forms.pairs import Fields, Sample, number
from alignment.data.forms.ranked import Answer, compared, each, ranked, scored
from alignment.data.forms.verdicts import nemo_turns
from alignment.data.readers import Record, describe
from alignment.data.rows import Message
from alignment.recipe.data import Reading

# Trees ------------------------------------------------------------------------------------------

NO_SIBLINGS = "no prompt with two ranked replies"


def tree(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """An OASST tree: every prompter's message whose replies are ranked gives pairs of these, with all before them."""
    root = fields["prompt"]
    if not isinstance(root, Mapping):
        raise Unusable("prompt is not a message of a tree")
    found = False
    for prompt, answers in _branches(root):
        if len(answers) > 1:
            found = True
            yield from compared(prompt, answers, reading)
    if not found:
        raise Unusable(NO_SIBLINGS)


def _branches(root: Mapping[str, Any]) -> Iterator[tuple[tuple[Message, ...], list[Answer]]]:
    """Each conversation that ends with the prompter, and its ranked replies; no recursion, as trees may be deep."""
    waiting: list[tuple[Mapping[str, Any], tuple[Message, ...]]] = [(root, ())]
    while waiting:
        node, before = waiting.pop()
        speak = {"prompter": user, "user": user, "assistant": assistant}.get(str(node.get("role")).lower())
        if speak is None:
            raise Unusable("wrong roles")
        turns = (*before, speak(text_of(node.get("text"), "text")))
        replies = [reply for reply in each(node.get("replies") or [], "replies") if not reply.get("deleted")]
        if speak is user:
            ranks = [(number(reply.get("rank")), reply) for reply in replies]
            yield (
                turns,
                [
                    ranked((assistant(text_of(reply.get("text"), "text")),), rank)
                    for rank, reply in sorted(
                        ((rank, reply) for rank, reply in ranks if rank is not None), key=lambda one: one[0]
                    )
                ],
            )
        waiting += [(reply, turns) for reply in reversed(replies)]


def _as_tree(records: list[Fields]) -> Any:
    """Flat messages of one tree as the nested form has them; a message whose parent is not among them is left out."""
    nodes = {record["message_id"]: {**record, "replies": []} for record in records}
    roots = []
    for record in records:
        node, parent = nodes[record["message_id"]], record.get("parent_id")
        if parent in nodes:
            nodes[parent]["replies"].append(node)
        elif is_missing(parent):
            roots.append(node)
    if len(roots) != 1:
        raise Unusable("the tree's first message is not among its records")
    return {"message_tree_id": records[0]["message_tree_id"], "prompt": roots[0]}


# HelpSteer 2 ------------------------------------------------------------------------------------


def helpsteer2(fields: Fields, reading: Reading) -> Iterator[Sample]:
    """HelpSteer 2's answers to one prompt, by `helpfulness`."""
    prompt = nemo_turns(fields["prompt"], "prompt")
    answers = [
        scored((assistant(text_of(item.get("response"), "response")),), score)
        for item in each(fields["helpsteer_responses"], "response")
        if (score := number(item.get("helpfulness"))) is not None
    ]
    yield from compared(prompt, answers, reading)


def _as_prompt(records: list[Fields]) -> Any:
    kept = ("response", "helpfulness")
    answers = [{name: record.get(name) for name in kept} for record in records]
    return {"prompt": records[0]["prompt"], "helpsteer_responses": answers}


# Records that belong together -------------------------------------------------------------------


@dataclass(frozen=True)
class Gathering:
    """Flat records with these fields belong together while they agree in one of them."""

    fields: frozenset[str]
    by: str
    together: Callable[[list[Fields]], Any]


GATHERINGS = (
    Gathering(frozenset({"message_id", "message_tree_id", "text", "role"}), "message_tree_id", _as_tree),
    Gathering(frozenset({"prompt", "response", "helpfulness"}), "prompt", _as_prompt),
)


def gathered(records: Iterable[Record]) -> Iterator[Record]:
    """The records, with those that belong together as one, which bears the number of the first."""
    run: list[Record] = []
    by: Gathering | None = None
    for record in records:
        kind = _gathering(record)
        if run and (kind is not by or by is None or record.value[by.by] != run[0].value[by.by]):
            yield _together(run, by)
            run = []
        by = kind
        if kind is None:
            yield record
        else:
            run.append(record)
    if run:
        yield _together(run, by)


def _gathering(record: Record) -> Gathering | None:
    value = record.value
    if not isinstance(value, dict):
        return None
    return next(
        (
            kind
            for kind in GATHERINGS
            if kind.fields <= value.keys() and not any(is_missing(value[name]) for name in kind.fields)
        ),
        None,
    )


def _together(run: list[Record], kind: Gathering | None) -> Record:
    assert kind is not None
    try:
        value = kind.together([record.value for record in run])
    except (Unusable, TypeError) as error:
        reason = str(error) if isinstance(error, Unusable) else f"{kind.by} is not text"
        text = describe([record.value for record in run])
        return replace(run[0], problem=reason, text=text, records=len(run))
    return replace(run[0], value=value, records=len(run))
