"""The one builder of tiny models and tokenizers in tests: random weights from a seed, as checkpoint folders.

Shapes and seeds are kept where tests hold numbers of a model: the same arguments give the same weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

LETTERS = "abcdefghijklmnopqrstuvwxyz <>.?!"
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "llama_tied": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "gemma2": {"model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 16},
    "granite": {"model_type": "granite", "logits_scaling": 7.0},
    "cohere": {"model_type": "cohere", "logit_scale": 0.3},
    "gpt2": {"model_type": "gpt2", "n_positions": 128},
}
"""Configurations that compute a forward pass in ways of their own; any other `model_type` goes by its name."""


def write_model(
    folder: Path,
    tokenizer: Any,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: str = "float32",
    saving: dict[str, Any] | None = None,
    **changed: Any,
) -> Path:
    """Writes a checkpoint: a family's two layers with random weights, and the tokenizer; returns the folder.

    `changed` are fields of the configuration, `saving` arguments of `save_pretrained`. Widely spread weights
    (`initializer_range`) make log-probs of different tokens differ by more than rounding.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    known = FAMILIES.get(family, {"model_type": family})
    config = AutoConfig.for_model(**SHAPE | known | {"vocab_size": len(tokenizer)} | changed)
    AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).save_pretrained(folder, **saving or {})
    tokenizer.save_pretrained(folder)
    return folder


def byte_tokenizer(
    *, bos: Literal["put", "named"] | None = "named", pad: bool = False, template: str | None = None
) -> Any:
    """One id a byte, so that any text goes there and back.

    The BOS is put in front of a text (`put`), has only its name (`named`), or has no name either (None).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(_ids([*_special(pad), *alphabet]), []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = {"bos_token": "<s>"} if bos else {}
    return _fast(tokenizer, template, put=bos == "put", **named, **({"pad_token": "<pad>"} if pad else {}))


def letter_tokenizer(letters: str = LETTERS, *, pad: bool = True, template: str | None = None) -> Any:
    """One id a letter, with a BOS in front; other letters are `<unk>`, or the first letter without padding."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    unknown = "<unk>" if pad else letters[0]
    words = [*_special(pad), *(["<unk>"] if pad else []), *letters]
    tokenizer = Tokenizer(models.WordLevel(_ids(words), unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    named = {"pad_token": "<pad>", "unk_token": "<unk>"} if pad else {}
    return _fast(tokenizer, template, put=True, bos_token="<s>", **named)


def _special(pad: bool) -> list[str]:
    return ["<s>", "</s>", *(["<pad>"] if pad else [])]


def _ids(words: list[str]) -> dict[str, int]:
    return {word: index for index, word in enumerate(words)}


def _fast(tokenizer: Any, template: str | None, *, put: bool, **named: str) -> Any:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if put:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **named)
    fast.chat_template = template
    return fast
