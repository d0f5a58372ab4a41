"""From a recipe's optimisation settings to the trainer's arguments: one mapping for SFT and DPO."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from alignment.recipe import Optimisation
from alignment.training.history import log_every


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


def optimiser_steps(rows: int, settings: Optimisation) -> int:
    """Optimiser steps of a run over `rows` rows (epochs counted in); the last may see fewer rows."""
    return math.ceil(rows / settings.batch_size)


def require_world_size(asked: int, found: int) -> None:
    """Raises `BadInput` unless as many processes run as the request was made for."""
    if asked != found:
        raise BadInput(f"made for {asked} processes but {found} run: launch it with torchrun", field="world_size")


def require_precision(precision: str) -> None:
    """Raises `BadInput` for a precision this device cannot train in. The CPU can, slowly."""
    import torch

    if precision == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise BadInput("this device does not train in bfloat16; use float32", field="precision")


def trainer_arguments(settings: Optimisation, folder: Path, seed: int, world_size: int, rows: int) -> dict[str, Any]:
    """Arguments that `SFTConfig` and `DPOConfig` share, for a run over `rows` rows (epochs counted in).

    The epochs are in the order of the rows, so the trainer sees one. `bf16` (autocast) stays off: in
    bfloat16 the weights themselves are, with float32 masters in the optimiser, so that the policy's
    forward pass is the reference scorer's.
    """
    import torch

    accelerated = torch.cuda.is_available()
    steps = optimiser_steps(rows, settings)
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": settings.micro_batch_size,
        "per_device_eval_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(settings, world_size),
        "num_train_epochs": 1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": math.ceil(settings.warmup_ratio * steps),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "optim": "adamw_torch_fused" if accelerated else "adamw_torch",
        "gradient_checkpointing": settings.gradient_checkpointing,
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
