"""One record of any known form → a `PreferenceRow`, or the reason why not.

| form | fields |
|---|---|
| TRL standard | `prompt`, `chosen`, `rejected`: strings |
| TRL conversational | `prompt`, `chosen`, `rejected`: lists of messages |
| TRL implicit prompt | `chosen`, `rejected`: whole conversations that part only at the last turn |
| HH-RLHF | `chosen`, `rejected`: strings `"\\n\\nHuman: …\\n\\nAssistant: …"` |
| UltraFeedback binarized | `prompt`: string; `chosen`, `rejected`: whole conversations |
| ShareGPT pairs | `conversations` (or `messages`); `chosen`, `rejected`: one message each; `system` |
| Alpaca pairs | `instruction`, `input`; `chosen`, `rejected`: strings |
| TRL unpaired | `prompt`, `completion`, `label` |
| LLaMA-Factory KTO | `messages` (or `conversations`), `label` (or `kto_tag`) |

What a row says is taken as given. White space alone counts as empty, and an empty prompt is refused in
every form: a preference that depends on no prompt is a damaged record far more often than a wish.
"""

from __future__ import annotations

from typing import Any

from alignment.preferences.content import Content, Message
from alignment.preferences.messages import (
    Unusable,
    assistant,
    instruction_prompt,
    is_blank,
    messages_of,
    plain_texts,
    present,
    require_no_system,
    require_prompt,
    split_last_turn,
    text_of,
    turns_of,
    user,
    whole_conversation,
    with_system,
)
from alignment.preferences.row import PreferenceRow, paired_row, unpaired_row

HH_TURN = "\n\nAssistant:"
LABELS = {"true": True, "1": True, "false": False, "0": False}
Fields = dict[str, Any]


def normalise(record: Any, source: str, source_row: int) -> PreferenceRow | str:
    """The row of a record, or a short stable reason why it is none."""
    try:
        fields = present(record)
        if "chosen" in fields and "rejected" in fields:
            return _paired(fields, source, source_row)
        if "label" in fields or "kto_tag" in fields:
            return _unpaired(fields, source, source_row)
        raise Unusable(_what_is_missing(fields))
    except Unusable as reason:
        return str(reason)


def _what_is_missing(fields: Fields) -> str:
    if "completion" in fields:
        return "missing field label"
    if "rejected" in fields:
        return "missing field chosen"
    if "chosen" in fields:
        return "missing field rejected"
    if fields.keys() & {"prompt", "instruction", "messages", "conversations"}:
        return "missing field chosen"
    return "unknown form"


# Pairs ------------------------------------------------------------------------------------------


def _paired(fields: Fields, source: str, source_row: int) -> PreferenceRow:
    (prompt, chosen), (other, rejected) = _sides(fields)
    if prompt != other:
        raise Unusable("prompts differ")
    require_prompt(prompt)
    if is_blank(chosen):
        raise Unusable("empty chosen")
    if is_blank(rejected):
        raise Unusable("empty rejected")
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    return paired_row(prompt, chosen, rejected, source, source_row)


def _sides(fields: Fields) -> tuple[tuple[Content, Content], tuple[Content, Content]]:
    """(prompt, completion) of the chosen and of the rejected side."""
    chosen, rejected = fields["chosen"], fields["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Unusable("chosen and rejected have different forms")
    prompt = _context(fields)
    if isinstance(chosen, str) and (prompt is None or isinstance(prompt, str)):
        chosen, rejected = text_of(chosen, "chosen"), text_of(rejected, "rejected")
        require_no_system(fields)
        if prompt is not None:
            return (prompt, chosen), (prompt, rejected)
        return _split_hh(chosen), _split_hh(rejected)
    return _side(prompt, chosen, "chosen", fields), _side(prompt, rejected, "rejected", fields)


def _context(fields: Fields) -> Content | None:
    """What comes before both completions, if the record says it apart from them."""
    if "prompt" in fields:
        prompt = fields["prompt"]
        return text_of(prompt, "prompt") if isinstance(prompt, str) else messages_of(prompt, "prompt")
    if "instruction" in fields:
        return instruction_prompt(fields)
    if isinstance(fields["chosen"], list):
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


def _unpaired(fields: Fields, source: str, source_row: int) -> PreferenceRow:
    label = _label(fields["label"] if "label" in fields else fields["kto_tag"])
    prompt, completion = _answered(fields)
    require_prompt(prompt)
    if is_blank(completion):
        raise Unusable("empty completion")
    return unpaired_row(prompt, completion, label, source, source_row)


def _answered(fields: Fields) -> tuple[Content, Content]:
    if "completion" not in fields:
        if (conversation := whole_conversation(fields)) is None:
            raise Unusable("missing field completion")
        return conversation
    if (texts := plain_texts(fields)) is not None:
        return texts
    prompt = fields["prompt"]
    context: Content = prompt if isinstance(prompt, str) else messages_of(prompt, "prompt")
    return _side(context, fields["completion"], "completion", fields)


def _label(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    label = LABELS.get(str(value).strip().lower()) if isinstance(value, str | int) else None
    if label is None:
        raise Unusable("label is not true or false")
    return label
