"""`preference_shard`: one source's records → validated rows and a quarantine; no model takes part."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nsmallest
from typing import Any, ClassVar

from pydantic import Field, model_validator

from alignment.data.embedded import embedded
from alignment.data.hub import hub_name, hub_records
from alignment.data.measure import Contradictions, measured_columns, pair_numbers
from alignment.data.mixing import place_in_draw
from alignment.data.readers import Record, read_records
from alignment.data.rows import PAIR_ID, ROWS_FILE, write_rows
from alignment.data.validate import DUPLICATE, QUARANTINE_FILE, Validation, most_common, write_quarantine
from alignment.errors import BadInput
from alignment.recipe import DataSource, Reading
from alignment.stages import Context, Request, Result, SourceFile, Stage
from alignment.stages.stage import ShardSummary


class ShardRequest(Request):
    """One of `file`, `hub` and `embedded`; of `parts` contiguous runs of its records, run `part` (0-based).

    For embedded data `part` is the day that is generated from `seed`; elsewhere the seed draws the rows of
    `reading.max_rows`, and is 0 without. Rows whose id is in `withdrawn` (sorted) are left out. With `split_pairs` a
    pair becomes two rows: its chosen completion with a thumb up, its rejected one with a thumb down.
    """

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"withdrawn", "reading", "split_pairs"})

    file: SourceFile | None = None
    hub: DataSource | None = None
    embedded: str | None = None
    part: int = Field(default=0, ge=0)
    parts: int = Field(default=1, ge=1)
    seed: int = 0
    withdrawn: tuple[str, ...] = ()
    reading: Reading = Reading()
    split_pairs: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> ShardRequest:
        if sum(source is not None for source in (self.file, self.hub, self.embedded)) != 1:
            raise ValueError("give exactly one of file, hub, embedded")
        if self.part >= self.parts:
            raise ValueError(f"part {self.part} of {self.parts}")
        return self

    @property
    def source(self) -> str:
        """The name that rows carry: the file's own, wherever it lies."""
        if self.file is not None:
            return self.file.url.rsplit("/", 1)[-1]
        return hub_name(self.hub) if self.hub is not None else f"embedded:{self.embedded}"


def records_of(request: ShardRequest) -> Iterable[Record]:
    """The request's records, in source order."""
    if request.file is not None:
        return read_records(request.file.url, request.file.sha256, request.part, request.parts)
    if request.hub is not None:
        return hub_records(request.hub, request.part, request.parts)
    assert request.embedded is not None
    generated = embedded(request.embedded).preference_records(request.part, request.seed)
    return (Record(number, value=value) for number, value in enumerate(generated, start=1))


def validation_of(request: ShardRequest) -> Validation:
    """What looks at the request's records."""
    return Validation(frozenset(request.withdrawn), request.reading, split_pairs=request.split_pairs)


def run(request: ShardRequest, context: Context) -> Result:
    """Writes rows.parquet in source order and quarantine.parquet; of withdrawn rows only their number is kept, and of
    rows beyond `reading.max_rows` too.

    Raises `BadInput` naming the source if it cannot be read or holds no valid row.
    """
    kept = drawn_rows(request)
    validation = validation_of(request)
    accepted = validation.accepted(records_of(request), request.source)
    write_rows(context.out / ROWS_FILE, (row for row in accepted if kept is None or row.row_id in kept))
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
        rows = validation.rows
        validation.keep(kept)
        where_known["not_drawn"] = rows - validation.rows
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


def drawn_rows(request: ShardRequest) -> set[str] | None:
    """Ids of the rows that `max_rows` keeps, None for all: those with the lowest hash of seed and id, so that neither
    the order of the rows nor a row that is added or taken away moves the others."""
    most = request.reading.max_rows
    if most is None:
        return None
    validation = validation_of(request)
    ids = (row.row_id for row in validation.accepted(records_of(request), request.source))
    return set(nsmallest(most, ids, key=lambda row_id: place_in_draw(request.seed, row_id)))


STAGE = Stage(name="preference_shard", code_version=4, request=ShardRequest, run=run)
