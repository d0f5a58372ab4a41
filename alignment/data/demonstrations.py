"""One record of any known form → an `SftRow`, or the reason why not.

| form | fields |
|---|---|
| conversations | `messages`, or ShareGPT's `conversations`; the last turn is the assistant's, and is what is learnt |
| Alpaca | `instruction`, `input`, `output` (and `system`, `history`): a user message, input after a blank line |
| prompt and completion | `prompt`, `completion`: strings (plain text), or lists of messages |
| question and answer | `question`, `answer`: a user and an assistant message |
"""

from __future__ import annotations

from typing import Any

from alignment.data.forms.messages import (
    Unusable,
    assistant,
    instruction_prompt,
    is_blank,
    plain_texts,
    present,
    require_prompt,
    split_last_turn,
    text_of,
    turns_of,
    user,
    whole_conversation,
    with_system,
)
from alignment.data.rows import Content, SftRow, sft_row


def normalise(record: Any, source: str, source_row: int) -> SftRow | str:
    """The row of a record, or a short stable reason why it is none. What it says is taken as given."""
    try:
        prompt, completion = _demonstration(present(record))
        require_prompt(prompt)
        if is_blank(completion):
            raise Unusable("empty completion")
        return sft_row(prompt, completion, source, source_row)
    except Unusable as reason:
        return str(reason)


def _demonstration(fields: dict[str, Any]) -> tuple[Content, Content]:
    if "completion" in fields:
        return _prompted(fields)
    if (conversation := whole_conversation(fields)) is not None:
        return conversation
    for asked, answered in (("instruction", "output"), ("question", "answer"), ("prompt", "completion")):
        if asked not in fields:
            continue
        if answered not in fields:
            raise Unusable(f"missing field {answered}")
        answer = (assistant(text_of(fields[answered], answered)),)
        if asked == "instruction":
            return instruction_prompt(fields), answer
        return with_system((user(text_of(fields[asked], asked)),), fields), answer
    raise Unusable("unknown form")


def _prompted(fields: dict[str, Any]) -> tuple[Content, Content]:
    if (texts := plain_texts(fields)) is not None:
        return texts
    turns = turns_of(fields["prompt"], "prompt", user) + turns_of(fields["completion"], "completion", assistant)
    return split_last_turn(with_system(turns, fields))
