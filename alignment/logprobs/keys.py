"""Keys of the caches: a sequence under a reference, and a row under a token policy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from alignment.digest import json_digest
from alignment.recipe import TokenPolicy
from alignment.tokens import TOKENS_VERSION, TokenSequence

KEY_BYTES = 16


def sequence_key(fingerprint: str, sequence: TokenSequence) -> bytes:
    """128-bit BLAKE2b of (fingerprint, prompt ids, completion ids), each part closed by its length."""
    key = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in (fingerprint.encode(), _packed(sequence.prompt_ids), _packed(sequence.completion_ids)):
        key.update(len(part).to_bytes(8, "little"))
        key.update(part)
    return key.digest()


def policy_digest(policy: TokenPolicy, tokenizer_digest: str) -> str:
    """Names everything but the row that decides a row's ids."""
    return json_digest(
        {"policy": policy.model_dump(mode="json"), "tokenizer": tokenizer_digest, "version": TOKENS_VERSION}
    )


def _packed(ids: Sequence[int]) -> bytes:
    """Ids as little-endian int32."""
    return np.asarray(ids, dtype="<i4").tobytes()
