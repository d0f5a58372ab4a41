"""A suite's questions put to a model: prompts from the suite, turn by turn, and the answers as responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignment.errors import BadInput
from eval.generate import Generator, Message, Prompt
from eval.jsonl import read_pinned_rows
from eval.lm_eval_task import chat_prompts, open_task, plain_prompts, stop_strings
from eval.response_files import Response
from eval.suites.items import load_items, sample_positions
from eval.suites.spec import SuiteSpec
from eval.suites.suite import Item, Suite

TURN_BREAK = "\n\n"
"""Between turns of a conversation with a model that has no chat template."""


@dataclass(frozen=True)
class Answered:
    """The items asked, their responses in the same order, and the new tokens that took."""

    items: list[Item]
    responses: list[Response]
    tokens: int


def answer_suite(suite: Suite, spec: SuiteSpec, seed: int, generator: Generator) -> Answered:
    """Asks the selected items. An item's prompt is the same whatever the limit."""
    items = load_items(suite, spec, seed)
    positions = sample_positions(items, spec.limit, seed)
    asked = [items[position] for position in positions]
    if suite.task is None:
        return _answer_turns(asked, spec, generator)
    prompts, until = _task_prompts(suite, spec, items, generator.is_chat)
    answers = generator.answer([prompts[position] for position in positions], spec.max_new_tokens, until)
    responses = [
        Response(item.id, () if answer.failed else (answer.text,), answer.failed)
        for item, answer in zip(asked, answers, strict=True)
    ]
    return Answered(asked, responses, sum(answer.tokens for answer in answers))


def _task_prompts(
    suite: Suite, spec: SuiteSpec, items: Sequence[Item], chat: bool
) -> tuple[Sequence[Prompt], tuple[str, ...]]:
    assert suite.task is not None
    with open_task(suite.task, items, _few_shot(suite, spec), spec.num_fewshot) as task:
        prompts: Sequence[Prompt] = (chat_prompts if chat else plain_prompts)(task, spec.num_fewshot)
        return prompts, stop_strings(task)


def _few_shot(suite: Suite, spec: SuiteSpec) -> list[dict[str, Any]]:
    if not spec.num_fewshot:
        return []
    field = f"evals.{suite.name}.few_shot_data"
    if spec.few_shot_data is None:
        raise BadInput(f"num_fewshot: {spec.num_fewshot} needs few_shot_data to draw examples from", field=field)
    examples = [record for _, record in read_pinned_rows(spec.few_shot_data)]
    if len(examples) < spec.num_fewshot:
        raise BadInput(f"{len(examples)} examples, {spec.num_fewshot} asked for", file=spec.few_shot_data.url)
    return examples


def _answer_turns(items: Sequence[Item], spec: SuiteSpec, generator: Generator) -> Answered:
    conversations: list[list[Message]] = [[] for _ in items]
    turns: list[list[str]] = [[] for _ in items]
    failed: dict[int, str] = {}
    tokens = 0
    for turn in range(max((len(item.fields["turns"]) for item in items), default=0)):
        asked = [index for index in range(len(items)) if index not in failed]
        for index in asked:
            conversations[index].append({"role": "user", "content": items[index].fields["turns"][turn]})
        prompts = [_conversation_prompt(conversations[index], generator.is_chat) for index in asked]
        for index, answer in zip(asked, generator.answer(prompts, spec.max_new_tokens), strict=True):
            if answer.failed is not None:
                failed[index] = f"turn {turn + 1}: {answer.failed}"
                continue
            tokens += answer.tokens
            text = answer.text.strip()
            turns[index].append(text)
            conversations[index].append({"role": "assistant", "content": text})
    responses = [Response(item.id, tuple(turns[index]), failed.get(index)) for index, item in enumerate(items)]
    return Answered(list(items), responses, tokens)


def _conversation_prompt(messages: Sequence[Message], chat: bool) -> Prompt:
    return list(messages) if chat else TURN_BREAK.join(message["content"] for message in messages)
