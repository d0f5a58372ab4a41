"""`align reference`: a file of pairs under a local model folder, through the same cache as the DAG's stage."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import ValidationError

from alignment.artifacts import Store
from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.logprobs.cache import LogprobCache
from alignment.logprobs.fingerprint import fingerprint
from alignment.logprobs.keys import policy_digest
from alignment.logprobs.reference import Reference, reference_pass
from alignment.logprobs.stage import logprobs_table
from alignment.models.checkpoint import PRECISIONS, max_positions, read_config
from alignment.models.describe import config_digest, tokenizer_digest, weights_digest
from alignment.models.weights import weight_files
from alignment.preferences.normalise import normalise
from alignment.preferences.records import read_records
from alignment.preferences.row import PreferenceRow
from alignment.recipe import Reference as ReferenceSettings
from alignment.recipe import TokenPolicy
from alignment.sources import pin_file

COLUMNS = ["row_id", "chosen_logp", "rejected_logp", "chosen_tokens", "rejected_tokens"]
UNPAIRED = "unpaired row: this needs pairs"


def reference_file(
    model: Path,
    pairs: Path,
    out: Path,
    *,
    store: Store,
    max_length: int | None = None,
    truncation: str = "drop",
    precision: str = "float32",
    batch_tokens: int | None = None,
) -> dict[str, Any]:
    """Scores a file of pairs and writes Parquet: row_id, both log-probs (nat) and both token counts.

    Rows stand in the file's order, repeated ones repeated. `max_length` is the model's own limit by default.
    Returns rows, sequences (distinct), cache_hits, scored, tokens (that went through the model), seconds,
    and what is not in the output: quarantined and dropped {reason: count}. Raises `BadInput`.
    """
    began = time.monotonic()
    if precision not in PRECISIONS:
        raise BadInput(f"unknown precision '{precision}'; there are {', '.join(PRECISIONS)}")
    policy = _policy(model, max_length, truncation)
    rows, quarantined = _read(pairs)
    name = fingerprint(_weights(model, store), config_digest(read_config(model)), precision)
    reference = Reference(
        lambda: model, name, policy, precision, batch_tokens or ReferenceSettings().batch_tokens
    )
    cache = LogprobCache(store, name, policy_digest(policy, tokenizer_digest(model)))
    done = reference_pass([row.row_id for row in rows], lambda: rows, reference, cache)
    assert done is not None
    _write(out, logprobs_table(done).select(COLUMNS))
    return {
        "rows": len(done.kept),
        "sequences": done.sequences,
        "cache_hits": done.cache_hits,
        "scored": done.scored,
        "tokens": done.tokens,
        "seconds": round(time.monotonic() - began, 3),
        "quarantined": quarantined,
        "dropped": done.dropped,
    }
