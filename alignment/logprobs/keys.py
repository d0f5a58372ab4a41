"""Keys of the caches: a sequence under a reference, and a row under a token policy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.data.tokens import TOKENS_VERSION, TokenSequence
from alignment.digest import json_digest
from alignment.models import capped
from alignment.models.checkpoint import default_device
from alignment.recipe.forward import TokenPolicy

KEY_BYTES = 16

# Names of a row's sequences, each of which has a key and a value.

PAIR = ("chosen", "rejected")
PAIR_WITH_FIRSTS = (*PAIR, "chosen_first", "rejected_first")
"""Each side, and its first min(lengths) tokens."""
LABELLED = ("completion", "partner")
"""A row's own completion, and that of its partner behind the row's prompt."""


def sequence_key(fingerprint: str, sequence: TokenSequence, first: int | None = None) -> bytes:
    """128-bit BLAKE2b of (fingerprint, prompt ids, completion ids), each part closed by its length; tokens that do not
    count are told apart by their sign, so that sequences without any have the key of earlier versions.

    With `first` that of the completion's first tokens, as the whole sequence's forward gives them: in 16 bits they are
    others than those of a shorter sequence's own forward.
    """
    key = hashlib.blake2b(digest_size=KEY_BYTES)
    parts = [fingerprint.encode(), _packed(sequence.prompt_ids), _packed(sequence.stored_ids)]
    if first is not None and first != len(sequence.completion_ids):
        parts.append(_packed([first]))
    for part in parts:
        key.update(len(part).to_bytes(8, "little"))
        key.update(part)
    return key.digest()


def keys_of(fingerprint: str, sequences: Mapping[str, TokenSequence]) -> dict[str, bytes]:
    """The key of each of a row's sequences; of NAME_first it is one of the sequence NAME."""
    return {
        name: sequence_key(fingerprint, sequences[whole_of(name)], len(sequence.completion_ids))
        for name, sequence in sequences.items()
    }


def whole_of(name: str) -> str:
    """The name of the sequence whose forward gives a value: chosen for chosen_first."""
    return name.removesuffix("_first")


def policy_digest(
    policy: TokenPolicy, tokenizer_digest: str, end_ids: Collection[int] = (), *, is_dated: bool = True
) -> str:
    """Names everything but the row that decides a row's ids.

    `end_ids` are the checkpoint's (`alignment.models.ends`). `is_dated` says that the chat template asks for the date
    (`asks_for_date`); `today` changes no other template's ids.
    """
    decides = policy.model_dump(mode="json", exclude={"max_dropped"} if is_dated else {"max_dropped", "today"})
    ends = sorted(set(end_ids))
    return json_digest({"policy": decides, "tokenizer": tokenizer_digest, "ends": ends, "version": TOKENS_VERSION})


def _packed(ids: Sequence[int]) -> bytes:
    """Ids as little-endian int32."""
    return np.asarray(ids, dtype="<i4").tobytes()


# The fingerprint: everything about a reference, and about how it is run, that a log-probability depends on.

WIDE = ("float32", "float64")
ATTENTION = "sdpa full"
"""Scaled dot-product attention of every token to all of its sequence before it; padding is never seen."""
SCORER_VERSION = 2
"""Raised when the values can change, in the last bits too: on a CPU a sequence has the same ones in any company."""
SCORER_VERSION_16_BITS = 3
"""As `SCORER_VERSION`, for values of 16 bits: since 3 they come out of packed passes that share prompts."""
ANY_NUMERICS = "any"
"""Numerics class of a pass whose bits depend neither on its shape nor on the attention kernel that ran."""


def numerics_class(precision: str, tokens: int, config: Callable[[], dict[str, Any]], tf32: bool = False) -> str:
    """Of log-probs from passes of `tokens` tokens on this process's device, with TF32 products or without.

    `config` reads the model's configuration, where it counts: of a model that caps its attention logits the class says
    what attends then (`alignment.models.capped.family`), and of any other model `flash`.

    `any` where a sequence's bits do not depend on its company or the size of its pass: on a CPU, and as far as values
    are told apart in float32 and float64 without TF32.
    """
    if default_device().type == "cpu":
        return ANY_NUMERICS
    if precision in WIDE:
        return f"tf32, passes of {tokens}" if tf32 else ANY_NUMERICS
    return f"{capped.family() if capped.caps(config()) else 'flash'}, passes of {tokens}"


def fingerprint(
    weights_digest: str,
    config_digest: str,
    precision: str,
    *,
    attention: str = ATTENTION,
    adapter: str | None = None,
    adapter_merged: bool = True,
    quantisation: str | None = None,
    numerics: str = ANY_NUMERICS,
    rope_by_length: bool = False,
    scorer_version: int | None = None,
) -> str:
    """64 hex digits. Batch size, device, folder and training settings are not in it: they change no value.

    `numerics` is the class of a pass on an accelerator in 16 bits, its attention family and shape, or with TF32. It is
    `any` on a CPU and for plain float32 and float64, whose names are those of earlier versions, so that their values go
    on being read.
    `rope_by_length` says that positions turn by the length of what is in a pass (`checkpoint.rope_by_length`): what
    earlier versions kept of such a model depends on company, and has another name.
    """
    half = precision not in WIDE
    if numerics != ANY_NUMERICS and not half and not numerics.startswith("tf32"):
        raise ValueError(f"{precision} has no numerics class, and {numerics} was given")
    if scorer_version is None:
        scorer_version = SCORER_VERSION_16_BITS if half else SCORER_VERSION
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
            **({"numerics": numerics} if half or numerics != ANY_NUMERICS else {}),
            **({"rope": "by length"} if rope_by_length else {}),
        }
    )
