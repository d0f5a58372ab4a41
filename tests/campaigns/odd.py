"""Odd input from a seed: values, bytes, records, Parquet columns, recipes and model folders that no user meant."""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Record = dict[str, Any]


def nested(levels: int) -> Any:
    value: Any = "deep"
    for _ in range(levels):
        value = [value]
    return value


LONG = "x" * 200_000
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf")),
    *("", " ", "1", "true", "NaN", "\ud800", "\x00", "a\r\nb\u2028c", LONG, "../..", "[", "${HOME}", "~", "é" * 200),
    *([], {}, [[]], [None], [{}], {"": ""}, {"role": None}, [{"role": "user"}], [{"role": "user", "content": [1]}]),
    *({"role": "assistant", "content": "x"}, [1, "a", None], {"a": {"b": [{}]}}, "2026-11-28", nested(60)),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [inner for key, below in items for inner in ((*path, key), *places(below, (*path, key)))]


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy with one key or value made odd: another value, a key that is missing, renamed or of another case."""
    changed = copy.deepcopy(value)
    paths = places(changed)
    if not paths:
        return rng.choice(VALUES)
    *above, last = rng.choice(paths)
    inside = changed
    for key in above:
        inside = inside[key]
    action = rng.random()
    if action < 0.6 or isinstance(inside, list):
        inside[last] = copy.deepcopy(rng.choice(VALUES))
    elif action < 0.75:
        del inside[last]
    elif action < 0.9:
        inside[rng.choice(("", "extra", f"{last} ", str(last).upper(), LONG, "prompt", "path"))] = inside.pop(last)
    else:
        inside[last] = [inside[last], inside[last]]
    return changed


def broken(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one thing wrong: flipped, cut, repeated, inserted, or replaced by what downloads leave behind."""
    at, to = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
        lambda: data[:at],
        lambda: data[at:],
        lambda: data[:at] + data[to:],
        lambda: data[:to] + data[at:],
        lambda: data[:at] + rng.randbytes(rng.randrange(1, 30)) + data[at:],
        lambda: data[:at] + rng.choice((b'"', b"\n", b"\x00", b"\xff\xfe", b"{", b"]", b"\xed\xa0\x80")) + data[at:],
        lambda: rng.choice(
            (b"", b"\n", b"[]", b"{}", b"null", b"PAR1", b"\x1f\x8b", b"<!doctype html>", b"\xff\xfea\0")
        ),
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.decode("utf-8", "replace").encode("utf-16"),
    )
    return rng.choice(ways)()


# Files of records in every format that is read.


def as_lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def as_cells(records: list[Any], delimiter: str) -> bytes:
    names = list(dict.fromkeys(name for record in records if isinstance(record, dict) for name in record))
    text = io.StringIO()
    rows = csv.writer(text, delimiter=delimiter)
    rows.writerow(names)
    for record in records:
        cells = record if isinstance(record, dict) else {}
        shown = (cells.get(name, "") for name in names)
        rows.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in shown])
    return text.getvalue().encode("utf-8", "surrogatepass")


WRITERS: dict[str, Callable[[list[Any]], bytes]] = {
    ".jsonl": as_lines,
    ".ndjson": as_lines,
    ".json": lambda records: json.dumps(records).encode(),
    ".csv": lambda records: as_cells(records, ","),
    ".tsv": lambda records: as_cells(records, "\t"),
    ".jsonl.gz": lambda records: gzip.compress(as_lines(records)),
    ".csv.gz": lambda records: gzip.compress(as_cells(records, ",")),
}

WHOLE = (2**62, -(2**62), 0, 1, -1)


def odd_column(rng: random.Random, rows: int) -> pa.Array:
    """A column of a type that preference data has no use for, with values beyond what Python holds."""
    whole = pa.array([rng.choice(WHOLE) for _ in range(rows)], pa.int64())
    small = pa.array([rng.choice((2**31 - 1, -(2**31), 0)) for _ in range(rows)], pa.int32())
    bad = pa.array([b"\xff\xfe"] * rows, pa.binary()).view(pa.string())
    zone = rng.choice((None, "UTC", "Europe/Berlin", "Not/AZone", "+99:99", ""))
    unit = rng.choice(("ms", "us", "ns"))
    types: tuple[Callable[[], pa.Array], ...] = (
        lambda: whole.view(pa.timestamp(unit, zone)),
        lambda: whole.view(pa.duration(rng.choice(("s", "ms", "us", "ns")))),
        lambda: small.view(pa.date32()),
        lambda: whole.view(pa.date64()),
        lambda: small.view(pa.time32(rng.choice(("s", "ms")))),
        lambda: whole.view(pa.time64(rng.choice(("us", "ns")))),
        lambda: pa.StructArray.from_arrays([whole, small], names=["a", "a"]),
        lambda: pa.StructArray.from_arrays([whole.view(pa.date64()), bad], names=["a", "b"]),
        lambda: pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), whole.view(pa.timestamp("us"))),
        lambda: pa.array([[("a", 1), ("a", 2)]] * rows, pa.map_(pa.string(), pa.int64())),
        lambda: pa.array([10**70] * rows, pa.decimal256(76, 0)),
        lambda: pa.array([2**64 - 1] * rows, pa.uint64()),
        lambda: pa.array([1.5] * rows, pa.float16()),
        lambda: pa.array([b"\xff"] * rows, pa.binary()),
        lambda: pa.array([b"0123456789abcdef"] * rows, pa.uuid()),
        lambda: pa.array(["a"] * rows, pa.large_string()).dictionary_encode(),
        lambda: pa.nulls(rows),
        lambda: bad,
    )
    return rng.choice(types)()


def odd_table(records: list[Record], rng: random.Random) -> pa.Table:
    """Records with an odd column beside their own, or in the place of one of them, or of an existing name."""
    table = pa.Table.from_pylist(records)
    column = odd_column(rng, table.num_rows)
    action = rng.random()
    if action < 0.5:
        return table.append_column("unused", column)
    if action < 0.9:
        return table.set_column(rng.randrange(table.num_columns), rng.choice(table.column_names), column)
    return table.append_column(rng.choice(table.column_names), column)


def write_odd(folder: Path, name: str, records: list[Record], rng: random.Random) -> tuple[Path, bool]:
    """A file of these records with something odd in it, and whether it still holds all of them as records."""
    suffix = rng.choice([*WRITERS, ".parquet", ".parquet"])
    path = folder / f"{name}{suffix}"
    action = rng.random()
    if action < 0.05:
        path.mkdir()
        return path, False
    if suffix == ".parquet":
        flat = [{name: cell for name, cell in record.items() if cell != [{}]} for record in records]
        pq.write_table(odd_table(flat, rng), path)  # Parquet has no form for structs without a field
        if action < 0.3:
            path.write_bytes(broken(path.read_bytes(), rng))
        return path, action >= 0.3
    changed = [mutated(record, rng) if rng.random() < 0.6 else record for record in records]
    data = WRITERS[suffix](changed)
    if action < 0.4:
        data = broken(data, rng)
    path.write_bytes(data)
    return path, action >= 0.4 and suffix in (".jsonl", ".ndjson", ".json", ".jsonl.gz")


# Recipes, and folders of models.


def write_odd_yaml(path: Path, value: Record, rng: random.Random) -> Path:
    """A YAML file with one to three odd keys or values, or with broken bytes."""
    changed = value
    for _ in range(rng.randrange(1, 4)):
        changed = mutated(changed, rng)
    try:
        text = yaml.safe_dump(changed, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError):
        text = json.dumps(changed).encode()
    path.write_bytes(broken(text, rng) if rng.random() < 0.3 else text)
    return path


def odd_model(folder: Path, source: Path, rng: random.Random) -> Path:
    """A checkpoint folder with one file missing, broken, empty, a folder, or with other settings or shapes in it."""
    if rng.random() < 0.03:
        folder.write_bytes(b"a file in the place of a folder")
        return folder
    shutil.copytree(source, folder)
    file = rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    action = rng.random()
    if action < 0.1:
        file.unlink()
    elif action < 0.2:
        file.write_bytes(b"")
    elif action < 0.25:
        file.unlink()
        file.mkdir()
    elif action < 0.35:
        index = rng.choice(
            ({"weight_map": {}}, {"weight_map": []}, {}, {"weight_map": {"a": "../x"}}, [], {"weight_map": {"a": 1}})
        )
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        if rng.random() < 0.7:
            (folder / "model.safetensors").unlink()
    elif action < 0.65 and file.suffix == ".json":
        file.write_text(json.dumps(mutated(json.loads(file.read_text(encoding="utf-8")), rng)), encoding="utf-8")
    elif action < 0.8:
        shapes = {
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "vocab_size": 7,
            "num_attention_heads": 5,
            "model_type": "qwen2",
        }
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = rng.choice(sorted(shapes))
        (folder / "config.json").write_text(json.dumps(config | {name: shapes[name]}), encoding="utf-8")
    else:
        file.write_bytes(broken(file.read_bytes(), rng))
    return folder
