"""From a recipe's optimisation settings to the trainer's arguments: one mapping for SFT and DPO."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from alignment.errors import BadInput
from alignment.recipe.training import Optimisation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Order: TypeAlias = npt.NDArray[np.int64]

# Training history: the trainer's log records as plain numbers under our names, for plots and summaries.

NAMES = {
    "loss": "loss",
    "eval_loss": "held_out_loss",
    "sft_loss": "sft_loss",
    "router_loss": "router_loss",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "kl": "kl",
    "reward": "score",
    "frac_reward_zero_std": "equal_scores",
    "completions/mean_length": "answer_tokens",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    **{name: name for name in ("held_out_accuracy", "held_out_margin", "held_out_median_margin", "held_out_kl")},
    "held_out_loss": "held_out_loss",
}
DIGITS = 6


def history(log_history: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """One record a logged step, in order: `step` and what was logged there, six significant digits.

    Each value is the mean since the record before it. What is not a finite number is left out.
    """
    records: dict[int, dict[str, float]] = {}
    for entry in log_history:
        values = {name: rounded(entry[key]) for key, name in NAMES.items() if _finite(entry.get(key))}
        if values:
            step = int(entry["step"])
            records.setdefault(step, {"step": step}).update(values)
    return [records[step] for step in sorted(records)]


def rounded(value: float) -> float:
    """A number with six significant digits."""
    return float(f"{float(value):.{DIGITS}g}")


def log_every(steps: int) -> int:
    """Optimiser steps between two records, so that a run leaves about 200."""
    return max(1, steps // 200)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def accumulation_steps(settings: Optimisation, world_size: int) -> int:
    """Micro batches a device sees in one optimiser step; raises `BadInput` when batch_size does not divide."""
    at_once = settings.micro_batch_size * world_size
    if settings.batch_size % at_once:
        raise BadInput(
            f"batch_size {settings.batch_size} is not a multiple of micro_batch_size {settings.micro_batch_size}"
            f" × {world_size} devices",
            field="batch_size",
        )
    return settings.batch_size // at_once


def micro_batches(settings: Optimisation, world_size: int) -> tuple[int, int]:
    """Rows of a micro batch and micro batches a device in an optimiser step of any number of devices.

    Micro batches are made smaller, and some of a step's stay without rows (`padded_steps`), where batch_size does not
    divide. A router's term is taken over micro batches, which must then be those of one device: `BadInput` where not.
    """
    alone = accumulation_steps(settings, world_size if settings.router_aux_loss_coef else 1)
    if world_size == 1 or settings.router_aux_loss_coef:
        return settings.micro_batch_size, alone
    accumulation = math.ceil(settings.batch_size / (settings.micro_batch_size * world_size))
    return math.ceil(settings.batch_size / (accumulation * world_size)), accumulation


def padded_steps(order: Sequence[int], batch_size: int, at_once: int, empty: int) -> list[int]:
    """The order with each optimiser step's rows filled up with `empty` to a multiple of `at_once`, which all devices
    together take at once: no row is taken twice, and none moves to another step."""
    padded: list[int] = []
    for start in range(0, len(order), batch_size):
        step = list(order[start : start + batch_size])
        padded += step + [empty] * (-len(step) % at_once)
    return padded


def optimiser_steps(rows: int, settings: Optimisation) -> int:
    """Optimiser steps of a run over `rows` rows (epochs counted in); the last may see fewer rows."""
    return math.ceil(rows / settings.batch_size)


def require_world_size(asked: int, found: int) -> None:
    """Raises `BadInput` unless as many processes run as the request was made for."""
    if asked != found:
        raise BadInput(f"made for {asked} processes but {found} run: launch it with torchrun", field="world_size")


def trainer_arguments(
    settings: Optimisation, folder: Path, seed: int, rows: int, micro_batch_size: int, accumulation: int
) -> dict[str, Any]:
    """Arguments that `SFTConfig` and `DPOConfig` share, for a run over `rows` rows (epochs counted in).

    A device takes `micro_batch_size` rows at once, `accumulation` times in a step.
    The epochs are in the order of the rows, so the trainer sees one. `bf16` (autocast) stays off: in
    bfloat16 the weights themselves are, with float32 masters in the optimiser, so that the policy's
    forward pass is the reference scorer's.
    """
    import torch

    accelerated = torch.cuda.is_available()
    steps = optimiser_steps(rows, settings)
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro_batch_size,
        "per_device_eval_batch_size": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": 1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        # a warm-up starts at rate 0: all of a run of one step, which would end as it began
        "warmup_steps": math.ceil(settings.warmup_ratio * steps) if steps > 1 else 0,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.adam_betas[0],
        "adam_beta2": settings.adam_betas[1],
        "max_grad_norm": settings.max_grad_norm,
        "optim": "adamw_torch_fused" if accelerated else "adamw_torch",
        "gradient_checkpointing": settings.gradient_checkpointing is True,
        "bf16": False,
        "fp16": False,
        "use_cpu": not accelerated,
        "seed": seed % 2**32,
        "data_seed": seed % 2**32,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": None,
        "logging_steps": log_every(steps),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": accelerated,
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
        "include_num_input_tokens_seen": "non_padding",
    }


# The order rows are trained in: decided by the data's digest and the seed, by nothing that is named or placed.


def training_order(row_ids: Any, digest: str, seed: int, epochs: float, most_rows: int | None = None) -> Order:
    """Indices into `row_ids` (a list, or an Arrow column), `round(epochs * rows)` of them (at least one), or the first
    `most_rows` of these.

    Each epoch is another permutation of the rows sorted by id.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    column = pa.array(row_ids, pa.string()) if isinstance(row_ids, list) else row_ids
    by_id = pc.sort_indices(column).to_numpy().astype(np.int64)
    wanted = max(1, round(epochs * len(by_id)))
    wanted = wanted if most_rows is None else min(wanted, most_rows)
    shuffled = (by_id[_permutation(len(by_id), digest, seed, epoch)] for epoch in range(-(-wanted // len(by_id))))
    return np.concatenate(list(shuffled))[:wanted]


def longer_first(order: Order, lengths: Sequence[int], batch_size: int) -> Order:
    """The order with the rows of each optimiser step, which share one gradient, longest first: batches pad little."""
    import numpy as np

    steps = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return np.concatenate([step[np.argsort([-lengths[place] for place in step], kind="stable")] for step in steps])


def _permutation(count: int, digest: str, seed: int, epoch: int) -> Order:
    import numpy as np

    entropy = hashlib.sha256(f"{digest} {seed} {epoch}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(entropy, "big"))).permutation(count)


# The processes of one training run, where there is more than one.

Value = TypeVar("Value")


def gathered(value: Value, world_size: int) -> list[Value]:
    """Every process's value, by rank, in every process."""
    if world_size == 1:
        return [value]
    from accelerate.utils import gather_object

    found: list[Value] = gather_object([value])
    return found
