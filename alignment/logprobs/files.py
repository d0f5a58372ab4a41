"""`align reference`: a file of pairs under a local model folder, through the same cache as the DAG's stage."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from alignment.data.files import pin_file
from alignment.data.forms.gathered import gathered
from alignment.data.forms.table import read_record
from alignment.data.readers import read_records
from alignment.data.rows import PreferenceRow
from alignment.data.tokens import require_few_rewritten
from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.logprobs.cache import LogprobCache
from alignment.logprobs.keys import fingerprint, numerics_class
from alignment.logprobs.reference import Reference, reference_pass
from alignment.logprobs.table import LOGPROBS_SCHEMA, Written, logprobs_table, writer
from alignment.logprobs.token_ids import ROWS_AT_ONCE, policy_name
from alignment.models.checkpoint import (
    PRECISIONS,
    config_digest,
    max_positions,
    read_config,
    rope_by_length,
    tokenizer_digest,
    weights_digest,
)
from alignment.models.ends import end_ids
from alignment.models.weights import weight_files
from alignment.recipe.faults import fault
from alignment.recipe.forward import Reference as ReferenceSettings
from alignment.recipe.forward import TokenPolicy
from alignment.store import Store

COLUMNS = ["row_id", "chosen_logp", "rejected_logp", "chosen_tokens", "rejected_tokens"]
UNPAIRED = "unpaired row: this needs pairs"
DIGEST_LENGTH = 64


def reference_file(
    model: Path,
    pairs: Path,
    out: Path,
    *,
    store: Store,
    tokens: Mapping[str, Any] | None = None,
    precision: str = "float32",
    batch_tokens: int | None = None,
) -> dict[str, Any]:
    """Scores a file of pairs and writes Parquet: row_id, both log-probs (nat) and both token counts.

    Rows stand in the file's order, repeated ones repeated. `tokens` is what a recipe's section `tokens` would say;
    `max_length` is the model's own limit by default.
    Returns rows, sequences (distinct), cache_hits, scored, tokens (that went through the model), seconds,
    and what is not in the output: quarantined and dropped {reason: count}. Raises `BadInput`.
    """
    began = time.monotonic()
    if precision not in PRECISIONS:
        raise BadInput(f"unknown precision '{precision}'; there are {', '.join(PRECISIONS)}")
    weight_files(model)
    policy = _policy(model, tokens or {})
    config, batch_tokens = read_config(model), batch_tokens or ReferenceSettings().batch_tokens
    name = fingerprint(
        _weights(model, store),
        config_digest(config),
        precision,
        numerics=numerics_class(precision, batch_tokens, lambda: config),
        rope_by_length=rope_by_length(config),
    )
    reference = Reference(lambda: model, name, policy, precision, batch_tokens)
    about = {"tokenizer_digest": tokenizer_digest(model), "end_ids": end_ids(model)}
    cache = LogprobCache(store, name, policy_name(policy, about, lambda: model))
    written, quarantined = Written(name), Counter[str]()
    with _arriving(out) as file:
        valid = _valid(pairs, quarantined)
        while rows := list(islice(valid, ROWS_AT_ONCE)):
            done = reference_pass([row.row_id for row in rows], partial(iter, rows), reference, cache)
            assert done is not None
            file.write_table(logprobs_table(done).select(COLUMNS))
            written.add(done)
        require_few_rewritten(written.dropped, written.rows, policy, model)
        if not written.rows:
            raise BadInput(_nothing_left(written.dropped, quarantined), file=str(pairs))
    cache.compact()
    told = written.summary()
    return {
        **{name: told[name] for name in ("rows", "sequences", "cache_hits", "scored", "tokens", "dropped")},
        "seconds": round(time.monotonic() - began, 3),
        "quarantined": dict(sorted(quarantined.items())),
    }


def _nothing_left(dropped: Counter[str], quarantined: Counter[str]) -> str:
    if dropped:
        return f"no rows left after the token policy ({', '.join(f'{why}: {count}' for why, count in dropped.items())})"
    common = quarantined.most_common(1)
    return f"no valid pair; {common[0][0] if common else 'it holds no records'}"


def _policy(model: Path, tokens: Mapping[str, Any]) -> TokenPolicy:
    given = {name: value for name, value in tokens.items() if value is not None}
    try:
        return TokenPolicy.model_validate({"max_length": max_positions(model) or TokenPolicy().max_length} | given)
    except ValidationError as error:
        field, told = fault(error, TokenPolicy)
        raise BadInput(told, field=f"tokens.{field}") from error


def _valid(pairs: Path, quarantined: Counter[str]) -> Iterator[PreferenceRow]:
    """The valid pairs in file order; what is none is counted by its reason."""
    for record in gathered(read_records(str(pairs))):
        if record.problem:
            quarantined[record.problem] += 1
            continue
        outcome = read_record(record.value, pairs.name, record.source_row)
        quarantined.update(refused.reason for refused in outcome.refused)
        for row in outcome.rows:
            if row.paired:
                yield row
            else:
                quarantined[UNPAIRED] += 1


def _weights(model: Path, store: Store) -> str:
    """The weights' digest, remembered under the files' own, which are remembered by size and time."""
    files = [pin_file(str(path.absolute())).sha256 for path in weight_files(model)]
    path = store.path("cache", "weights_digests", json_digest(files))
    try:
        known = str(store.fs.cat_file(path), "ascii", "replace")
    except FileNotFoundError:
        known = ""
    if len(known) != DIGEST_LENGTH:
        known = weights_digest(model)
        store.fs.makedirs(store.path("cache", "weights_digests"), exist_ok=True)
        store.fs.pipe_file(path, known.encode())
    return known


@contextmanager
def _arriving(out: Path) -> Iterator[pq.ParquetWriter]:
    """A file that is there whole once all went well, or not at all."""
    arriving = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with writer(arriving, pa.schema([LOGPROBS_SCHEMA.field(column) for column in COLUMNS])) as file:
            yield file
        arriving.replace(out)
    except OSError as error:
        raise BadInput(f"cannot be written: {error.strerror or error}", file=str(out)) from error
    finally:
        arriving.unlink(missing_ok=True)
