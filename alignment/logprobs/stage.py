"""Stage `reference_logprobs`: one shard's log-probs under one checkpoint, each sequence scored once, ever."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.artifacts import Artifact
from alignment.digest import lines_digest
from alignment.errors import BadInput
from alignment.logprobs.cache import LogprobCache, RowKeys
from alignment.logprobs.fingerprint import fingerprint
from alignment.logprobs.keys import policy_digest
from alignment.logprobs.ranks import Ranks
from alignment.logprobs.reference import Pass, Reference, reference_pass
from alignment.models.describe import checkpoint_summary
from alignment.preferences.row import ROWS_FILE, iter_rows
from alignment.recipe import TokenPolicy
from alignment.stages import Context, Request, Result, Stage

LOGPROBS_FILE = "logprobs.parquet"
DROPPED_FILE = "dropped.parquet"
LOGPROBS_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("chosen_logp", pa.float64()),
        ("rejected_logp", pa.float64()),
        ("chosen_tokens", pa.int32()),
        ("rejected_tokens", pa.int32()),
        ("chosen_key", pa.string()),
        ("rejected_key", pa.string()),
    ]
)
DROPPED_SCHEMA = pa.schema([("row_id", pa.string()), ("reason", pa.string())])
NEEDED = ("weights_digest", "config_digest", "tokenizer_digest")


class ReferenceRequest(Request):
    """`batch_tokens` is tokens of one forward pass: it changes speed, never keys."""

    speed_only: ClassVar[frozenset[str]] = frozenset({"batch_tokens"})

    checkpoint: Artifact
    shard: Artifact
    tokens: TokenPolicy
    precision: str
    batch_tokens: int


def run(request: ReferenceRequest, context: Context) -> Result:
    """Writes logprobs.parquet (rows in the shard's order) and dropped.parquet.

    The data version is over row ids, sequence keys, fingerprint and dropped rows, never over the floats.
    Raises `BadInput` for a shard of unpaired rows and for a token policy the model has no positions for.
    """
    about = _checkpoint(request.checkpoint, context)
    name = fingerprint(about["weights_digest"], about["config_digest"], request.precision)
    reference = Reference(
        lambda: context.fetch(request.checkpoint), name, request.tokens, request.precision, request.batch_tokens
    )
    cache = LogprobCache(context.store, name, policy_digest(request.tokens, about["tokenizer_digest"]))
    path = context.fetch(request.shard) / ROWS_FILE
    done = reference_pass(
        _row_ids(path), lambda: iter_rows(path), reference, cache, Ranks(context.rank, context.world_size)
    )
    if done is None:  # another rank than the first: its share is in the cache
        return Result(digest="")
    write_logprobs(context.out / LOGPROBS_FILE, done)
    _write_dropped(context.out / DROPPED_FILE, done.keys)
    return Result(digest=_digest(done.keys, name), summary=_summary(done, name))


def logprobs_table(done: Pass) -> pa.Table:
    """The kept rows of a pass, in its order."""
    rows = []
    for row in done.kept:
        assert row.chosen is not None
        assert row.rejected is not None
        (chosen, chosen_tokens), (rejected, rejected_tokens) = done.values[row.chosen], done.values[row.rejected]
        keys = (row.chosen.hex(), row.rejected.hex())
        rows.append((row.row_id, chosen, rejected, chosen_tokens, rejected_tokens, *keys))
    columns = list(zip(*rows, strict=True)) or [()] * len(LOGPROBS_SCHEMA)
    return pa.table([list(column) for column in columns], schema=LOGPROBS_SCHEMA)


def write_logprobs(path: Path, done: Pass) -> None:
    pq.write_table(logprobs_table(done), path, compression="zstd")


def _write_dropped(path: Path, rows: Iterable[RowKeys]) -> None:
    dropped = [{"row_id": row.row_id, "reason": row.reason} for row in rows if row.reason is not None]
    pq.write_table(pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA), path, compression="zstd")


def _checkpoint(artifact: Artifact, context: Context) -> dict[str, Any]:
    """What the fingerprint needs, from the commit record; from the files where a record does not say."""
    summary = context.store.commit_of(artifact).summary
    return summary if all(name in summary for name in NEEDED) else checkpoint_summary(context.fetch(artifact))


def _row_ids(path: Path) -> list[str]:
    table = pq.read_table(path, columns=["row_id", "label"])
    if pc.any(pc.is_valid(table["label"])).as_py():
        raise BadInput("the shard holds unpaired rows, and DPO needs pairs of a chosen and a rejected completion")
    ids: list[str] = table["row_id"].to_pylist()
    return ids


def _digest(rows: Iterable[RowKeys], name: str) -> str:
    lines = sorted(
        f"dropped {row.row_id} {row.reason}"
        if row.chosen is None or row.rejected is None
        else f"{row.row_id} {row.chosen.hex()} {row.rejected.hex()}"
        for row in rows
    )
    return lines_digest([f"fingerprint {name}", *lines])


def _summary(done: Pass, name: str) -> dict[str, object]:
    return {
        "rows": len(done.kept),
        "dropped": done.dropped,
        "sequences": done.sequences,
        "cache_hits": done.cache_hits,
        "scored": done.scored,
        "tokens": done.tokens,
        "tokens_per_second": round(done.tokens / done.seconds, 1) if done.scored else 0.0,
        "fingerprint": name,
    }


STAGE: Stage[ReferenceRequest] = Stage(
    name="reference_logprobs", code_version=2, request=ReferenceRequest, run=run, device="gpu"
)
