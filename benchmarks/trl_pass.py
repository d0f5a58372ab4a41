"""TRL's reference pass over ready token ids: its own code where TRL is installed, else the same work by hand."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from alignment.data.tokens import TokenSequence

Pairs = list[tuple[TokenSequence, TokenSequence]]
Pass = Callable[[Pairs, int], list[tuple[float, float]]]
"""Pairs in the order given, pairs a batch → (chosen, rejected) nats a pair."""


def trl_pass(model: Any) -> tuple[str, Pass]:
    """A name that says what runs, and the pass."""
    if find_spec("trl") is None:
        return "padded (as TRL)", lambda rows, batch: _by_hand(model, rows, batch)
    import trl

    return f"TRL {trl.__version__}", _own(model)


def _own(model: Any) -> Pass:
    """`DPOTrainer._precompute_ref_logps`, its cache never hit."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    words = Tokenizer(WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    folder = tempfile.mkdtemp()
    config = DPOConfig(
        output_dir=folder,
        report_to=[],
        bf16=model.dtype == torch.bfloat16,
        precompute_ref_log_probs=True,
        gradient_checkpointing=False,
        use_cpu=model.device.type == "cpu",
        max_length=None,
        disable_tqdm=True,
    )
    one = Dataset.from_list([{"prompt": "a", "chosen": "a", "rejected": "a a"}])
    trainer = DPOTrainer(model=model, args=config, train_dataset=one, processing_class=tokenizer)
    turn = itertools.count()

    def run(rows: Pairs, batch: int) -> list[tuple[float, float]]:
        cells = [
            {
                "prompt_ids": list(chosen.prompt_ids),
                "chosen_ids": list(chosen.completion_ids),
                "rejected_ids": list(rejected.completion_ids),
            }
            for chosen, rejected in rows
        ]
        trainer._precompute_model_hash = f"turn {next(turn)}"
        done = trainer._precompute_ref_logps(Dataset.from_list(cells), "train", batch)
        return list(zip(done["ref_chosen_logps"], done["ref_rejected_logps"], strict=True))

    return run


@torch.no_grad()
def _by_hand(model: Any, rows: Pairs, batch: int) -> list[tuple[float, float]]:
    """Chosen and rejected of `batch` pairs padded together, with a mask; the head where a completion counts."""
    done: list[tuple[float, float]] = []
    for part in [rows[start : start + batch] for start in range(0, len(rows), batch)]:
        sequences = [pair[0] for pair in part] + [pair[1] for pair in part]
        longest = max(map(len, sequences))
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        mask, counts = torch.zeros_like(ids), torch.zeros_like(ids)
        for place, row in enumerate(sequences):
            ids[place, : len(row)] = torch.tensor(row.prompt_ids + row.completion_ids)
            mask[place, : len(row)] = 1
            counts[place, len(row.prompt_ids) : len(row)] = 1
        ids, mask, counts = (each.to(model.device) for each in (ids, mask, counts))
        hidden = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
        where = counts[:, 1:].bool()
        states, targets = hidden[where], ids[:, 1:][where]
        each = [
            -torch.nn.functional.cross_entropy(model.lm_head(some).float(), wanted, reduction="none")
            for some, wanted in zip(torch.split(states, 2048), torch.split(targets, 2048), strict=True)
        ]
        logps = torch.zeros(where.shape, device=model.device)
        logps[where] = torch.cat(each)
        sums = logps.sum(1).tolist()
        done += zip(sums[: len(part)], sums[len(part) :], strict=True)
    return done
