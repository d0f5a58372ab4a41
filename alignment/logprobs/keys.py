"""Keys of the caches: a sequence under a reference, and a row under a token policy."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import numpy as np

from alignment.data.tokens import TOKENS_VERSION, TokenSequence
from alignment.digest import json_digest
from alignment.recipe import TokenPolicy

KEY_BYTES = 16


def sequence_key(fingerprint: str, sequence: TokenSequence) -> bytes:
    """128-bit BLAKE2b of (fingerprint, prompt ids, completion ids), each part closed by its length."""
    key = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in (fingerprint.encode(), _packed(sequence.prompt_ids), _packed(sequence.completion_ids)):
        key.update(len(part).to_bytes(8, "little"))
        key.update(part)
    return key.digest()


def policy_digest(
    policy: TokenPolicy, tokenizer_digest: str, end_ids: Collection[int] = (), *, is_dated: bool = True
) -> str:
    """Names everything but the row that decides a row's ids.

    `end_ids` are those of `checkpoint.end_ids`, beside the tokenizer's own. `is_dated` says that the chat template
    asks for the date (`asks_for_date`); `today` changes no other template's ids.
    """
    decides = policy.model_dump(mode="json", exclude={"max_dropped"} if is_dated else {"max_dropped", "today"})
    return json_digest(
        {"policy": decides, "tokenizer": tokenizer_digest, "ends": sorted(end_ids), "version": TOKENS_VERSION}
    )


def _packed(ids: Sequence[int]) -> bytes:
    """Ids as little-endian int32."""
    return np.asarray(ids, dtype="<i4").tobytes()


# The fingerprint: everything about a reference, and about how it is run, that a log-probability depends on.

ATTENTION = "sdpa full"
"""Scaled dot-product attention of every token to all of its sequence before it; padding is never seen."""
SCORER_VERSION = 2
"""Raised when the values can change, in the last bits too: on a CPU a sequence has the same ones in any company."""


def fingerprint(
    weights_digest: str,
    config_digest: str,
    precision: str,
    *,
    attention: str = ATTENTION,
    adapter: str | None = None,
    adapter_merged: bool = True,
    quantisation: str | None = None,
    scorer_version: int = SCORER_VERSION,
) -> str:
    """64 hex digits. Batch size, device, folder and training settings are not in it: they change no value."""
    return json_digest(
        {
            "weights": weights_digest,
            "config": config_digest,
            "precision": precision,
            "attention": attention,
            "adapter": adapter,
            "adapter_merged": adapter_merged,
            "quantisation": quantisation,
            "scorer": scorer_version,
        }
    )
