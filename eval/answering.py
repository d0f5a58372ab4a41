"""A suite's questions put to a model, and the answers as responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignment.errors import BadInput
from eval.asking import Asking
from eval.encoding import Message, Prompt
from eval.endpoint_answers import EndpointGenerator
from eval.generate import Generator
from eval.response_files import Response
from eval.suites.items import load_items, sample_positions
from eval.suites.spec import SuiteSpec
from eval.suites.suite import Item, Suite
from eval.task_answers import task_choices, task_texts

TURN_BREAK = "\n\n"
"""Between turns of a conversation with a model that has no chat template."""


@dataclass(frozen=True)
class Answered:
    """The items asked, their responses in the same order, and the settings that decided them beside the prompts."""

    items: list[Item]
    responses: list[Response]
    settings: dict[str, Any]

    @property
    def tokens(self) -> int:
        """New tokens that the responses took."""
        return sum(sum(response.tokens) for response in self.responses)


def answer_suite(suite: Suite, spec: SuiteSpec, seed: int, generator: Generator | EndpointGenerator) -> Answered:
    """Asks the selected items. An item's prompt is the same whatever the limit."""
    items = load_items(suite, spec, seed)
    chat = generator.is_chat if spec.chat_template is None else spec.chat_template
    if chat and not generator.is_chat:
        raise BadInput("the tokenizer has no chat template", field=f"evals.{suite.name}.chat_template")
    asking = Asking(suite, spec, seed, generator, chat)
    positions = sample_positions(items, spec.limit, seed)
    asked = [items[position] for position in positions]
    if suite.output != "generate_until":
        return Answered(asked, task_choices(asking, items, positions), {"chat_template": chat, "log_likelihoods": True})
    is_task = suite.task is not None or bool(suite.members)
    responses = task_texts(asking, items, positions) if is_task else conversations(asking, asked)
    return Answered(asked, responses, {"chat_template": chat, **_decoding(asking, asked)})


def conversations(asking: Asking, items: Sequence[Item]) -> list[Response]:
    """The suite's questions turn by turn; what the model has said stands in its next prompt."""
    questions: list[list[str]] = [item.fields["turns"] for item in items]
    spoken: list[list[Message]] = [[] for _ in items]
    turns: list[list[str]] = [[] for _ in items]
    tokens: list[list[int]] = [[] for _ in items]
    failed: dict[int, str] = {}
    for turn in range(max(map(len, questions), default=0)):
        asked = [index for index in range(len(items)) if index not in failed and turn < len(questions[index])]
        for index in asked:
            spoken[index].append({"role": "user", "content": questions[index][turn]})
        prompts = [_prompt(spoken[index], asking.chat) for index in asked]
        samplings = [asking.sampling(items[index], turn + 1) for index in asked]
        answers = asking.generator.answer(prompts, asking.spec.max_new_tokens, (), samplings)
        for index, answer in zip(asked, answers, strict=True):
            if answer.failed is not None:
                failed[index] = f"turn {turn + 1}: {answer.failed}"
                continue
            text = answer.text.strip()
            turns[index].append(text)
            tokens[index].append(answer.tokens)
            spoken[index].append({"role": "assistant", "content": text})
    return [
        Response(item.id, tuple(turns[index]), failed.get(index), tokens=tuple(tokens[index]))
        for index, item in enumerate(items)
    ]


def _prompt(messages: Sequence[Message], chat: bool) -> Prompt:
    return list(messages) if chat else TURN_BREAK.join(message["content"] for message in messages)


def _decoding(asking: Asking, items: Sequence[Item]) -> dict[str, Any]:
    return {
        "max_new_tokens": asking.spec.max_new_tokens,
        "temperatures": sorted({asking.sampling(item).temperature for item in items}),
        "top_p": asking.spec.top_p,
        "seed": asking.seed,
    }
