"""`preference_shard`: one source's records → validated rows and a quarantine; no model takes part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from heapq import nsmallest
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field, model_validator

from alignment.data.embedded import embedded
from alignment.data.hub import hub_name, hub_records
from alignment.data.measure import Contradictions, measured_columns, pair_numbers
from alignment.data.mixing import place_in_draw
from alignment.data.readers import Record, read_records
from alignment.data.rows import PAIR_ID, ROWS_FILE, PreferenceRow, decode, iter_records, write_rows
from alignment.data.validate import DUPLICATE, QUARANTINE_FILE, Validation, most_common, write_quarantine
from alignment.errors import BadInput
from alignment.recipe.data import DataSource, Reading
from alignment.stages.stage import Context, Request, Result, ShardSummary, SourceFile, Stage
from alignment.store import Artifact

PAIRS_FILE = "pairs.parquet"
PAIRS_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("form", pa.string()),
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("chosen_score", pa.float64()),
        ("rejected_score", pa.float64()),
        ("generator", pa.string()),
        ("rejected_generator", pa.string()),
        ("judge", pa.string()),
        ("round", pa.int32()),
    ]
)
"""Pairs that were made of sampled answers: `row_id` is the prompt's, sides are texts, and the last columns say which
models wrote them, who scored them, and in which round."""


class ShardRequest(Request):
    """One of `file`, `hub`, `embedded` and `generated` (an artifact with pairs.parquet); of `parts` contiguous runs of
    its records, run `part` (0-based).

    For embedded data `part` is the day that is generated from `seed`; elsewhere the seed draws the rows of
    `reading.max_rows`, and is 0 without. Rows whose id is in `withdrawn` (sorted) are left out. With `split_pairs` a
    pair becomes two rows: its chosen completion with a thumb up, its rejected one with a thumb down.
    """

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"withdrawn", "reading", "split_pairs", "generated"})

    file: SourceFile | None = None
    hub: DataSource | None = None
    embedded: str | None = None
    generated: Artifact | None = None
    part: int = Field(default=0, ge=0)
    parts: int = Field(default=1, ge=1)
    seed: int = 0
    withdrawn: tuple[str, ...] = ()
    reading: Reading = Reading()
    split_pairs: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> ShardRequest:
        if sum(source is not None for source in (self.file, self.hub, self.embedded, self.generated)) != 1:
            raise ValueError("give exactly one of file, hub, embedded, generated")
        if self.part >= self.parts:
            raise ValueError(f"part {self.part} of {self.parts}")
        return self

    @property
    def source(self) -> str:
        """The name that rows carry: the file's own, wherever it lies."""
        if self.file is not None:
            return self.file.url.rsplit("/", 1)[-1]
        if self.generated is not None:
            return f"generated:{self.generated.digest[:12]}"
        return hub_name(self.hub) if self.hub is not None else f"embedded:{self.embedded}"


def records_of(request: ShardRequest) -> Iterable[Record]:
    """The records of a request that are not in the store, in source order."""
    if request.file is not None:
        return read_records(request.file.url, request.file.sha256, request.part, request.parts)
    if request.hub is not None:
        return hub_records(request.hub, request.part, request.parts)
    assert request.embedded is not None
    generated = embedded(request.embedded).preference_records(request.part, request.seed)
    return (Record(number, value=value) for number, value in enumerate(generated, start=1))


def generated_records(request: ShardRequest, context: Context) -> list[dict[str, Any]]:
    """The pairs of a request for generated ones, as `PAIRS_SCHEMA` has them; none for another."""
    return [] if request.generated is None else list(iter_records(context.fetch(request.generated) / PAIRS_FILE))


def _as_record(number: int, pair: dict[str, Any]) -> Record:
    def side(name: str) -> Any:
        return pair[name] if pair["form"] == "text" else [{"role": "assistant", "content": pair[name]}]

    value: dict[str, Any] = {"prompt": decode(pair["form"], pair["prompt"])}
    value |= {name: side(name) for name in ("chosen", "rejected")}
    scores = {name: pair[name] for name in ("chosen_score", "rejected_score") if pair[name] is not None}
    return Record(number, value=value | scores)


def _with_origin(row: PreferenceRow, pairs: list[dict[str, Any]]) -> PreferenceRow:
    """The row with what its pair says of where it comes from."""
    if not pairs:
        return row
    pair = pairs[row.source_row - 1]
    names = dict.fromkeys((pair["generator"], pair["rejected_generator"]))
    return replace(row, generator=" > ".join(names), judge=pair["judge"] or None, round=pair["round"])


def validation_of(request: ShardRequest) -> Validation:
    """What looks at the request's records."""
    return Validation(frozenset(request.withdrawn), request.reading, split_pairs=request.split_pairs)


def run(request: ShardRequest, context: Context) -> Result:
    """Writes rows.parquet in source order and quarantine.parquet; of withdrawn rows only their number is kept, and of
    rows beyond `reading.max_rows` too.

    Raises `BadInput` naming the source if it cannot be read or holds no valid row.
    """
    pairs = generated_records(request, context)
    made = [_as_record(number, pair) for number, pair in enumerate(pairs, start=1)]
    kept = drawn_rows(request, made or None)
    validation = validation_of(request)
    accepted = validation.accepted(made or records_of(request), request.source)
    rows = (row for row in accepted if kept is None or row.row_id in kept)
    write_rows(context.out / ROWS_FILE, (_with_origin(row, pairs) for row in rows))
    write_quarantine(context.out / QUARANTINE_FILE, validation.quarantined)
    reasons = validation.reasons
    if not validation.rows:
        where = request.file.url if request.file is not None else request.source
        if validation.withdrawn_records and not reasons:
            raise BadInput("every row of it was withdrawn: withdraw the whole shard", file=where)
        told = validation.advice(request.source)
        raise BadInput(f"no valid preference row; {most_common(reasons)}{f'; {told}' if told else ''}", file=where)
    assert validation.kind is not None
    measured = measured_columns(context.out)
    contradictions = Contradictions(context.work / "pair_ids", 0)
    contradictions.add(measured[PAIR_ID].to_numpy())
    where_known: dict[str, Any] = {"pairs": pair_numbers(measured)}
    if request.withdrawn:
        where_known["withdrawn"] = validation.withdrawn_records
    if kept is not None:
        before = validation.rows
        validation.keep(kept)
        where_known["not_drawn"] = before - validation.rows
    return Result(
        digest=validation.content_digest,
        summary=ShardSummary(
            rows=validation.rows,
            quarantined=len(validation.quarantined),
            reasons=reasons,
            kind=validation.kind,
            source_rows=validation.records,
            duplicates=reasons.get(DUPLICATE, 0),
            digest=validation.digest,
            contradictory=contradictions.count(),
            forms=dict(sorted(validation.forms.items())),
            **{name: value for name, value in where_known.items() if value is not None},
        ),
    )


def drawn_rows(request: ShardRequest, made: list[Record] | None = None) -> set[str] | None:
    """Ids of the rows that `max_rows` keeps, None for all: those with the lowest hash of seed and id, so that neither
    the order of the rows nor a row that is added or taken away moves the others."""
    most = request.reading.max_rows
    if most is None:
        return None
    validation = validation_of(request)
    ids = (row.row_id for row in validation.accepted(made or records_of(request), request.source))
    return set(nsmallest(most, ids, key=lambda row_id: place_in_draw(request.seed, row_id)))


STAGE = Stage(name="preference_shard", code_version=4, request=ShardRequest, run=run)
