"""What of a shard the cache of reference log-probs does not hold yet."""

from __future__ import annotations

import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.rows import ROWS_FILE
from alignment.logprobs.cache import LogprobCache, as_keys
from alignment.logprobs.keys import fingerprint, numerics_class
from alignment.logprobs.token_ids import policy_name
from alignment.models.checkpoint import whole_summary
from alignment.stages.reference_logprobs import ReferenceRequest
from alignment.store import Store


def outstanding_rows(store: Store, request: ReferenceRequest) -> tuple[int, int]:
    """Rows of a request's shard, and how many of them have a side that was never scored under its reference.

    Loads no model, and reads the row ids of the shard alone.
    """
    checkpoint = store.commit_of(request.checkpoint)
    about = whole_summary(checkpoint.summary, lambda: store.fetch(request.checkpoint))
    name = fingerprint(
        about["weights_digest"],
        about["config_digest"],
        request.precision,
        numerics=numerics_class(request.precision, request.batch_tokens, request.tf32),
        rope_by_length=about["rope_by_length"],
    )
    policy = policy_name(request.tokens, about, lambda: store.fetch(request.checkpoint))
    cache = LogprobCache(store, name, policy)
    table = pq.read_table(store.fetch(request.shard) / ROWS_FILE, columns=["row_id"])
    row_ids = table["row_id"].to_pylist()
    known = [row for row in cache.rows(row_ids) if row is not None]
    kept = [row for row in known if row.reason is None]
    both = {key for row in kept for key in (row.chosen, row.rejected) if key is not None}
    keys = sorted(both)
    values = cache.values(as_keys(keys))["sum"]
    scored = {key for key, there in zip(keys, pc.is_valid(values).to_pylist(), strict=True) if there}
    done = sum(all(key in scored for key in (row.chosen, row.rejected) if key is not None) for row in kept)
    return len(row_ids), len(row_ids) - done - (len(known) - len(kept))
