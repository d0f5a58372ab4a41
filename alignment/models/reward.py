"""A reward model: one number for a prompt with an answer, from a head on the last token of a language model."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.errors import BadInput
from alignment.models.checkpoint import default_device, load_config, load_tokenizer, loaded_from
from alignment.models.code import loading

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

HEAD_STD = 0.02
"""Spread of a fresh head's weights: that of most language models."""


def load_reward_model(
    folder: str | Path, precision: str, *, fresh: bool = False, device: torch.device | str | None = None
) -> PreTrainedModel:
    """The reward model in a folder, in eval mode; only safetensors weights are read, and no code of its own runs.

    With `fresh` the folder holds a language model, which gets a head of random weights from PyTorch's seed. Without it
    raises `BadInput` for a model that has not exactly one output.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = Path(folder)
    config = load_config(folder)
    if fresh:
        config.num_labels = 1
    elif getattr(config, "num_labels", None) != 1:
        problem = f"is no reward model: it has {getattr(config, 'num_labels', 'no')} outputs, and one is expected"
        raise BadInput(problem, file=str(folder))
    pad = load_tokenizer(folder).pad_token_id
    text: Any = config.get_text_config()
    if text.pad_token_id is None:
        text.pad_token_id = pad if pad is not None else load_tokenizer(folder).eos_token_id
    noise = logging.getLogger("transformers.modeling_utils")
    before = noise.level
    noise.setLevel(logging.ERROR)  # it lists the head of the language model, which is not used
    try:
        with loaded_from(folder, "reward model"):
            model, found = AutoModelForSequenceClassification.from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, precision),
                use_safetensors=True,
                use_kernels=False,
                output_loading_info=True,
                **loading(False),
            )
    finally:
        noise.setLevel(before)
    missing = {str(name) for name in found["missing_keys"]}
    if missing and not (fresh and missing == {"score.weight"}):
        raise BadInput(f"the weights lack {', '.join(sorted(missing)[:3])}", file=str(folder))
    if fresh:
        torch.nn.init.normal_(model.score.weight, std=HEAD_STD)
    loaded: PreTrainedModel = model.to(default_device() if device is None else device).eval()
    return loaded


_kept: dict[tuple[str, str], PreTrainedModel] = {}
"""The last model that scored, by folder and precision: sources of prompts that follow each other share one load."""


def kept_reward_model(folder: str | Path, precision: str) -> PreTrainedModel:
    """`load_reward_model`, or the one that it loaded last, where that is the same."""
    key = (str(folder), precision)
    if key not in _kept:
        _kept.clear()  # before the next one arrives, so that two are never held
        _kept[key] = load_reward_model(folder, precision)
    return _kept[key]


def rewards(model: PreTrainedModel, sequences: Sequence[Sequence[int]], batch_tokens: int) -> list[float]:
    """The reward of each sequence of token ids, in order; batches hold at most `batch_tokens` padded tokens."""
    import torch

    pad = model.config.get_text_config().pad_token_id or 0
    order = sorted(range(len(sequences)), key=lambda place: -len(sequences[place]))
    found: dict[int, float] = {}
    batch: list[int] = []

    def flush() -> None:
        longest = max(len(sequences[place]) for place in batch)
        ids = [list(sequences[place]) + [pad] * (longest - len(sequences[place])) for place in batch]
        mask = [[1] * len(sequences[place]) + [0] * (longest - len(sequences[place])) for place in batch]
        with torch.inference_mode():
            output = model(
                input_ids=torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                use_cache=False,
            )
        found.update(zip(batch, output.logits[:, 0].float().tolist(), strict=True))

    for place in order:
        longest = len(sequences[batch[0]]) if batch else len(sequences[place])
        if batch and (len(batch) + 1) * longest > batch_tokens:
            flush()
            batch = []
        batch.append(place)
    if batch:
        flush()
    if not all(map(math.isfinite, found.values())):
        raise BadInput("the reward model gives values that are not finite; use float32", field="evals.precision")
    return [found[place] for place in range(len(sequences))]
