"""`samples.parquet`: a row for each item and metric. Every comparison starts from this table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.digest import canonical_json, lines_digest
from alignment.errors import BadInput, no_such
from eval.statistics import Mean, clustered_mean

SAMPLES_FILE = "samples.parquet"
MAX_VALUE = 1e100
"""Largest magnitude of a value: the square of a much larger value is infinite, and no metric has such values."""
REQUIRED_COLUMNS = ("suite", "id", "cluster", "metric")
SCHEMA = pa.schema(
    [
        ("suite", pa.string()),
        ("id", pa.string()),
        ("cluster", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("response", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Sample:
    """The value of a metric for an item. Samples with the same prompt have the same `cluster`; `detail` is JSON.

    `value` is None for an item that could not be answered or judged; `detail` then gives the reason.
    """

    suite: str
    id: str
    cluster: str
    metric: str
    value: float | None
    response: str
    detail: str = "{}"


def sample_detail(**values: Any) -> str:
    """A sample's `detail` as JSON, without the values that are None."""
    given = {name: value for name, value in values.items() if value is not None}
    return json.dumps(given, ensure_ascii=False, sort_keys=True)


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Writes a samples file, in the given order."""
    columns = {column.name: [getattr(sample, column.name) for sample in samples] for column in fields(Sample)}
    pq.write_table(pa.table(columns, schema=SCHEMA), path, compression="zstd")


def read_samples(path: str | Path) -> list[Sample]:
    """The samples in a file, or in the samples file of a folder.

    Raises `BadInput` for another kind of file, a row without a suite, id, cluster or metric, and a value that is not a
    number, not finite, or beyond 1e100 in magnitude.
    """
    path = Path(path)
    if path.is_dir():
        path = path / SAMPLES_FILE
    try:
        names = pq.read_schema(path).names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise BadInput("this column appears twice", file=str(path), field=twice[0])
        table = pq.read_table(path)
    except FileNotFoundError:
        raise BadInput(no_such("file", path), file=str(path)) from None
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise BadInput(f"not a Parquet file: {str(error).splitlines()[0]}", file=str(path)) from error
    absent = [name for name in SCHEMA.names if name not in table.column_names]
    if absent:
        raise BadInput(f"not a samples file: no column {', '.join(absent)}", file=str(path))
    _refuse_text(table, str(path))
    try:
        rows = table.select(SCHEMA.names).cast(SCHEMA).to_pylist()
    except UnicodeDecodeError as error:
        raise BadInput("not a samples file: a text in it is not UTF-8", file=str(path)) from error
    except (KeyError, pa.ArrowException) as error:
        raise BadInput(f"not a samples file: {str(error).splitlines()[0]}", file=str(path)) from error
    for number, row in enumerate(rows, start=1):
        for name in REQUIRED_COLUMNS:
            if row[name] is None:
                raise BadInput("not a sample: missing", file=str(path), row=number, field=name)
        if row["value"] is not None and not math.isfinite(row["value"]):
            raise BadInput(f"{row['value']} is not a finite number", file=str(path), row=number, field="value")
        if row["value"] is not None and abs(row["value"]) > MAX_VALUE:
            raise BadInput(f"{row['value']} is beyond {MAX_VALUE:g}", file=str(path), row=number, field="value")
    return [Sample(**row) for row in rows]


def _refuse_text(table: pa.Table, file: str) -> None:
    """Raises `BadInput` if the column of values is not numeric, because a cast would guess numbers from text."""
    column = table.column("value")
    kinds = pa.types
    numeric = (kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_decimal, kinds.is_null)
    if any(is_kind(column.type) for is_kind in numeric):
        return
    row = next((number for number, value in enumerate(column, start=1) if value.is_valid), None)
    raise BadInput(f"holds {column.type}, not numbers", file=file, row=row, field="value")


def samples_digest(samples: Iterable[Sample]) -> str:
    """A digest (64 hex digits) over all samples, whatever their order and however the file was written."""
    return lines_digest(sorted(canonical_json(astuple(sample)).decode("utf-8", "surrogatepass") for sample in samples))


def metric_means(samples: Iterable[Sample], metrics: Sequence[str]) -> dict[str, Mean]:
    """Mean and cluster-robust standard error per metric over the measured rows; unmeasured metrics are left out."""
    values: dict[str, list[Sample]] = {metric: [] for metric in metrics}
    for sample in samples:
        if sample.value is not None:
            values[sample.metric].append(sample)
    return {
        metric: clustered_mean([s.value for s in rows if s.value is not None], [s.cluster for s in rows])
        for metric, rows in values.items()
        if rows
    }
