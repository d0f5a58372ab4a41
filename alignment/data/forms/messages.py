"""What the forms share: a record's fields and its messages, in any published spelling, or the reason why not.

Messages may stand in a string, as JSON or as Python writes them (a cell of CSV): they are read, never taken for text.
A message keeps `reasoning_content`, `thinking` or `reasoning` where it has them, and is else role and content.

What a row says is taken as given. White space alone counts as empty, and an empty prompt is refused in
every form: a preference that depends on no prompt is a damaged record far more often than it is meant.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from alignment.data.rows import Content, Message
from alignment.data.templates import REASONING

# A record that cannot be used raises `Unusable`, whose text is a short stable reason for the quarantine.

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "chatbot", "model", "ai"), "assistant"),
}
"""How data sets call who speaks, in lower case."""
TOOL_ROLES = frozenset({"tool", "tools", "function", "function_call", "observation", "ipython", "environment"})
UNSUPPORTED = ("tools", "functions", "images", "videos", "audios", "image", "audio")
EMPTY: tuple[Any, ...] = (None, "", "[]", [], {}, False)
TOOLS = "tools are not supported"
ROLE_NAMES, TEXT_NAMES = {"role", "from"}, {"content", "value"}
MESSAGES = (
    *("prompt", "chosen", "rejected", "completion", "messages", "conversations", "conversation_a", "conversation_b"),
    *("context", "trajectory", "responses"),
)
"""Fields that may hold messages."""
WRITTEN = re.compile(r"""\s*(array\(\s*)?(\[\s*)?\{\s*['"](\w+)['"]\s*:""")
"""How messages begin where they are written as text; what is captured last is the first one's first field."""
WRITTEN_ROLE, WRITTEN_TEXT = re.compile(r"""['"](role|from)['"]\s*:"""), re.compile(r"""['"](content|value)['"]\s*:""")
MAY_BE_WRITTEN = re.compile(r"""\s*(array\(|[\[{"])""")
"""What any of them begins with: most texts are told apart by one look."""
TWICE = re.compile(r"""\s*"\s*(\[\s*)?\{""")
"""How messages begin where their text was written as JSON once more."""
LONGEST_ROLE = 24
"""Letters of a name from the data that a reason shows."""
STEPS = "initial_reason_steps"
"""Step-DPO's field for the steps of a solution that come before the two that are compared."""


class Unusable(ValueError):
    """Why a record cannot be a row."""


def present(record: Any) -> dict[str, Any]:
    """The record's fields that hold something: a null stands for a field that is not there, and so does the NaN that
    pandas writes for one."""
    if not isinstance(record, dict):
        raise Unusable("not an object")
    fields = {str(name): value for name, value in record.items() if not is_missing(value)}
    for name in UNSUPPORTED:
        if (
            name in fields and fields[name] not in EMPTY
        ):  # left out, the model would be trained on another prompt than the one judged
            raise Unusable(f"{name} are not supported")
    for name in MESSAGES:
        if name in fields and isinstance(fields[name], str):
            fields[name] = _read(fields[name], name)
    return fields


def is_missing(value: Any) -> bool:
    """Whether a field is absent: None, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _read(text: str, field: str) -> Any:
    """The messages that a string holds as JSON or as Python writes them; any other string as it is."""
    if MAY_BE_WRITTEN.match(text) is None:
        return text
    begins = WRITTEN.match(text)
    if begins is None:
        inner = _unquoted(text)
        value = None if inner is None else _read(inner, field)
        return text if value is None or isinstance(value, str) else value
    has_both = WRITTEN_ROLE.search(text) is not None and WRITTEN_TEXT.search(text) is not None
    if not has_both and begins[3] not in ROLE_NAMES | TEXT_NAMES:
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        listed = value if isinstance(value, list | tuple) else [value]
        if all(isinstance(item, Mapping) and ROLE_NAMES & item.keys() and TEXT_NAMES & item.keys() for item in listed):
            return value
        return text  # some other data, which is an answer as good as any
    if has_both or begins[2]:
        raise Unusable(f"{field} is messages written as text that cannot be read")
    return text


def _unquoted(text: str) -> str | None:
    """The string that a text writes as JSON, where what it says may be messages: they were written twice over."""
    if not TWICE.match(text):
        return None
    try:
        inner = json.loads(text)
    except ValueError:
        return None
    return inner if isinstance(inner, str) else None


def text_of(value: Any, field: str) -> str:
    """A text as it is; raises unless it is a string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise Unusable(f"{field} is not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Unusable("not valid Unicode") from None
    return value


def messages_of(value: Any, field: str) -> tuple[Message, ...]:
    """Messages reduced to role, content and reasoning, from {role, content} or ShareGPT's {from, value}; one dict is
    one message.

    Content is a string or a list of text parts, which are joined.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list | tuple):
        raise Unusable(f"{field} is not a list of messages")
    return tuple(_message(item, field) for item in value)


def _message(item: Any, field: str) -> Message:
    if not isinstance(item, Mapping):
        raise Unusable(f"{field} is not a list of messages")
    role, text = item.get("role"), item.get("content")
    if len(item) == 2 and isinstance(role, str) and isinstance(text, str) and role in ROLES:  # as most are written
        return {"role": ROLES[role], "content": text_of(text, field)}
    item = {name: value for name, value in item.items() if not is_missing(value)}
    given = item.get("role") or item.get("from")
    named = given.strip().lower() if isinstance(given, str) else None
    if item.get("tool_calls") or item.get("function_call") or named in TOOL_ROLES:
        raise Unusable(TOOLS)
    if named is None:
        raise Unusable("wrong roles")
    if (role := ROLES.get(named)) is None:
        raise Unusable(f"unknown role {named[:LONGEST_ROLE]!r}")
    content = _joined(item.get("value") if item.get("content") is None else item["content"], field)
    message = {"role": role, "content": text_of(content, field)}
    for name in REASONING:
        if item.get(name) not in EMPTY:  # a row without a thought has the id that it always had
            message[name] = text_of(item[name], f"{name} of {field}")
    return message


def _joined(content: Any, field: str) -> Any:
    """The text of a message's parts; what is no list of parts as it is."""
    if not isinstance(content, list | tuple) or not content or not all(isinstance(part, Mapping) for part in content):
        return content
    for part in content:
        if (kind := part.get("type") or "text") != "text":
            raise Unusable(f"{field} holds {str(kind)[:LONGEST_ROLE]} parts, and only text is read")
    return "".join(text_of(part.get("text"), field) for part in content)


def user(text: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """An assistant's turn."""
    return {"role": "assistant", "content": text}


def turns_of(value: Any, field: str, speaker: Callable[[str], Message]) -> tuple[Message, ...]:
    """Messages as `messages_of`; a string is one message of the speaker."""
    return (speaker(text_of(value, field)),) if isinstance(value, str) else messages_of(value, field)


def with_system(messages: tuple[Message, ...], fields: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages, led by the record's own `system` field if it has one and they do not."""
    require_no_steps(fields)
    system = fields.get("system")
    if not system or (messages and messages[0]["role"] == "system"):
        return messages
    return ({"role": "system", "content": text_of(system, "system")}, *messages)


def instruction_prompt(fields: Mapping[str, Any]) -> tuple[Message, ...]:
    """Alpaca's instruction, with its input after a blank line, and LLaMA-Factory's system and history before it."""
    turns: list[Message] = []
    history = fields.get("history") or ()
    for turn in history if isinstance(history, list | tuple) else (history,):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise Unusable("history is not a list of pairs")
        turns += [user(text_of(turn[0], "history")), assistant(text_of(turn[1], "history"))]
    instruction = text_of(fields["instruction"], "instruction")
    given = text_of(fields.get("input", ""), "input")
    turns.append(user(f"{instruction}\n\n{given}" if given and instruction else instruction or given))
    return with_system(tuple(turns), fields)


def split_last_turn(conversation: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """(prompt, completion): the completion is the one assistant message that ends the conversation."""
    if not conversation or conversation[-1]["role"] != "assistant":
        raise Unusable("wrong roles")
    return conversation[:-1], conversation[-1:]


def whole_conversation(fields: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Message, ...]] | None:
    """(prompt, completion) of a record that is one conversation, in `messages` or ShareGPT's `conversations`."""
    for name in ("messages", "conversations"):
        if name in fields:
            return split_last_turn(with_system(messages_of(fields[name], name), fields))
    return None


def plain_texts(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """(prompt, completion) of a record whose two fields are plain strings; None where one of them is messages."""
    if "prompt" not in fields:
        raise Unusable("missing field prompt")
    prompt, completion = fields["prompt"], fields["completion"]
    if not isinstance(prompt, str) or not isinstance(completion, str):
        return None
    require_no_system(fields)
    return with_steps(text_of(prompt, "prompt"), fields), text_of(completion, "completion")


def require_no_system(fields: Mapping[str, Any]) -> None:
    """Raises where a system message stands beside plain strings, which get no chat template to hold it."""
    if fields.get("system"):
        raise Unusable("system beside plain strings")


def with_steps(prompt: str, fields: Mapping[str, Any]) -> str:
    """The prompt with Step-DPO's earlier steps on a new line behind it, as its own training has them."""
    if fields.get(STEPS) in EMPTY:
        return prompt
    steps = text_of(fields[STEPS], STEPS)
    return f"{prompt}{steps}" if prompt[-1:].isspace() or steps[:1].isspace() else f"{prompt}\n{steps}"


def require_no_steps(fields: Mapping[str, Any]) -> None:
    """Raises where earlier steps stand in a form that has no place for the opening of an answer in its prompt."""
    if fields.get(STEPS) not in EMPTY:
        raise Unusable(f"{STEPS} without a prompt of plain text")


def is_blank(content: Content) -> bool:
    """Whether there is nothing but white space to read; a system message alone counts as nothing."""
    if isinstance(content, str):
        return not content.strip()
    return not any(message["content"].strip() for message in content if message["role"] != "system")


def require_prompt(prompt: Content) -> None:
    """Raises unless the prompt says something and, as messages, leaves the turn to the assistant."""
    if is_blank(prompt):
        raise Unusable("empty prompt")
    if not isinstance(prompt, str) and (
        prompt[-1]["role"] != "user" or any(message["role"] == "system" for message in prompt[1:])
    ):
        raise Unusable("wrong roles")
