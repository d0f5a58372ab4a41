"""What the record forms share: messages in either spelling, where a conversation's last turn begins, empty text.

A record that cannot be used raises `Unusable`, whose text is a short stable reason for the quarantine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from alignment.preferences.content import Content, Message

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
UNSUPPORTED = ("tools", "functions", "images", "videos", "audios", "image", "audio")
EMPTY: tuple[Any, ...] = (None, "", "[]", [], {}, False)


class Unusable(ValueError):
    """Why a record cannot be a row."""


def present(record: Any) -> dict[str, Any]:
    """The record's fields that hold something: a null stands for a field that is not there."""
    if not isinstance(record, dict):
        raise Unusable("not an object")
    fields = {str(name): value for name, value in record.items() if value is not None}
    for name in UNSUPPORTED:
        if fields.get(name) not in EMPTY:  # left out, the model would be trained on another prompt than the one judged
            raise Unusable(f"{name} are not supported")
    return fields


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
    """Messages reduced to role and content, from {role, content} or ShareGPT's {from, value}; one dict is one message.

    Content is a string or a list holding one text part.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list | tuple):
        raise Unusable(f"{field} is not a list of messages")
    return tuple(_message(item, field) for item in value)


def _message(item: Any, field: str) -> Message:
    if not isinstance(item, Mapping):
        raise Unusable(f"{field} is not a list of messages")
    if item.get("tool_calls") or item.get("function_call"):
        raise Unusable("tools are not supported")
    given = item.get("role") or item.get("from")
    role = ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise Unusable("wrong roles")
    content = item.get("value") if item.get("content") is None else item["content"]
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], Mapping):
        part = content[0]
        content = part.get("text") if part.get("type", "text") == "text" else None
    return {"role": role, "content": text_of(content, field)}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def turns_of(value: Any, field: str, speaker: Callable[[str], Message]) -> tuple[Message, ...]:
    """Messages as `messages_of`; a string is one message of the speaker."""
    return (speaker(text_of(value, field)),) if isinstance(value, str) else messages_of(value, field)


def with_system(messages: tuple[Message, ...], fields: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages, led by the record's own `system` field if it has one and they do not."""
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
    return text_of(prompt, "prompt"), text_of(completion, "completion")


def require_no_system(fields: Mapping[str, Any]) -> None:
    """Raises where a system message stands beside plain strings, which get no chat template to hold it."""
    if fields.get("system"):
        raise Unusable("system beside plain strings")


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
