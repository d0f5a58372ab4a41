"""The forms of preference data that are read: one table, and the one way from a record to its rows.

A form is known by its columns. The first one in the table whose columns a record has reads it; what none reads has a
reason, and `alignment.data.forms.advice` says once a file what to do. A new form is a function and an entry here, a row
in docs/forms.md and a row in the test of published rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, get_args

from alignment.data.forms import gathered, pairs, ranked, verdicts
from alignment.data.forms.messages import UNSUPPORTED, Unusable, is_blank, present, require_prompt
from alignment.data.forms.pairs import Fields, Sample, Thumb, number
from alignment.data.rows import PreferenceRow, paired_row, unpaired_row
from alignment.recipe.data import DEFAULT_READING, Column, Reading


def columns_of(written: str) -> tuple[frozenset[str], ...]:
    """One set of names a word, in which `|` separates the names of a set."""
    return tuple(frozenset(names.split("|")) for names in written.split())


@dataclass(frozen=True)
class Form:
    """One published shape. `columns` are those that it is known by; `a|b` is one of two."""

    name: str
    columns: str
    read: Callable[[Fields, Reading], Iterator[Sample]]
    once_gathered: str = ""
    """The columns of the record that several of the file's are gathered to, where they are."""

    @property
    def plain(self) -> bool:
        """Whether a record is one row as it stands, so that the record says what the row says."""
        return self.read in (pairs.pair, pairs.unpaired)

    @cached_property
    def needs(self) -> tuple[frozenset[str], ...]:
        """What a record must have: one column of each set."""
        return columns_of(self.once_gathered or self.columns)


FORMS = (
    Form("Step-DPO", "prompt initial_reason_steps chosen rejected", pairs.pair),
    Form("pairs", "prompt chosen rejected", pairs.pair),
    Form("Alpaca pairs", "instruction chosen rejected", pairs.pair),
    Form("ShareGPT pairs", "conversations|messages chosen rejected", pairs.pair),
    Form("orca pairs", "question|input chosen rejected", pairs.asked_pair),
    Form("pairs with the prompt in both", "chosen rejected", pairs.pair),
    Form("argilla pairs", "instruction chosen_response rejected_response", pairs.argilla_pair),
    Form("OpenAI preferences", "input preferred_output non_preferred_output", pairs.output_pair),
    Form("StackExchange pairs", "question response_j response_k", pairs.question_answers),
    Form("StackExchange answers", "question answers", ranked.stack_exchange),
    Form("UltraFeedback", "instruction completions", ranked.ultrafeedback),
    Form("distilabel", "instruction|input generations ratings|rating", ranked.distilabel),
    Form("Nectar", "prompt answers", ranked.nectar),
    Form("ranked responses", "prompt|instruction|messages|conversations responses scores|ranks", ranked.responses),
    Form("HelpSteer 2", "prompt response helpfulness", gathered.helpsteer2, "prompt helpsteer_responses"),
    Form(
        "HelpSteer 2 preferences",
        "prompt response_1 response_2 preference_strength",
        verdicts.strength("preference_strength", ("response_1", "response_2"), "prompt"),
    ),
    Form(
        "HelpSteer 3",
        "context response1 response2 overall_preference",
        verdicts.strength("overall_preference", ("response1", "response2"), "context"),
    ),
    Form("Chatbot Arena", "conversation_a conversation_b winner", verdicts.arena),
    Form("Arena table", "prompt response_a response_b winner_model_a winner_model_b", verdicts.arena_table),
    Form("SHP", "history human_ref_A human_ref_B labels", verdicts.shp),
    Form("WebGPT", "question answer_0 answer_1 score_0 score_1", verdicts.webgpt),
    Form(
        "PKU-SafeRLHF",
        "prompt response_0 response_1 better_response_id",
        verdicts.numbered("better_response_id", ("response_0", "response_1"), (0, 1)),
    ),
    Form(
        "AlpacaFarm",
        "instruction output_1 output_2 preference",
        verdicts.numbered("preference", ("output_1", "output_2"), (1, 2)),
    ),
    Form(
        "OffsetBias",
        "instruction output_1 output_2 label",
        verdicts.numbered("label", ("output_1", "output_2"), (1, 2)),
    ),
    Form("summarize_from_feedback", "info summaries choice", verdicts.summaries),
    Form("comparisons", "prompt|instruction|messages|conversations response_a response_b winner", verdicts.winner),
    Form("OASST trees", "message_tree_id prompt", gathered.tree),
    Form(
        "OASST messages",
        "message_id parent_id message_tree_id text role",
        gathered.tree,
        "message_tree_id prompt",
    ),
    Form("unpaired", "prompt completion label", pairs.unpaired),
    Form("LLaMA-Factory KTO", "messages|conversations|instruction label|kto_tag", pairs.unpaired),
    Form("feedback", "prompt response feedback|label", pairs.feedback),
    Form("BeaverTails", "prompt response is_safe", pairs.feedback),
)


class Refused(NamedTuple):
    """A record, or one pair of it, that is no row. `value` is what it says, None for the record as it stands."""

    reason: str
    value: Any = None


class Outcome(NamedTuple):
    """What became of one record."""

    form: Form | None
    rows: list[PreferenceRow]
    refused: list[Refused]


def read_record(record: Any, source: str, source_row: int, reading: Reading = DEFAULT_READING) -> Outcome:
    """The rows of a record, and what of it is none: every record gives at least one of either."""
    form: Form | None = None
    rows: list[PreferenceRow] = []
    refused: list[Refused] = []
    try:
        fields = present(mapped(record, reading) if reading.columns else record)
        form = form_of(fields)
        read = form.read if form else _nearest_reader(fields)
        for sample in read(fields, reading):
            try:
                rows.append(_row(sample, source, source_row))
            except Unusable as reason:
                refused.append(Refused(str(reason), None if form and form.plain else _said(sample)))
    except Unusable as reason:
        refused.append(Refused(str(reason)))
    return Outcome(form, rows, refused)


def normalise(record: Any, source: str, source_row: int) -> PreferenceRow | str:
    """The one row of a record, or a short stable reason why it is none."""
    outcome = read_record(record, source, source_row)
    if len(outcome.rows) == 1 and not outcome.refused:
        return outcome.rows[0]
    return outcome.refused[0].reason if outcome.refused else f"{len(outcome.rows)} rows in one record"


def form_of(fields: Mapping[str, Any]) -> Form | None:
    """The form of a record, by its columns."""
    return _form_with(tuple(fields))


@lru_cache(maxsize=1024)
def _form_with(columns: tuple[str, ...]) -> Form | None:
    names = frozenset(columns)
    return next((form for form in FORMS if not any(names.isdisjoint(either) for either in form.needs)), None)


def mapped(record: Any, reading: Reading) -> dict[str, Any]:
    """The record under the names that `columns` gives; other columns stay only where a form without author reads
    them."""
    if not isinstance(record, dict):
        raise Unusable("not an object")
    kept = set(get_args(Column)).union(UNSUPPORTED) - reading.columns.keys() - set(reading.columns.values())
    fields = {name: value for name, value in record.items() if name in kept}
    for name, column in reading.columns.items():
        value = _column(record, column)
        if value is MISSING and name not in OPTIONAL:
            raise Unusable(f"missing column {column}")
        if value is not MISSING:
            fields[name] = value
    return fields


MISSING = object()
OPTIONAL = frozenset({"input", "system", "history", "tools", "chosen_score", "rejected_score"})
"""Columns that need not be in every record."""


def _column(record: Mapping[str, Any], column: str) -> Any:
    if column in record:
        return record[column]
    value: Any = record
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def with_numbers(row: PreferenceRow, record: Any, reading: Reading) -> PreferenceRow | str:
    """The row with the weight and the target margin of its record, or why it has none. All rows of a record share
    them."""
    found: dict[str, Any] = {}
    for name, column in (("weight", reading.weight_column), ("margin", reading.margin_column)):
        if column is None:
            continue
        given = _column(record, column) if isinstance(record, Mapping) else MISSING
        if given is MISSING or given is None or given == "":
            return f"no {name}"
        value = number(given)
        if value is None:
            return f"{name} is not a finite number"
        if name == "weight" and value < 0:
            return "negative weight"
        found[name] = value
    return replace(row, **found) if found else row


def _row(sample: Sample, source: str, source_row: int) -> PreferenceRow:
    if isinstance(sample, Thumb):
        require_prompt(sample.prompt)
        if is_blank(sample.completion):
            raise Unusable("empty completion")
        return unpaired_row(sample.prompt, sample.completion, sample.label, source, source_row)
    prompt, other = sample.prompts
    if prompt != other:
        raise Unusable("prompts differ")
    require_prompt(prompt)
    if is_blank(sample.chosen):
        raise Unusable("empty chosen")
    if is_blank(sample.rejected):
        raise Unusable("empty rejected")
    if sample.chosen == sample.rejected:
        raise Unusable("chosen equals rejected")
    return paired_row(prompt, sample.chosen, sample.rejected, source, source_row, sample.scores)


def _said(sample: Sample) -> dict[str, Any]:
    if isinstance(sample, Thumb):
        return sample._asdict()
    return {"prompt": sample.prompts[0], "chosen": sample.chosen, "rejected": sample.rejected}


def row_said(row: PreferenceRow) -> dict[str, Any]:
    """What a row says, as a record that would be read as that row."""
    if row.paired:
        given = {"chosen_score": row.chosen_score, "rejected_score": row.rejected_score}
        scores = {name: score for name, score in given.items() if score is not None}
        return {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected, **scores}
    return {"prompt": row.prompt, "completion": row.completion, "label": row.label}


# What is in no form -----------------------------------------------------------------------------


def _nearest_reader(fields: Fields) -> Callable[[Fields, Reading], Iterator[Sample]]:
    """The reader that says what a labelled record lacks. Raises what any other lacks."""
    if "label" in fields or "kto_tag" in fields:
        return pairs.unpaired
    if "completion" in fields:
        raise Unusable("missing field label")
    if "rejected" in fields:
        raise Unusable("missing field chosen")
    if "chosen" in fields:
        raise Unusable("missing field rejected")
    if fields.keys() & {"prompt", "instruction", "messages", "conversations"}:
        raise Unusable("missing field chosen")
    raise Unusable("unknown form")
