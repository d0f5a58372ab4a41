"""Stage `policy_checkpoint`: DPO (Rafailov et al. 2023) from the SFT checkpoint against cached reference log-probs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from alignment.data.manifest import Manifest, read_manifest
from alignment.data.tokens import Tokenization
from alignment.logprobs.keys import fingerprint
from alignment.methods import method_of
from alignment.models.checkpoint import checkpoint_summary, digest_checkpoint, end_ids, load_tokenizer, max_positions
from alignment.models.code import record_of_code
from alignment.recipe import Dpo, TokenPolicy
from alignment.stages import Context, Request, Result, Stage
from alignment.store import Artifact
from alignment.training import resume
from alignment.training.arguments import (
    accumulation_steps,
    gathered,
    history,
    require_precision,
    require_world_size,
    rounded,
    trainer_arguments,
    training_order,
)
from alignment.training.pairs import PolicyRows, policy_rows

log = logging.getLogger(__name__)

ROWS_FILE = "training_rows.parquet"


class DpoRequest(Request):
    """`checkpoint` is where the policy starts and what the manifest's references were scored with."""

    manifest: Artifact
    checkpoint: Artifact
    settings: Dpo
    tokens: TokenPolicy
    seed: int
    world_size: int = 1


def run(request: DpoRequest, context: Context) -> Result:
    """Trains and writes the checkpoint, training_rows.parquet and held_out.parquet (every measured held-out pair).

    The data version is the checkpoint's digest.

    Goes on from the last whole trainer checkpoint in the work folder. Raises `BadInput` for settings or
    data that cannot be trained on, `Disagreement` when the untrained policy does not score as its reference.
    """
    settings = request.settings
    accumulation_steps(settings, request.world_size)
    require_world_size(request.world_size, context.world_size)
    require_precision(settings.precision)
    folder = context.fetch(request.checkpoint)
    manifest_folder = context.fetch(request.manifest)
    manifest = read_manifest(manifest_folder)
    rows = _rows(request, context, folder, manifest_folder, manifest)
    trained = _train(request, context, folder, rows)
    summary = {
        **trained,
        "rows_trained": len(rows.train),
        "rows_held_out": len(rows.held_out),
        "rows_dropped": rows.dropped(),
    }
    if context.rank:
        return Result(digest="", summary=summary)
    pq.write_table(rows.record, context.out / ROWS_FILE, compression="zstd")
    runs_code = context.runs_code(request.checkpoint)
    digest = digest_checkpoint(context.out, runs_code)
    about = checkpoint_summary(context.out, digest) | record_of_code(context.out, runs_code)
    return Result(digest=digest.digest, summary=about | summary)


def _rows(request: DpoRequest, context: Context, folder: Path, manifest_folder: Path, manifest: Manifest) -> PolicyRows:
    tokenizer = load_tokenizer(folder, context.runs_code(request.checkpoint))
    tokens = Tokenization(tokenizer, request.tokens, max_positions(folder), end_ids(folder))
    start = context.store.commit_of(request.checkpoint).summary
    if "weights_digest" not in start or "config_digest" not in start:
        start = checkpoint_summary(folder)
    reference = fingerprint(start["weights_digest"], start["config_digest"], request.settings.precision)
    return policy_rows(manifest, context, manifest_folder, tokens, reference, method_of(request.settings))


def _train(request: DpoRequest, context: Context, folder: Path, rows: PolicyRows) -> dict[str, Any]:
    from alignment.training.agreement import require_agreement
    from alignment.training.held_out import means, measure, measured
    from alignment.training.held_out_pairs import write_held_out
    from alignment.training.models import TrainedModel
    from alignment.training.preference_trainer import dpo_trainer

    settings, pairs = request.settings, rows.train
    share = slice(context.rank, None, request.world_size)
    order = training_order(
        [pair.row_id for pair in pairs],
        [pair.longest for pair in pairs],
        request.manifest.digest,
        request.seed,
        settings.epochs,
        settings.batch_size,
    )
    work = context.work / "trainer"
    arguments = trainer_arguments(settings, work, request.seed, request.world_size, len(order))
    trained = TrainedModel(folder, settings, context.runs_code(request.checkpoint))
    trainer = dpo_trainer(trained, pairs, trained.tokenizer(), arguments, settings)
    trainer.order = order
    checkpoint = resume.last_complete(work)
    agreed: dict[str, float] = {}
    if checkpoint is None:
        first = [pairs[index] for index in dict.fromkeys(order[: settings.batch_size])]
        agreed = require_agreement(first[share], settings, trainer.sequence_logps, settings.micro_batch_size)
    else:
        log.info("resuming from step %d", resume.step_of(checkpoint))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    ours = measured(rows.held_out)[share]
    shares = measure(ours, rows.fingerprint, trainer.sequence_logps, settings.micro_batch_size)
    held_out = [pair for of_rank in gathered(shares, request.world_size) for pair in of_rank]
    recorded = history(trainer.state.log_history)
    summary = {
        "steps": trainer.state.global_step,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "first_loss": next((record["loss"] for record in recorded if "loss" in record), None),
        "held_out": means(held_out, settings),
        "agreement": {name: rounded(value) for name, value in agreed.items()},
        "rows_per_rank": gathered(trainer.rows_forwarded, request.world_size),
        "resumed_from_step": None if checkpoint is None else resume.step_of(checkpoint),
        "history": recorded,
    }
    if context.rank == 0:
        trained.save(trainer.model, trainer.optimizer, context.out)
        write_held_out(context.out, held_out)
    return summary


STAGE: Stage[DpoRequest] = Stage(name="policy_checkpoint", code_version=2, request=DpoRequest, run=run, device="gpu")
