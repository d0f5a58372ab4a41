"""Stage `reference_logprobs`: one shard's log-probs under one checkpoint, each sequence scored once, ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.measure import LogpCounts
from alignment.data.rows import ROWS_FILE, PreferenceRow, iter_rows
from alignment.data.tokens import require_few_rewritten
from alignment.errors import BadInput
from alignment.logprobs.cache import LogprobCache
from alignment.logprobs.effort import Ranks
from alignment.logprobs.keys import WIDE, fingerprint, numerics_class
from alignment.logprobs.reference import Reference, reference_pass
from alignment.logprobs.row_groups import runs
from alignment.logprobs.table import OUTPUT, Written, dropped_table, logprobs_table, writer
from alignment.logprobs.token_ids import ROWS_AT_ONCE, policy_name
from alignment.models.checkpoint import whole_summary
from alignment.recipe import TokenPolicy
from alignment.stages import Context, Request, Result, Stage
from alignment.stages.stage import ReferenceSummary
from alignment.store import Artifact

UNPAIRED = "the shard holds unpaired rows, and DPO needs pairs of a chosen and a rejected completion"


class ReferenceRequest(Request):
    """`batch_tokens` is tokens of one forward pass: it changes speed, and in 16 bits the values on a GPU.

    Asking anew because of `tokens.max_dropped` scores nothing: the values are known.
    """

    speed_only: ClassVar[frozenset[str]] = frozenset({"batch_tokens"})

    checkpoint: Artifact
    shard: Artifact
    tokens: TokenPolicy
    precision: str
    batch_tokens: int

    def identity(self) -> Any:
        identity = super().identity() | self.tokens.drop_limit()
        if self.precision not in WIDE:
            identity |= {"batch_tokens": self.batch_tokens}
        return identity


def run(request: ReferenceRequest, context: Context) -> Result:
    """Writes logprobs.parquet (rows in the shard's order) and dropped.parquet, `ROWS_AT_ONCE` rows at a time.

    The data version is over row ids, sequence keys, fingerprint and dropped rows, never over the floats.
    Raises `BadInput` for a shard of unpaired rows, for a token policy the model has no positions for, and where the
    chat template writes more than `tokens.max_dropped` of the prompts otherwise once an answer follows.
    """
    recorded = context.store.commit_of(request.checkpoint).summary
    about = whole_summary(recorded, lambda: context.fetch(request.checkpoint))
    name = fingerprint(
        about["weights_digest"],
        about["config_digest"],
        request.precision,
        numerics=numerics_class(request.precision, request.batch_tokens),
        rope_by_length=about["rope_by_length"],
    )
    reference = Reference(
        lambda: context.fetch(request.checkpoint),
        name,
        request.tokens,
        request.precision,
        request.batch_tokens,
        context.runs_code(request.checkpoint),
    )
    policy = policy_name(
        request.tokens, about, lambda: context.fetch(request.checkpoint), context.runs_code(request.checkpoint)
    )
    cache = LogprobCache(context.store, name, policy)
    ranks = Ranks(context.rank, context.world_size)
    written, logps = Written(name), LogpCounts()
    with ExitStack() as open_files:
        files = None
        if ranks.rank == 0:
            files = [open_files.enter_context(writer(context.out / file, schema)) for file, schema in OUTPUT.items()]
        open_files.enter_context(ranks.together())
        for row_ids, rows in _parts_of(context.fetch(request.shard) / ROWS_FILE):
            done = reference_pass(row_ids, rows, reference, cache, ranks)
            if done is not None and files is not None:
                table = logprobs_table(done)
                logps.add(table)
                files[0].write_table(table)
                files[1].write_table(dropped_table(done))
                written.add(done)
    if files is None:  # another rank than the first: its share is in the cache
        return Result(digest="")
    require_few_rewritten(written.dropped, written.rows, request.tokens, f"checkpoint {request.checkpoint.digest[:12]}")
    cache.compact()
    summary = ReferenceSummary(**written.summary(), logps=logps.numbers())
    return Result(digest=written.digest, summary=summary)


def _parts_of(path: Path) -> Iterator[tuple[list[str], Callable[[], Iterator[PreferenceRow]]]]:
    """Row ids of about `ROWS_AT_ONCE` rows of a shard, and what reads these rows; in the shard's order."""
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        for chosen in runs(groups, ROWS_AT_ONCE):
            table = file.read_row_groups(chosen, columns=["row_id", "label"])
            if pc.any(pc.is_valid(table["label"])).as_py():
                raise BadInput(UNPAIRED)
            yield table["row_id"].to_pylist(), partial(iter_rows, path, chosen)


STAGE: Stage[ReferenceRequest] = Stage(
    name="reference_logprobs", code_version=4, request=ReferenceRequest, run=run, device="gpu"
)
