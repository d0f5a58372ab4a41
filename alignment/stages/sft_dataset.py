"""`sft_dataset`: demonstrations to fine-tune on, validated, sampled and split, with a quarantine."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import ClassVar

from pydantic import Field, model_validator

from alignment.data.demonstrations import normalise
from alignment.data.embedded import embedded
from alignment.data.hub import hub_name, hub_records
from alignment.data.readers import Record, describe, read_records
from alignment.data.rows import HELD_OUT_FILE, TRAIN_FILE, SftRow, is_held_out, write_sft_rows
from alignment.data.validate import (
    QUARANTINE_FILE,
    Quarantined,
    duplicate_of,
    most_common,
    reason_counts,
    write_quarantine,
)
from alignment.digest import json_digest, lines_digest
from alignment.errors import BadInput
from alignment.recipe.data import DataSource
from alignment.stages.stage import Context, Request, Result, SourceFile, Stage
from alignment.store import Summary


class SftDatasetRequest(Request):
    """One of `files`, `hub` and `embedded`. `max_rows` valid rows are sampled by `seed`; None takes all.

    Rows whose id is in `withdrawn` (sorted) are left out.
    """

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"withdrawn"})

    files: list[SourceFile] = Field(default_factory=list)
    hub: DataSource | None = None
    embedded: str | None = None
    seed: int
    max_rows: int | None = Field(default=None, ge=1)
    held_out_fraction: float = Field(ge=0, lt=1)
    withdrawn: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> SftDatasetRequest:
        if bool(self.files) + (self.hub is not None) + (self.embedded is not None) != 1:
            raise ValueError("give exactly one of files, hub, embedded")
        return self


class SftDatasetSummary(Summary):
    """`rows` are those sampled, `train` and `held_out` together; `source_rows` all records that there were."""

    rows: int
    train: int | None = None
    held_out: int | None = None
    quarantined: int | None = None
    reasons: dict[str, int] = Field(default_factory=dict)
    source_rows: int | None = None
    not_sampled: int | None = None
    withdrawn: int | None = None
    """Records that were left out as somebody withdrew them; not set where the request names none."""


def sources_of(request: SftDatasetRequest) -> Iterator[tuple[str, Iterable[Record]]]:
    """(name that rows carry, records) of each source, in the order given."""
    for file in request.files:
        yield file.url.rsplit("/", 1)[-1], read_records(file.url, file.sha256)
    if request.hub is not None:
        yield hub_name(request.hub), hub_records(request.hub)
    if request.embedded is not None:
        generated = enumerate(embedded(request.embedded).sft_records(request.seed), start=1)
        yield f"embedded:{request.embedded}", (Record(number, value=value) for number, value in generated)


def accepted(
    sources: Iterable[tuple[str, Iterable[Record]]],
    quarantined: list[Quarantined],
    seen: dict[str, tuple[str, int]],
    withdrawn: Counter[str] | None = None,
) -> Iterator[SftRow]:
    """Valid rows in source order, each once; the rest is added to `quarantined`, where a row stands to `seen`.

    Records of rows in `withdrawn` are counted there, and nothing of them is kept.
    """
    for source, records in sources:
        for record in records:
            row = record.problem or normalise(record.value, source, record.source_row)
            if withdrawn and isinstance(row, SftRow) and row.row_id in withdrawn:
                withdrawn[row.row_id] += 1
                continue
            if isinstance(row, SftRow) and row.row_id not in seen:
                seen[row.row_id] = (source, record.source_row)
                yield row
                continue
            reason = duplicate_of(*seen[row.row_id], here=source) if isinstance(row, SftRow) else row
            text = record.text if record.problem else describe(record.value)
            quarantined.append(Quarantined(source, record.source_row, reason, text))


def sample(rows: Iterable[SftRow], seed: int, max_rows: int | None) -> list[SftRow]:
    """All rows, or `max_rows` of them drawn by a hash of seed and row id, so that their order plays no part.

    Sorted by row id: what is written depends only on which rows there are. A row that a sample of n holds, a
    bigger sample of the same seed holds too.
    """
    if max_rows is None:
        chosen = list(rows)
    else:
        chosen = heapq.nsmallest(max_rows, rows, key=lambda row: json_digest([seed, row.row_id]))
    return sorted(chosen, key=lambda row: row.row_id)


def run(request: SftDatasetRequest, context: Context) -> Result:
    """Writes train.parquet and held_out.parquet (by row id) and quarantine.parquet (in source order).

    Raises `BadInput` if a source cannot be read, or leaves no row to train on.
    """
    quarantined: list[Quarantined] = []
    seen: dict[str, tuple[str, int]] = {}
    withdrawn = Counter(dict.fromkeys(request.withdrawn, 0))
    rows = sample(accepted(sources_of(request), quarantined, seen, withdrawn), request.seed, request.max_rows)
    held_out = [row for row in rows if is_held_out(row.prompt, row.form, request.held_out_fraction)]
    held_out_ids = {row.row_id for row in held_out}
    train = [row for row in rows if row.row_id not in held_out_ids]
    reasons = reason_counts(entry.reason for entry in quarantined)
    if not train:
        where = request.files[0].url if len(request.files) == 1 else None
        what = f"all {len(rows)} rows are held out" if rows else most_common(reasons)
        raise BadInput(f"no row to fine-tune on; {what}", file=where)
    write_sft_rows(context.out / TRAIN_FILE, train)
    write_sft_rows(context.out / HELD_OUT_FILE, held_out)
    write_quarantine(context.out / QUARANTINE_FILE, quarantined)
    return Result(
        digest=lines_digest(
            [*(f"train {row.row_id}" for row in train), *(f"held_out {i}" for i in sorted(held_out_ids))]
        ),
        summary=SftDatasetSummary(
            rows=len(rows),
            train=len(train),
            held_out=len(held_out),
            quarantined=len(quarantined),
            reasons=reasons,
            source_rows=len(seen) + len(quarantined) + withdrawn.total(),
            not_sampled=len(seen) - len(rows),
            **({"withdrawn": withdrawn.total()} if withdrawn else {}),
        ),
    )


STAGE = Stage(name="sft_dataset", code_version=3, request=SftDatasetRequest, run=run)
