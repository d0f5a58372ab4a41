"""TRL's reference pass and DPO step over ready token ids; the pass by hand where TRL is not installed."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch

from alignment.data.tokens import TokenSequence
from benchmarks.preference_mix import StepRow

Pairs = list[tuple[TokenSequence, TokenSequence]]
Pass = Callable[[Pairs, int], list[tuple[float, float]]]
"""Pairs in the order given, pairs a batch → (chosen, rejected) nats a pair."""
Step = Callable[[Sequence[StepRow], int], float]
"""Rows in the order given, pairs a micro batch → the step's loss; gradients are added to the model's weights."""


def trl_pass(model: Any) -> tuple[str, Pass]:
    """A name that says what runs, and the pass."""
    if without_trl() is not None:
        return "padded (as TRL)", lambda rows, batch: _by_hand(model, rows, batch)
    import trl

    return f"TRL {trl.__version__}", _own(model)


def without_trl() -> str | None:
    """Why TRL's trainer cannot be run here, such as for a package that it imports; None where it can."""
    try:
        from datasets import Dataset  # noqa: F401
        from trl import DPOConfig, DPOTrainer  # noqa: F401
    except (ImportError, RuntimeError) as error:  # as Transformers' lazy modules wrap it
        return str(error).strip().splitlines()[-1]
    return None


def _trainer(model: Any, **settings: Any) -> Any:
    """A `DPOTrainer` around the model, its data set a single row that nothing here reads."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    words = Tokenizer(WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    reference = settings.pop("ref_model", None)
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        report_to=[],
        bf16=model.dtype == torch.bfloat16,
        precompute_ref_log_probs=reference is None,
        gradient_checkpointing=False,
        use_cpu=model.device.type == "cpu",
        max_length=None,
        disable_tqdm=True,
        **settings,
    )
    one = Dataset.from_list([{"prompt": "a", "chosen": "a", "rejected": "a a"}])
    return DPOTrainer(model=model, ref_model=reference, args=config, train_dataset=one, processing_class=tokenizer)


def trl_step(model: Any, beta: float, reference: Any = None) -> Step:
    """`DPOTrainer`'s own collator, loss and backward pass, accumulated over micro batches; no optimiser.

    With a `reference` model its log-probs are computed in every step, without one the rows' cached ones are taken.
    """
    trainer = _trainer(model, beta=beta, **({} if reference is None else {"ref_model": reference}))

    def run(rows: Sequence[StepRow], batch: int) -> float:
        parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        trainer.current_gradient_accumulation_steps = len(parts)
        loss = 0.0
        for part in parts:
            cells = [_cells(row.chosen, row.rejected) for row in part]
            if reference is None:
                for cell, row in zip(cells, part, strict=True):
                    cell |= {"ref_chosen_logps": row.ref_chosen_logp, "ref_rejected_logps": row.ref_rejected_logp}
            loss += float(trainer.training_step(model, trainer.data_collator(cells)))
        return loss

    return run


def _cells(chosen: TokenSequence, rejected: TokenSequence) -> dict[str, Any]:
    return {
        "prompt_ids": list(chosen.prompt_ids),
        "chosen_ids": list(chosen.completion_ids),
        "rejected_ids": list(rejected.completion_ids),
    }


def _own(model: Any) -> Pass:
    """`DPOTrainer._precompute_ref_logps`, its cache never hit."""
    from datasets import Dataset

    trainer = _trainer(model)
    turn = itertools.count()

    def run(rows: Pairs, batch: int) -> list[tuple[float, float]]:
        cells = [_cells(chosen, rejected) for chosen, rejected in rows]
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
