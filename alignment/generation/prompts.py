"""The prompts that answers are sampled to: read from any data file that has them, and kept away from what is measured.

A prompt is held out by the same hash as the rows of preference data, so a generated pair never stands on a held-out
prompt, and none holds an item of a suite.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from alignment.data.embedded import embedded
from alignment.data.forms.messages import (
    Unusable,
    instruction_prompt,
    messages_of,
    present,
    require_prompt,
    text_of,
    user,
    with_system,
)
from alignment.data.forms.table import read_record
from alignment.data.hub import hub_name, hub_records
from alignment.data.mixing import place_in_draw
from alignment.data.overlap import ItemRuns
from alignment.data.readers import Record, describe, read_records
from alignment.data.rows import Content, content_id, form_of, is_held_out
from alignment.data.rows import text_of as plain_text
from alignment.data.sources import PromptSource
from alignment.data.validate import Quarantined, duplicate_of

VERIFIED = ("answer", "solution", "instruction_id_list", "kwargs", "rubric")
"""Fields of a record that say which answers to its prompt are right; they stay with the prompt."""
HELD_OUT = "held out: it is measured and never trained on"


def name_of(source: PromptSource) -> str:
    """The name that a source's prompts carry: the file's own, wherever it lies."""
    if source.file is not None:
        return source.file.url.rsplit("/", 1)[-1]
    return hub_name(source.hub) if source.hub is not None else f"embedded:{source.embedded}"


def records_of(source: PromptSource) -> Iterable[Record]:
    """The source's records in its order; raises `BadInput` for a source that cannot be read."""
    if source.file is not None:
        return read_records(source.file.url, source.file.sha256)
    if source.hub is not None:
        return hub_records(source.hub)
    generated = embedded(str(source.embedded)).prompt_records(source.part, source.seed)
    return (Record(number, value=value) for number, value in enumerate(generated, start=1))


@dataclass(frozen=True)
class Prompt:
    """A prompt: `row_id` names its content, as that of a row does, and `about` says which answers are right."""

    row_id: str
    content: Content
    source: str
    source_row: int
    about: Mapping[str, Any] = field(default_factory=dict)


def prompt_of(record: Any, source: str, source_row: int) -> Prompt | str:
    """The prompt in a record of any form, or a short stable reason why there is none.

    Of a whole conversation it is what comes before the last answer; of preference data it is the pair's own.
    """
    try:
        fields = present(record)
        content = _content(fields, source, source_row)
        require_prompt(content)
    except Unusable as reason:
        return str(reason)
    about = {name: fields[name] for name in VERIFIED if name in fields}
    return Prompt(content_id({"prompt": content}), content, source, source_row, about)


def parsed(value: object, source: str, source_row: int) -> Prompt | str:
    """`prompt_of`, as a `Holder` asks it of what was set aside."""
    return prompt_of(value, source, source_row)


def _content(fields: dict[str, Any], source: str, source_row: int) -> Content:
    for name in ("prompt", "messages", "conversations"):
        if isinstance(given := fields.get(name), list | tuple | dict):
            messages = messages_of(given, name)
            while messages and messages[-1]["role"] == "assistant":
                messages = messages[:-1]
            return with_system(messages, fields)
    if isinstance(prompt := fields.get("prompt"), str):
        return with_system((user(prompt),), fields) if fields.get("system") else text_of(prompt, "prompt")
    if "instruction" in fields:
        return instruction_prompt(fields)
    if "question" in fields:
        return with_system((user(text_of(fields["question"], "question")),), fields)
    if "chosen" in fields and (rows := read_record(fields, source, source_row).rows):
        return rows[0].prompt
    raise Unusable("missing field prompt")


class Items:
    """The texts of evaluation items, which no prompt may hold: by runs of 13 words, and as a whole where shorter."""

    def __init__(self, suites: Mapping[str, Mapping[str, Iterable[str]]]) -> None:
        """`suites` maps a suite's name to its items by id, each as the texts that stand in it."""
        given = {suite: {item: list(texts) for item, texts in items.items()} for suite, items in suites.items()}
        self._runs = ItemRuns(given)
        self._whole = {
            _normalised(text): suite for suite, items in given.items() for texts in items.values() for text in texts
        }

    def suites_of(self, prompts: list[Prompt]) -> list[str | None]:
        """For each prompt the suite of an item that it holds, None for nearly all."""
        texts = [plain_text(prompt.content) for prompt in prompts]
        found: list[str | None] = []
        for prompt, held in zip(prompts, self._runs.found_in([(text,) for text in texts]), strict=True):
            said = [prompt.content] if isinstance(prompt.content, str) else [m["content"] for m in prompt.content]
            whole = next((suite for text in said if (suite := self._whole.get(_normalised(text)))), None)
            found.append(self._runs.items[min(held)][0] if held else whole)
        return found


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass
class Reading:
    """What a pass over sources keeps away, and what it has set aside so far.

    `portion` (k, n) takes the k-th of n parts of all prompts, by a hash, so that rounds get prompts of their own.
    Prompts in `withdrawn` are counted, and nothing of them is kept.
    """

    held_out_fraction: float = 0.0
    items: Items | None = None
    withdrawn: frozenset[str] = frozenset()
    portion: tuple[int, int] = (0, 1)
    seed: int = 0
    held_out: bool = False
    """Takes the prompts that are held out, and no others."""
    quarantined: list[Quarantined] = field(default_factory=list)
    withdrawn_prompts: int = 0
    elsewhere: int = 0
    """Prompts of other portions, or of the other side of the split."""

    def prompts(self, source: PromptSource) -> list[Prompt]:
        """The usable prompts of a source in its order, each once."""
        kept: list[Prompt] = []
        records: dict[str, Any] = {}
        name = name_of(source)
        for record in records_of(source):
            prompt = record.problem or prompt_of(record.value, name, record.source_row)
            if isinstance(prompt, str):
                text = record.text if record.problem else describe(record.value)
                self.quarantined.append(Quarantined(name, record.source_row, prompt, text))
            elif prompt.row_id in self.withdrawn:
                self.withdrawn_prompts += 1
            elif place_in_draw(self.seed, prompt.row_id) % self.portion[1] != self.portion[0]:
                self.elsewhere += 1
            elif prompt.row_id in records:
                first = next(one.source_row for one in kept if one.row_id == prompt.row_id)
                self.set_aside(prompt, duplicate_of(name, first, name))
            else:
                records[prompt.row_id] = record.value
                kept.append(prompt)
        return list(self._allowed(kept))

    def _allowed(self, prompts: list[Prompt]) -> Iterator[Prompt]:
        suites = self.items.suites_of(prompts) if self.items and prompts else [None] * len(prompts)
        for prompt, suite in zip(prompts, suites, strict=True):
            if suite is not None:
                self.set_aside(prompt, f"holds an item of {suite}")
            elif is_held_out(prompt.content, form_of(prompt.content), self.held_out_fraction) == self.held_out:
                yield prompt
            elif self.held_out:
                self.elsewhere += 1
            else:
                self.set_aside(prompt, HELD_OUT)

    def set_aside(self, prompt: Prompt, reason: str) -> None:
        """Keeps a prompt out, with the reason."""
        text = json.dumps({"prompt": prompt.content}, ensure_ascii=False)
        self.quarantined.append(Quarantined(prompt.source, prompt.source_row, reason, text))

    @property
    def reasons(self) -> dict[str, int]:
        """Reason to number of prompts that are set aside."""
        counts = Counter("duplicate" if "duplicate of" in one.reason else one.reason for one in self.quarantined)
        return dict(sorted(counts.items()))
