"""How a row is written out before it is tokenised: the chat template, its date, the system message.

A template decides text, and text decides ids. So whatever changes from one day or one rendering to the next is
settled here: a template that asks for today's date gets the token policy's constant, a template that writes the prompt
otherwise once an answer follows is noticed, and so is one that leaves out what a row says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from alignment.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]

TODAY = date(2024, 7, 26)
"""What a template that asks for the date is told by default: the day that Llama 3.1's template has for a default."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Fields of a message that hold what was thought before it was said. Transformers gives a template each of them under
the names that templates read."""

# The date ------------------------------------------------------------------------------------------

CLOCK, DATE = "strftime_now", "date_string"
DIRECTIVES = ("-d", "-m", "-j", "-H", "-I", "-M", "-S", "-y", *"aAbBcdDeFGHIjmMpSTuUVwWxXyYZ", "%")
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""A tag of Transformers' own, which marks answers and changes no text."""


def asks_for_date(template: str | None) -> bool:
    """Whether what a template writes depends on the day: it names the clock, or a date that it has no default for."""
    return bool(_dated_names(template))


def with_today(template: str, today: date = TODAY) -> str:
    """The template with the date in place of the clock; any other template as it is."""
    names = _dated_names(template)
    if CLOCK in names:
        # a macro of this name goes before Transformers' function, wherever the template is rendered
        filled = "".join(f"|replace('%{one}', {_quoted(today.strftime('%' + one))})" for one in DIRECTIVES)
        return f"{{%- macro {CLOCK}(format) %}}{{{{ format{filled} }}}}{{% endmacro %}}\n{template}"
    if DATE in names:
        return f"{{%- set {DATE} = {_quoted(today.strftime('%d %b %Y'))} %}}\n{template}"
    return template


@lru_cache
def _dated_names(template: str | None) -> frozenset[str]:
    """Which of the two names of a date the template reads and does not set itself."""
    from jinja2 import Environment, TemplateSyntaxError, nodes

    if template is None:
        return frozenset()
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION.sub("", template))
    except TemplateSyntaxError:  # rendering it says so
        return frozenset()
    read: set[str] = set()
    written: set[str] = set()
    for name in tree.find_all(nodes.Name):
        (read if name.ctx == "load" else written).add(name.name)
    return frozenset({CLOCK, DATE} & read - written)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


# The chat template ---------------------------------------------------------------------------------


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template that a tokenizer's conversations are written by, as it brings it; None where it has none."""
    if not tokenizer.chat_template:
        return None
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise BadInput(f"no chat template to choose: {error}", field="base_model.chat_template") from error


PLAIN_TEMPLATE = (
    r"{% for message in messages %}{{ '\n\n' + message['role']|capitalize + ': ' + message['content'] }}"
    r"{{ eos_token if message['role'] == 'assistant' else '' }}{% endfor %}"
    r"{{ '\n\nAssistant: ' if add_generation_prompt else '' }}"
)
"""A chat template in plain words, for a tokenizer that has none: the only special token that it needs is the one that
ends an answer. A prompt with `Assistant: ` is the start of the same prompt with its answer."""
GIVE_ONE = f"give the model one in the recipe, such as chat_template: {json.dumps(PLAIN_TEMPLATE)}"
"""What to do without a chat template; what follows the colon is one line of YAML."""


class TemplateRefusal(Exception):
    """The chat template has no form for these messages."""


class ChatTemplate:
    """A tokenizer's chat template with its date set. Writes many conversations at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, today: date = TODAY) -> None:
        self.tokenizer = tokenizer
        brought = chat_template_of(tokenizer)
        self.text = None if brought is None else with_today(brought, today)

    def written(self, conversations: Sequence[Messages], *, generation_prompt: bool) -> list[str | TemplateRefusal]:
        """Each conversation as text, or why the template refuses it.

        Raises `BadInput` where there is no template, or one that is malformed.
        """
        if not conversations:
            return []
        if self.text is None:
            raise BadInput(
                f"rows are conversations and the tokenizer has no chat template: {GIVE_ONE}",
                field="base_model.chat_template",
            )
        try:
            return [*self._rendered(conversations, generation_prompt)]
        except TemplateRefusal as refusal:
            if len(conversations) == 1:
                return [refusal]
        return [self.written([one], generation_prompt=generation_prompt)[0] for one in conversations]

    def _rendered(self, conversations: Sequence[Messages], generation_prompt: bool) -> list[str]:
        from jinja2 import TemplateError, TemplateSyntaxError

        plain = [[dict(message) for message in messages] for messages in conversations]
        try:
            texts: Any = self.tokenizer.apply_chat_template(
                plain,  # type: ignore[arg-type]
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
            return list(texts)
        except TemplateSyntaxError as error:
            raise BadInput(f"the chat template is malformed: {error}", field="base_model.chat_template") from error
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            # what a template does to odd rows: whatever its expressions raise
            raise TemplateRefusal(str(error) or type(error).__name__) from error


def prompt_stands(prompt: str, whole: str, ends: Sequence[str]) -> bool:
    """Whether a rendering with an answer begins with the rendering of the prompt alone.

    Phi-3's and others' templates write an end behind whatever they render: ends and white space there do not count.
    """
    return whole.startswith(prompt) or whole.startswith(without_end(prompt, ends).rstrip())


def without_end(text: str, ends: Sequence[str]) -> str:
    """The text before the ends that it closes with, white space among them; as it is where there are none."""
    while (end := next((end for end in ends if text.rstrip().endswith(end)), None)) is not None:
        text = text.rstrip()[: -len(end)]
    return text


def ends_answers(tokenizer: PreTrainedTokenizerBase, ends: Sequence[str]) -> bool | None:
    """Whether the template puts one of `ends`, or blank text and one of them, behind an answer; None where it cannot be
    told, since it has no form for a question and its answer."""
    asked, answer = "What is it?", "An answer."
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    try:
        (text,) = ChatTemplate(tokenizer).written([turns], generation_prompt=False)
    except BadInput:
        return None
    if isinstance(text, TemplateRefusal) or answer not in text:
        return None
    return text.rpartition(answer)[2].lstrip().startswith(tuple(ends))


# What a row says -----------------------------------------------------------------------------------

THINKING = re.compile(r"</?think>|\[/?THINK\]")
CLOSED = ("</think>", "[/THINK]")


def left_out(completion: Messages, written: str) -> bool:
    """Whether the rendering lacks a thought of the completion: templates cut what stands before `</think>`."""
    return any(thought not in written for message in completion for thought in _thoughts(message))


def _thoughts(message: Mapping[str, str]) -> Iterator[str]:
    content = message["content"]
    if any(mark in content for mark in CLOSED):
        last = max(content.rfind(mark) for mark in CLOSED)
        yield from filter(None, (piece.strip() for piece in THINKING.split(content[:last])))
    for name in REASONING:
        if message.get(name):
            yield message[name].strip()


def with_system_message(messages: Messages, how: str) -> Messages:
    """Messages with their leading system message as the token policy's `system` has it.

    `first_user` puts it before the first user message and a blank line, as Mistral's templates do.
    """
    if how == "as_template" or not messages or messages[0]["role"] != "system":
        return messages
    system, rest = messages[0], list(messages[1:])
    first = next((index for index, message in enumerate(rest) if message["role"] == "user"), None)
    if how == "first_user" and first is not None:
        rest[first] = {**rest[first], "content": f"{system['content']}\n\n{rest[first]['content']}"}
    return rest
