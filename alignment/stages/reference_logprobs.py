"""Stage `reference_logprobs`: one shard's log-probs under one checkpoint, each sequence scored once, ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.measure import LogpCounts
from alignment.data.rows import ROWS_FILE, SPLIT_AT, PreferenceRow, are_held_out, iter_rows, read_columns
from alignment.data.tokens import Dropped, require_few_rewritten
from alignment.errors import BadInput
from alignment.logprobs.cache import LogprobCache
from alignment.logprobs.effort import Ranks
from alignment.logprobs.keys import LABELLED, PAIR, PAIR_WITH_FIRSTS, WIDE, fingerprint, numerics_class
from alignment.logprobs.reference import Reference, ids_of, reference_pass, ring
from alignment.logprobs.row_groups import runs
from alignment.logprobs.table import (
    DROPPED_FILE,
    DROPPED_SCHEMA,
    LOGPROBS_FILE,
    Written,
    dropped_table,
    logprobs_schema,
    logprobs_table,
    writer,
)
from alignment.logprobs.token_ids import ROWS_AT_ONCE, policy_name
from alignment.models.checkpoint import read_config, whole_summary
from alignment.models.quantised import Quantisation
from alignment.models.runner import tf32_products
from alignment.recipe.forward import TokenPolicy
from alignment.stages.stage import Context, ReferenceSummary, Request, Result, Stage
from alignment.store import Artifact

UNPAIRED = "the shard holds unpaired rows, and the method needs pairs of a chosen and a rejected completion"
PAIRED = "the shard holds pairs, and the method needs completions with a label: build it with split_pairs"


class Scoring(Request):
    """What log-probs of a checkpoint depend on beside the rows.

    `batch_tokens` is tokens of one forward pass: it changes speed, and in 16 bits or with TF32 the values on a GPU.
    `sharded` cuts the model over the processes, where there are several.
    Asking anew because of `tokens.max_dropped` scores nothing: the values are known.
    """

    speed_only: ClassVar[frozenset[str]] = frozenset({"batch_tokens", "sharded"})
    absent_by_default: ClassVar[frozenset[str]] = frozenset({"first_tokens", "held_out_fraction", "tf32", "quantise"})

    checkpoint: Artifact
    tokens: TokenPolicy
    precision: str
    batch_tokens: int
    sharded: bool = False
    tf32: bool = False
    quantise: Quantisation | None = None
    """How the checkpoint's linear layers are kept (`Lora.quantise`): as the policy that is trained beside them."""
    first_tokens: bool = False
    """Whether the first min(lengths) tokens of both sides of a pair are scored as well (`Method.first_tokens`)."""
    held_out_fraction: float | None = None
    """Given for labelled rows, whose partners' completions are scored as well: partners are on the same side of this
    split of train and held-out rows."""

    def identity(self) -> Any:
        """The shape of a pass is part of it where bits depend on it."""
        identity = super().identity() | self.tokens.drop_limit()
        if self.precision not in WIDE or self.tf32:
            identity |= {"batch_tokens": self.batch_tokens}
        return identity


class ReferenceRequest(Scoring):
    """The log-probs of one shard."""

    shard: Artifact


def run(request: ReferenceRequest, context: Context) -> Result:
    """Writes logprobs.parquet (rows in the shard's order) and dropped.parquet, `ROWS_AT_ONCE` rows at a time.

    The data version is over row ids, sequence keys, fingerprint and dropped rows, never over the floats.
    Raises `BadInput` for a shard of the other kind of rows, for a token policy the model has no positions for, and
    where the chat template writes more than `tokens.max_dropped` of the prompts otherwise once an answer follows.
    """
    return score_shards(request, context, {request.shard: context.out})


def reference_and_cache(request: Scoring, context: Context) -> tuple[Reference, LogprobCache]:
    """The checkpoint as it is scored, and what is remembered of it."""
    recorded = context.store.commit_of(request.checkpoint).summary
    about = whole_summary(recorded, lambda: context.fetch(request.checkpoint))
    name = fingerprint(
        about["weights_digest"],
        about["config_digest"],
        request.precision,
        quantisation=request.quantise,
        numerics=numerics_class(
            request.precision,
            request.batch_tokens,
            lambda: read_config(context.fetch(request.checkpoint)),
            request.tf32,
        ),
        rope_by_length=about["rope_by_length"],
    )
    reference = Reference(
        lambda: context.fetch(request.checkpoint),
        name,
        request.tokens,
        request.precision,
        request.batch_tokens,
        context.runs_code(request.checkpoint),
        request.quantise,
        request.sharded and context.world_size > 1,
    )
    policy = policy_name(
        request.tokens, about, lambda: context.fetch(request.checkpoint), context.runs_code(request.checkpoint)
    )
    return reference, LogprobCache(context.store, name, policy)


def score_shards(request: Scoring, context: Context, places: Mapping[Artifact, Path]) -> Result:
    """Writes the log-probs of each shard into its folder of `places`; every rank calls it. The result is of all."""
    reference, cache = reference_and_cache(request, context)
    ranks = Ranks(context.rank, context.world_size)
    written, logps = Written(reference.fingerprint), LogpCounts()
    with ranks.together(), tf32_products(request.tf32):
        for shard, folder in places.items():
            _score_shard(request, context.fetch(shard) / ROWS_FILE, folder, (reference, cache, ranks), written, logps)
    if ranks.rank:  # another rank than the first: its share is in the cache
        return Result(digest="")
    require_few_rewritten(written.dropped, written.rows, request.tokens, f"checkpoint {request.checkpoint.digest[:12]}")
    cache.compact()
    summary = ReferenceSummary(**written.summary(), logps=logps.numbers())
    return Result(digest=written.digest, summary=summary)


def _score_shard(
    request: Scoring,
    path: Path,
    folder: Path,
    by: tuple[Reference, LogprobCache, Ranks],
    written: Written,
    logps: LogpCounts,
) -> None:
    """Scores the rows in a shard's file, and adds them to what is written so far."""
    reference, cache, ranks = by
    names = PAIR_WITH_FIRSTS if request.first_tokens else PAIR if request.held_out_fraction is None else LABELLED
    with ExitStack() as open_files:
        files = None
        if ranks.rank == 0:
            output = {LOGPROBS_FILE: logprobs_schema(names), DROPPED_FILE: DROPPED_SCHEMA}
            files = [open_files.enter_context(writer(folder / file, schema)) for file, schema in output.items()]
        partners: dict[str, str] | None = None
        if request.held_out_fraction is not None:  # only the first rank, which deals the work, has to know
            partners = _partners(path, request.held_out_fraction, reference, cache) if ranks.rank == 0 else {}
        for row_ids, rows in _parts_of(path, labelled=partners is not None):
            done = reference_pass(
                row_ids,
                rows if partners is None else partial(iter_rows, path),
                reference,
                cache,
                ranks,
                first_tokens=request.first_tokens,
                partners=partners,
            )
            if done is not None and files is not None:
                table = logprobs_table(done, names)
                logps.add(table)
                files[0].write_table(table)
                files[1].write_table(dropped_table(done))
                written.add(done)


def _parts_of(
    path: Path, *, labelled: bool = False
) -> Iterator[tuple[list[str], Callable[[], Iterator[PreferenceRow]]]]:
    """Row ids of about `ROWS_AT_ONCE` rows of a shard, and what reads these rows; in the shard's order."""
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        for chosen in runs(groups, ROWS_AT_ONCE):
            table = file.read_row_groups(chosen, columns=["row_id", "label"])
            if len(table) and pc.any(pc.is_valid(table["label"])).as_py() != labelled:
                raise BadInput(PAIRED if labelled else UNPAIRED)
            yield table["row_id"].to_pylist(), partial(iter_rows, path, chosen)


def _partners(path: Path, held_out_fraction: float, reference: Reference, cache: LogprobCache) -> dict[str, str]:
    """The ring of the rows that are trained on, and that of the held-out ones; dropped rows are in neither.

    Rows whose ids are not remembered are tokenised.
    """
    rows_at = read_columns(path, "row_id", SPLIT_AT)
    apart = set(rows_at["row_id"].filter(are_held_out(rows_at[SPLIT_AT], held_out_fraction)).to_pylist())
    held_out: dict[bool, list[str]] = {True: [], False: []}
    for row_ids, rows in _parts_of(path, labelled=True):
        reasons = cache.token_ids.reasons(row_ids)
        if unknown := [row_id for row_id in row_ids if row_id not in reasons]:
            fresh = ids_of(unknown, rows, reference, cache)
            reasons |= {row_id: found.reason if isinstance(found, Dropped) else None for row_id, found in fresh.items()}
        for row_id in row_ids:
            if reasons[row_id] is None:
                held_out[row_id in apart].append(row_id)
    return ring(held_out[True]) | ring(held_out[False])


STAGE: Stage[ReferenceRequest] = Stage(
    name="reference_logprobs", code_version=4, request=ReferenceRequest, run=run, device="gpu", elastic=True
)
