"""`reward_model`: trained on the pairs of a manifest, or adopted; measured on the manifest's held-out pairs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field, model_validator

from alignment.data.rows import write_records
from alignment.errors import BadInput
from alignment.models.checkpoint import (
    checkpoint_summary,
    default_device,
    digest_checkpoint,
    embeddings,
    load_tokenizer,
    require_precision,
    save_checkpoint,
)
from alignment.models.pin import ModelPin, materialise
from alignment.models.reward import load_reward_model, rewards
from alignment.recipe.forward import TokenPolicy
from alignment.recipe.generate import RewardTraining
from alignment.stages.stage import CheckpointSummary, Context, Request, Result, Stage
from alignment.store import Artifact
from alignment.training import resume
from alignment.training.arguments import (
    history,
    micro_batches,
    padded_steps,
    require_world_size,
    trainer_arguments,
    training_order,
)
from alignment.training.demonstrations import with_known_pad
from eval.ranking.scorers import tokenization_of
from eval.statistics import win_rate
from eval.summaries import Number

log = logging.getLogger(__name__)

HELD_OUT_FILE = "held_out_rewards.parquet"
SCHEMA = pa.schema([("row_id", pa.string()), ("chosen", pa.float64()), ("rejected", pa.float64())])


class RewardRequest(Request):
    """Trained from `checkpoint` on the pairs of `manifest`, or `adopt`ed and, with a manifest, measured on its held-out
    pairs. The head's weights are drawn by `seed`."""

    speed_only: ClassVar[frozenset[str]] = frozenset({"batch_tokens", "world_size"})

    manifest: Artifact | None = None
    checkpoint: Artifact | None = None
    adopt: ModelPin | None = None
    settings: RewardTraining = RewardTraining()
    tokens: TokenPolicy
    precision: str
    batch_tokens: int
    seed: int
    world_size: int = 1

    @model_validator(mode="after")
    def _trained_or_adopted(self) -> RewardRequest:
        if (self.adopt is None) != (self.checkpoint is not None) or (self.adopt is None and self.manifest is None):
            raise ValueError("give checkpoint and manifest, or adopt")
        return self


class RewardSummary(CheckpointSummary):
    """`accuracy` is the share of held-out pairs whose chosen side has the higher reward, a tie counting half, with its
    95 % interval; pairs of one prompt are one cluster. None without held-out pairs."""

    rows_trained: int = 0
    rows_held_out: int = 0
    rows_dropped: dict[str, int] = Field(default_factory=dict)
    steps: int = 0
    accuracy: Number = None
    accuracy_low: Number = None
    accuracy_high: Number = None
    margin: Number = None
    """Mean difference of the two rewards of a held-out pair."""
    resumed_from_step: int | None = None
    history: list[dict[str, Number]] = Field(default_factory=list)
    source: dict[str, Any] | None = None


def run(request: RewardRequest, context: Context) -> Result:
    """Writes the checkpoint and held_out_rewards.parquet; the data version is the checkpoint's digest.

    Goes on from the last whole trainer checkpoint. Raises `BadInput` for unpaired rows, and for a model that has not
    one output.
    """
    from alignment.training.reward_trainer import reward_pairs

    require_world_size(request.world_size, context.world_size)
    pairs: dict[str, list[Any]] = {"train": [], "held_out": []}
    about: dict[str, Any] = {}
    if request.adopt is not None:
        materialise(request.adopt, context.out, request.seed)
        folder, about["source"] = context.out, request.adopt.told()
    else:
        assert request.checkpoint is not None
        folder = context.fetch(request.checkpoint)
    if request.manifest is not None:
        tokens = tokenization_of(folder, request.tokens)
        pairs, dropped = reward_pairs(context.fetch(request.manifest), context, tokens)
        about["rows_dropped"] = dropped
    if request.adopt is None:
        about |= _train(request, context, folder, pairs["train"])
    if context.rank:
        return Result("")
    about |= _measured(context, request, pairs["held_out"])
    digest = digest_checkpoint(context.out)
    summary = RewardSummary(**checkpoint_summary(context.out, digest), **about)
    if summary.accuracy is not None:
        log.info("reward model: held-out accuracy %.3f on %d pairs", summary.accuracy, summary.rows_held_out)
    return Result(digest.digest, summary)


def _train(request: RewardRequest, context: Context, folder: Path, pairs: Sequence[Any]) -> dict[str, Any]:
    import torch

    from alignment.training.reward_trainer import reward_trainer

    settings, work = request.settings, context.work / "trainer"
    require_precision(settings.precision, default_device())
    if not pairs:
        raise BadInput("no pair to train a reward model on")
    assert request.manifest is not None
    ids = [pair.row_id for pair in pairs]
    order = training_order(ids, request.manifest.digest, request.seed, settings.epochs, settings.most_rows).tolist()
    at_once, accumulation = micro_batches(settings, request.world_size)
    arguments = trainer_arguments(settings, work, request.seed, len(order), at_once, accumulation)
    torch.manual_seed(request.seed)
    model = load_reward_model(folder, settings.precision, fresh=True)
    tokenizer = with_known_pad(load_tokenizer(folder), embeddings(folder))
    trainer = reward_trainer(model, pairs, tokenizer, arguments, settings.lora)
    trainer.order, trainer.rows, trainer.batch_size = order, len(order), settings.batch_size
    if request.world_size > 1:
        trainer.order = padded_steps(order, settings.batch_size, at_once * request.world_size, trainer.empty_row)
    checkpoint = resume.last_complete(work)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if context.rank == 0:
        trained = trainer.model if settings.lora is None else trainer.model.merge_and_unload()
        save_checkpoint(trained, load_tokenizer(folder), context.out)
    return {
        "rows_trained": len(pairs),
        "steps": trainer.state.global_step,
        "history": history(trainer.state.log_history),
        "resumed_from_step": None if checkpoint is None else resume.step_of(checkpoint),
    }


def _measured(context: Context, request: RewardRequest, pairs: Sequence[Any]) -> dict[str, Any]:
    """The model as it was saved, on pairs that it was not trained on."""
    model = load_reward_model(context.out, request.precision)
    both = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
    values = rewards(model, both, request.batch_tokens) if pairs else []
    chosen, rejected = values[: len(pairs)], values[len(pairs) :]
    write_records(
        context.out / HELD_OUT_FILE,
        SCHEMA,
        (
            {"row_id": pair.row_id, "chosen": one, "rejected": other}
            for pair, one, other in zip(pairs, chosen, rejected, strict=True)
        ),
    )
    if not pairs:
        return {}
    won = [1.0 if one > other else 0.5 if one == other else 0.0 for one, other in zip(chosen, rejected, strict=True)]
    rate = win_rate(won, [pair.prompt_id for pair in pairs])
    margin = sum(one - other for one, other in zip(chosen, rejected, strict=True)) / len(pairs)
    return {
        "rows_held_out": len(pairs),
        "accuracy": rate.mean.value,
        "accuracy_low": rate.low,
        "accuracy_high": rate.high,
        "margin": margin,
    }


STAGE: Stage[RewardRequest] = Stage(name="reward_model", code_version=1, request=RewardRequest, run=run, device="gpu")
