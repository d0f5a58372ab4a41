"""Stage `sft_checkpoint`: supervised fine-tuning on demonstrations, or a finished checkpoint adopted as it is."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from pydantic import model_validator

from alignment.logprobs.effort import Ranks
from alignment.models.check import check_loads
from alignment.models.checkpoint import (
    checkpoint_summary,
    default_device,
    digest_checkpoint,
    embeddings,
    require_precision,
)
from alignment.models.code import record_of_code
from alignment.models.pin import ModelPin, materialise
from alignment.models.runner import tf32_products
from alignment.recipe.forward import TokenPolicy
from alignment.recipe.training import SftTraining
from alignment.stages.stage import Context, Request, Result, SftSummary, Stage
from alignment.store import Artifact
from alignment.training import resume
from alignment.training.arguments import (
    gathered,
    history,
    longer_first,
    micro_batches,
    padded_steps,
    require_world_size,
    trainer_arguments,
    training_order,
)
from alignment.training.demonstrations import SftRows, sft_rows, sft_tokenization, with_known_pad
from alignment.training.models import TrainedModel

log = logging.getLogger(__name__)


class SftRequest(Request):
    """Either `base` with `dataset`, or `adopt`. `tokens` is the recipe's `TokenPolicy.writing()`.

    The number of processes does not change what is trained, so a killed run goes on with another number of them.
    """

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"tokens"})

    base: Artifact | None = None
    dataset: Artifact | None = None
    adopt: ModelPin | None = None
    settings: SftTraining
    tokens: TokenPolicy = TokenPolicy()
    seed: int
    world_size: int = 1

    @model_validator(mode="after")
    def _train_or_adopt(self) -> SftRequest:
        trains = self.base is not None and self.dataset is not None
        if (self.adopt is not None) == trains or (self.base is None) != (self.dataset is None):
            raise ValueError("give either base and dataset, or adopt")
        return self

    def identity(self) -> Any:
        """An adopted checkpoint is what it is: no training setting or launch counts."""
        identity = super().identity()
        if self.adopt is None:
            if self.settings.gradient_checkpointing == "selective":  # changes no result; the other two are in old keys
                identity["settings"]["gradient_checkpointing"] = False
            if not self.settings.router_aux_loss_coef:  # which is taken over what one process holds at once
                identity["world_size"] = 1  # as keys of one process always had it
            return identity | self.tokens.drop_limit()
        for name in ("settings", "tokens", "world_size", *(() if self.adopt.embedded else ("seed",))):
            identity.pop(name, None)
        return identity


def run(request: SftRequest, context: Context) -> Result:
    """Writes the checkpoint folder; the data version is the checkpoint's digest.

    Goes on from the last whole trainer checkpoint in the work folder. Raises `BadInput` for settings or
    data that cannot be trained on.
    """
    if request.adopt is not None:
        runs_code = request.adopt.runs_code
        if context.rank == 0:
            materialise(request.adopt, context.out, request.seed)
            check_loads(context.out, runs_code)
        trained = adopted_summary() | {"source": request.adopt.told()}
    else:
        assert request.base is not None
        runs_code = context.runs_code(request.base)
        ranks = Ranks(context.rank, context.world_size if request.settings.sharded else 1)
        with ranks.together(), tf32_products(request.settings.tf32):
            trained = _train(request, context, runs_code)
    if context.rank:
        return Result(digest="")
    digest = digest_checkpoint(context.out, runs_code)
    about = checkpoint_summary(context.out, digest) | record_of_code(context.out, runs_code)
    return Result(digest=digest.digest, summary=SftSummary(**about, **trained))


def adopted_summary() -> dict[str, Any]:
    """The numbers of a checkpoint that was not trained here."""
    counts = dict.fromkeys(("steps", "rows_trained", "rows_dropped", "tokens"), 0)
    return {**counts, "train_loss": None, "held_out_loss": None, "stopped_early": False, "history": [], "adopted": True}


def _train(request: SftRequest, context: Context, runs_code: bool) -> dict[str, Any]:
    settings = request.settings
    micro_batches(settings, request.world_size)
    require_world_size(request.world_size, context.world_size)
    require_precision(settings.precision, default_device())
    assert request.base is not None and request.dataset is not None
    folder = context.fetch(request.base)
    tokens = sft_tokenization(folder, request.tokens, settings.max_length, runs_code)
    rows = sft_rows(context.fetch(request.dataset), tokens)
    lengths = [len(sequence) for sequence in rows.train]
    order = training_order(rows.train_ids, request.dataset.digest, request.seed, settings.epochs, settings.most_rows)
    order = longer_first(order, lengths, settings.batch_size)
    return _fit(request, context, TrainedModel(folder, settings, runs_code), rows, order.tolist())


def _fit(
    request: SftRequest, context: Context, trained: TrainedModel, rows: SftRows, order: list[int]
) -> dict[str, Any]:
    from alignment.training.sft_trainer import BestWeights, Patience, looks, sft_trainer

    settings, work = request.settings, context.work / "trainer"
    at_once, accumulation = micro_batches(settings, request.world_size)
    arguments = trainer_arguments(settings, work, request.seed, len(order), at_once, accumulation)
    tokenizer = with_known_pad(trained.tokenizer(), embeddings(trained.folder))
    trainer = sft_trainer(trained, rows.train, rows.held_out, tokenizer, arguments, settings.eval_steps)
    trainer.order = order
    if request.world_size > 1:  # one process takes a step's last rows without company, as it always did
        trainer.order = padded_steps(order, settings.batch_size, at_once * request.world_size, trainer.empty_row)
    best = BestWeights(context.work / "best")
    patience = None
    if settings.patience is not None and rows.held_out:
        patience = Patience(settings.patience, best, trainer)
        trainer.add_callback(patience)
    checkpoint = resume.last_complete(work)
    if checkpoint is not None:
        log.info("resuming from step %d", resume.step_of(checkpoint))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if rows.held_out and not any(
        entry["step"] == trainer.state.global_step and "eval_loss" in entry for entry in trainer.state.log_history
    ):
        trainer.evaluate()
    recorded = history(trainer.state.log_history)
    seen = looks(trainer.state.log_history)
    last = [record["held_out_loss"] for record in recorded if "held_out_loss" in record]
    summary: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "rows_trained": len(rows.train),
        "rows_held_out": len(rows.held_out),
        "rows_dropped": sum(rows.dropped.values()),
        "dropped": dict(sorted(rows.dropped.items())),
        "tokens": int(trainer.state.num_input_tokens_seen),
        "train_loss": next((record["loss"] for record in reversed(recorded) if "loss" in record), None),
        "held_out_loss": (seen.best_loss if patience else last[-1]) if last else None,
        "best_step": seen.best_step if patience else None,
        "stopped_early": bool(patience and patience.stopped),
        "rows_per_rank": gathered(trainer.rows_forwarded, request.world_size),
        "resumed_from_step": None if checkpoint is None else resume.step_of(checkpoint),
        "history": recorded,
    }
    if context.rank == 0:
        if patience and seen.best_step is not None and seen.best_step != trainer.state.global_step:
            best.restore(seen.best_step, trainer.model, trainer.optimizer)
        assert request.base is not None
        summary |= trained.keep_adapter(trainer.model, context.store.commit_of(request.base), context.out)
    trained.save(trainer.model, trainer.optimizer, context.out)
    return summary


STAGE: Stage[SftRequest] = Stage(name="sft_checkpoint", code_version=1, request=SftRequest, run=run, device="gpu")
