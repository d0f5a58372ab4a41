"""Looks at preference data before anything is built of it: what would become of every record, and how rows are read."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from alignment.data.dataset_info import reading_of
from alignment.data.files import expand
from alignment.data.readers import Record, read_records
from alignment.data.rows import Content, PreferenceRow
from alignment.data.shards import shards_of
from alignment.data.tokens import Dropped, Tokenization, TokenSequence
from alignment.data.validate import Validation
from alignment.errors import BadInput, counted
from alignment.recipe.data import DEFAULT_READING, ModelSource, Reading
from alignment.recipe.forward import TokenPolicy
from alignment.recipe.load import load_recipe
from alignment.recipe.recipe import Recipe
from alignment.stages.preference_shard import records_of

RECIPES = (".yaml", ".yml")


@dataclass(frozen=True)
class Source:
    """Some records, how they are read, and what they are called in what is said of them. With `split_pairs` a pair is
    two completions with their labels."""

    name: str
    records: Iterable[Record]
    reading: Reading
    split_pairs: bool = False


def sources_of(target: str, reading: Reading = DEFAULT_READING) -> Iterator[Source]:
    """What a recipe's preferences are, or a path, glob, folder or URL of preference files, which are read by
    `reading`."""
    if target.endswith(RECIPES):
        recipe = load_recipe(target)
        split_pairs = recipe.method.data == "unpaired"
        for request in shards_of(recipe.preferences, recipe.seed, split_pairs=split_pairs).values():
            name = request.source if request.file is None else request.file.url
            yield Source(name, records_of(request), request.reading, split_pairs)
        return
    for url in expand(target, "preferences"):
        yield Source(url, read_records(url), reading_of(url, reading))


def check_files(targets: list[str], reading: Reading = DEFAULT_READING) -> dict[str, Any]:
    """What would become of the records of files, or of recipes' preferences, taken together in the order given; files
    are read by `reading`.

    `records` were read. `rows` = `accepted` + `quarantined` (counts), `reasons` {reason: count}, `forms` {form: rows},
    `texts` (accepted rows of plain strings), `joined` (of these how many have nothing between prompt and answer),
    `kind` (paired, unpaired, or None when no row is valid), `digest` over the sorted row ids, `advice` {file: what to
    do about its commonest reason}, and `quarantined_rows` [{file, row, reason}].
    Raises `BadInput` naming a file that cannot be read as a whole.
    """
    validation = Validation()
    accepted = texts = joined = 0
    advice: dict[str, str] = {}
    for source in (source for target in targets for source in sources_of(target, reading)):
        validation.reading, validation.split_pairs = source.reading, source.split_pairs
        before = accepted
        for row in validation.accepted(source.records, source.name):
            accepted += 1
            texts += row.form == "text"
            joined += row.form == "text" and _runs_together(row)
        if (told := validation.advice(source.name, accepted - before)) is not None:
            advice[source.name] = told
    quarantined = validation.quarantined
    return {
        "records": validation.records,
        "rows": accepted + len(quarantined),
        "accepted": accepted,
        "texts": texts,
        "joined": joined,
        "quarantined": len(quarantined),
        "reasons": validation.reasons,
        "forms": dict(sorted(validation.forms.items())),
        "kind": validation.kind,
        "digest": validation.digest,
        "advice": advice,
        "quarantined_rows": [
            {"file": entry.source, "row": entry.source_row, "reason": entry.reason} for entry in quarantined
        ],
    }


def _runs_together(row: PreferenceRow) -> bool:
    """Whether the last word of a plain prompt and the first of an answer are written as one. A prompt without any space
    may be in a script that has none."""
    prompt = str(row.prompt)
    answers = [str(answer) for answer in (row.chosen, row.rejected, row.completion) if answer]
    apart = prompt[-1:].isspace() or not any(letter.isspace() for letter in prompt)
    return not apart and any(not answer[0].isspace() for answer in answers)


def joined_note(checked: dict[str, Any]) -> str | None:
    """What to know where most plain rows have nothing between prompt and answer."""
    if checked["joined"] * 2 <= checked["texts"]:
        return None
    return (
        f"{counted(checked['joined'], 'row of plain text has', 'rows of plain text have')} nothing between prompt and"
        " answer, and the model reads both as one text: end the prompts with a space or a new line, or give"
        " tokens.plain_text: chat where the model has a chat template"
    )


# Rows as the model will see them ----------------------------------------------------------------

SHOWN = 3
"""Rows that are shown where no row is asked for."""
PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
TOGETHER = 256
UNBOUND = 2**31


def show_rows(
    target: str, row: int | None = None, model: str | None = None, max_length: int | None = None
) -> dict[str, Any]:
    """Rows of a file or of a recipe's preferences as they are read and, where a model is known, as it will see them.

    `row` is a record's number in its file; without it the first rows are shown. `model` is a folder with a tokenizer, a
    recipe's own by default; `max_length` stands in for the recipe's. Returns `rows` (valid ones) by `forms`, `tokens`
    {prompt, chosen, …: {percentile: tokens}} before anything is cut, `dropped` {reason: rows} and `truncated` rows by
    the token policy, and `shown`. Raises `BadInput` where there is no valid row, or no such one.
    """
    recipe = load_recipe(target) if target.endswith(RECIPES) else None
    shown: list[tuple[str, PreferenceRow]] = []
    validation = Validation()
    with _tokens_of(recipe, model, max_length) as tokens:
        measure = None if tokens is None else Measure(tokens)
        for source in sources_of(target):
            validation.reading, validation.split_pairs = source.reading, source.split_pairs
            accepted = validation.accepted(source.records, source.name)
            while rows := list(islice(accepted, TOGETHER)):
                if measure is not None:
                    measure.add(rows)
                asked = (one for one in rows if row is None or one.source_row == row)
                shown += [(source.name, one) for one in islice(asked, SHOWN - len(shown) if row is None else None)]
        if not validation.rows:
            reasons = "; ".join(f"{reason}: {count}" for reason, count in validation.reasons.items())
            raise BadInput(f"no valid row ({reasons or 'no records'})", file=target)
        if not shown:
            why = next((entry.reason for entry in validation.quarantined if entry.source_row == row), "no such record")
            raise BadInput(f"gives no row: {why}", file=target, row=row)
        return {
            "target": target,
            "records": validation.records,
            "rows": validation.rows,
            "quarantined": len(validation.quarantined),
            "forms": dict(sorted(validation.forms.items())),
            **({} if measure is None else measure.told()),
            "shown": [_shown(name, one, tokens) for name, one in shown],
        }


Sides = tuple[TokenSequence, ...]


class Measure:
    """Lengths of rows in tokens before they are cut, and what the token policy drops or cuts of them."""

    def __init__(self, tokens: Tokenization) -> None:
        policy = tokens.policy.model_copy(update={"max_length": UNBOUND, "max_prompt_length": None})
        self.tokens = tokens
        self.unbound = Tokenization(tokens.tokenizer, policy, end_ids=tokens.end_ids)
        self.lengths: dict[str, list[int]] = {}
        self.dropped: Counter[str] = Counter()
        self.truncated = 0

    def add(self, rows: Sequence[PreferenceRow]) -> None:
        """Rows of one kind."""
        names = ("chosen", "rejected") if rows[0].paired else ("completion",)
        for whole, kept in zip(_sequences(self.unbound, rows), _sequences(self.tokens, rows), strict=True):
            if not isinstance(kept, tuple):
                self.dropped[kept.reason] += 1
            if not isinstance(whole, tuple):
                continue
            lengths = {name: len(side.completion_ids) for name, side in zip(names, whole, strict=True)}
            for name, length in (
                ("prompt", len(whole[0].prompt_ids)),
                *lengths.items(),
                ("longer side", max(map(len, whole))),
            ):
                self.lengths.setdefault(name, []).append(length)
            self.truncated += isinstance(kept, tuple) and sum(map(len, kept)) < sum(map(len, whole))

    def told(self) -> dict[str, Any]:
        """What `align prefs check` prints of it: the policy, percentiles of tokens, and what is dropped."""
        import numpy as np

        policy = self.tokens.policy
        return {
            "max_length": policy.max_length,
            "truncation": policy.truncation,
            "tokens": {
                name: {str(one): int(np.percentile(lengths, one, method="higher")) for one in PERCENTILES}
                for name, lengths in self.lengths.items()
            },
            "dropped": dict(sorted(self.dropped.items())),
            "truncated": self.truncated,
        }


def _sequences(tokens: Tokenization, rows: Sequence[PreferenceRow]) -> list[Sides | Dropped]:
    if rows[0].paired:
        return [*tokens.pairs(rows)]
    return [(one,) if isinstance(one, TokenSequence) else one for one in tokens.completions(rows)]


def _shown(file: str, row: PreferenceRow, tokens: Tokenization | None) -> dict[str, Any]:
    """A row's content and, with a tokenizer, the text and ids of its prompt and of what counts."""
    names = ("chosen", "rejected") if row.paired else ("completion",)
    told: dict[str, Any] = {"file": file, "row": row.source_row, "row_id": row.row_id, "form": row.form}
    told |= {"prompt": row.prompt} | {name: getattr(row, name) for name in names}
    if not row.paired:
        told["label"] = row.label
    elif row.chosen_score is not None:
        told |= {"chosen_score": row.chosen_score, "rejected_score": row.rejected_score}
    told["earlier_answers"] = _answers(row.prompt)
    if tokens is None:
        return told
    (sides,) = _sequences(tokens, [row])
    if not isinstance(sides, tuple):
        return told | {"dropped": sides.reason, "detail": sides.detail}
    read = tokens.tokenizer.decode
    told["seen"] = {
        name: {
            "prompt": read(list(side.prompt_ids)),
            "counted": read(list(side.completion_ids)),
            "prompt_ids": list(side.prompt_ids),
            "counted_ids": list(side.completion_ids),
        }
        for name, side in zip(names, sides, strict=True)
    }
    return told


def _answers(prompt: Content) -> int:
    """How many earlier answers stand in a prompt, and so do not count."""
    return 0 if isinstance(prompt, str) else sum(message["role"] == "assistant" for message in prompt)


@contextmanager
def _tokens_of(recipe: Recipe | None, model: str | None, max_length: int | None) -> Iterator[Tokenization | None]:
    """The tokenizer that is given or, without one, a recipe's; no weights are loaded."""
    if recipe is None and model is None:
        yield None
        return
    from transformers.utils.logging import disable_progress_bar

    from alignment.models.checkpoint import load_tokenizer, max_positions
    from alignment.models.ends import end_ids
    from alignment.models.pin import chat_template_text, fetch_tokenizer

    if recipe is None or model is not None:
        source = ModelSource(path=model)
    else:
        source = (recipe.sft and recipe.sft.adopt) or recipe.base_model
    disable_progress_bar()  # an embedded model's, which is written whole
    with tempfile.TemporaryDirectory(prefix="tokenizer-") as scratch:
        folder = fetch_tokenizer(source, Path(scratch))
        tokenizer = load_tokenizer(folder)
        if (template := chat_template_text(source.chat_template)) is not None:
            tokenizer.chat_template = template
        policy = TokenPolicy(max_length=max_positions(folder) or UNBOUND) if recipe is None else recipe.tokens
        if max_length is not None:
            policy = policy.model_copy(update={"max_length": max_length})
        yield Tokenization(tokenizer, policy, end_ids=end_ids(folder))
