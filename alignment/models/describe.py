"""What a checkpoint is: the digests that name it and the numbers every checkpoint's summary carries."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.digest import canonical_json, json_digest
from alignment.models.configuration import TOKENIZER_FILES, has_chat_template, max_positions, read_config, text_config
from alignment.models.weights import tensors

NO_EFFECT_ON_FORWARD = frozenset(
    {
        "_name_or_path",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "attention_dropout",
        "attn_implementation",
        "attn_pdrop",
        "bos_token_id",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "resid_pdrop",
        "return_dict",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Configuration keys that leave an evaluated forward pass as it is; every other key counts, known or not."""


@dataclass(frozen=True)
class CheckpointDigest:
    """Names of a checkpoint's parts, 64 hex digits each; `digest` is over the other three."""

    weights: str
    config: str
    tokenizer: str
    digest: str


def digest_checkpoint(folder: str | Path) -> CheckpointDigest:
    """Digests of a folder. The same tensors give the same `weights` however they are split over files."""
    folder = Path(folder)
    weights, config, tokenizer = weights_digest(folder), config_digest(read_config(folder)), tokenizer_digest(folder)
    return CheckpointDigest(weights, config, tokenizer, json_digest([weights, config, tokenizer]))


def weights_digest(folder: Path) -> str:
    """SHA-256 over tensors sorted by name, each as name, dtype, shape and bytes; streamed."""
    sha = hashlib.sha256()
    for tensor in tensors(folder):
        about = canonical_json([tensor.name, tensor.dtype, tensor.shape])
        sha.update(len(about).to_bytes(4, "little") + about)
        for block in tensor.blocks():
            sha.update(block)
    return sha.hexdigest()


def config_digest(config: dict[str, Any]) -> str:
    """Digest of a configuration without the keys that change no forward pass."""
    return json_digest(_forward_keys(config))


def tokenizer_digest(folder: Path) -> str:
    """Digest over the tokenizer's files and chat template; JSON files by content, not by layout."""
    parts = {}
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            data = path.read_bytes()
            parts[name] = json_digest(json.loads(data)) if path.suffix == ".json" else hashlib.sha256(data).hexdigest()
    return json_digest(parts)


def checkpoint_summary(folder: str | Path, digest: CheckpointDigest | None = None) -> dict[str, Any]:
    """What every stage that makes a checkpoint puts into its summary, computed without loading the model.

    Keys: weights_digest, config_digest, tokenizer_digest, parameters, architecture, vocab_size,
    max_positions, has_chat_template.
    """
    folder = Path(folder)
    digest = digest or digest_checkpoint(folder)
    config = read_config(folder)
    return {
        "weights_digest": digest.weights,
        "config_digest": digest.config,
        "tokenizer_digest": digest.tokenizer,
        "parameters": sum(tensor.elements for tensor in tensors(folder)),
        "architecture": next(iter(config.get("architectures") or [config.get("model_type", "unknown")])),
        "vocab_size": text_config(config).get("vocab_size"),
        "max_positions": max_positions(folder),
        "has_chat_template": has_chat_template(folder),
    }


def _forward_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _forward_keys(item) for name, item in value.items() if name not in NO_EFFECT_ON_FORWARD}
    return value
