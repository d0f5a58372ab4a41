"""Stage `policy_checkpoint`: preference training from the SFT checkpoint, against cached reference log-probs if the
method has a reference."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.data.manifest import Manifest, read_manifest
from alignment.data.tokens import Tokenization, TokenSequence
from alignment.errors import BadInput
from alignment.logprobs.effort import Ranks
from alignment.logprobs.keys import fingerprint, numerics_class
from alignment.logprobs.token_ids import TokenIds, policy_name
from alignment.methods import method_of
from alignment.models.checkpoint import (
    checkpoint_summary,
    default_device,
    digest_checkpoint,
    embeddings,
    load_model,
    load_tokenizer,
    max_positions,
    read_config,
    require_precision,
    whole_summary,
)
from alignment.models.code import record_of_code
from alignment.models.loading import load_sharded
from alignment.models.quantised import Quantisation
from alignment.models.runner import tf32_products
from alignment.recipe.training import Dpo
from alignment.stages.execute import environment
from alignment.stages.policy import ROWS_FILE, DpoRequest
from alignment.stages.stage import Context, PolicySummary, ReferenceSummary, Result, Stage, began_with
from alignment.store import Artifact
from alignment.training import resume
from alignment.training.arguments import (
    gathered,
    history,
    require_world_size,
    rounded,
    trainer_arguments,
    training_order,
)
from alignment.training.joining import Joining
from alignment.training.row_files import SFT_FILE, PolicyRows, open_rows
from alignment.training.sft_rows import order_beside, write_sft_rows_of

if TYPE_CHECKING:
    from alignment.training.pairs import Score

log = logging.getLogger(__name__)

REFERENCE_ROWS = 8
"""Rows of a reference that is not the start checkpoint, which are scored again before the policy is trained."""


def run(request: DpoRequest, context: Context) -> Result:
    """Trains and writes the checkpoint, training_rows.parquet and held_out.parquet (every measured held-out pair).

    The data version is the checkpoint's digest.

    Goes on from the last whole trainer checkpoint in the work folder. Raises `BadInput` for settings or
    data that cannot be trained on, `Disagreement` when the untrained policy does not score as its reference.
    """
    require_world_size(request.world_size, context.world_size)
    require_precision(request.settings.precision, default_device())
    ranks = Ranks(context.rank, context.world_size)
    with ranks.together(), tf32_products(request.settings.tf32):
        return _run(request, context, ranks)


def _run(request: DpoRequest, context: Context, ranks: Ranks) -> Result:
    from alignment.logprobs.scorer import free_memory

    sharded = request.settings.sharded and ranks.world_size > 1
    saved = seen_by_all(context.out, ranks) if sharded else context.out
    folder = context.fetch(request.checkpoint)
    manifest_folder = context.fetch(request.manifest)
    manifest = read_manifest(manifest_folder)
    rows, dropped, sft_dropped = training_rows(request, context, ranks, folder, manifest_folder, manifest)
    same_device = _same_device(context, manifest)
    agreed = _reference_agrees(request, context, rows, same_device)
    free_memory()
    trained = _train(request, context, folder, rows, same_device) | ({"agreement": agreed} if agreed else {})
    if context.rank and not sharded:
        return Result(digest="")
    trained |= measure_held_out(request, context, rows, saved, sharded)
    if context.rank:
        return Result(digest="")
    runs_code = context.runs_code(request.checkpoint)
    digest = digest_checkpoint(context.out, runs_code)
    about = checkpoint_summary(context.out, digest) | record_of_code(context.out, runs_code)
    if rows.sft is not None:
        trained |= {"sft_rows": len(rows.sft), "sft_rows_dropped": sft_dropped}
    summary = PolicySummary(
        **about,
        **trained,
        rows_trained=len(rows.train),
        rows_held_out=len(rows.held_out),
        rows_dropped=dropped,
    )
    return Result(digest=digest.digest, summary=summary)


def seen_by_all(folder: Path, ranks: Ranks) -> Path:
    """The first rank's folder; raises `BadInput` where another does not see it, before hours of training."""
    first = Path(ranks.gather(str(folder))[0])
    if blind := [rank + 1 for rank, sees in enumerate(ranks.gather(first.is_dir())) if not sees]:
        raise BadInput(
            f"process {blind[0]} of {ranks.world_size} does not see {first}, where the policy is saved and measured:"
            " all nodes of a sharded training need one folder for the store",
            field="sharded",
        )
    return first


def _fingerprint_of(
    checkpoint: Artifact, request: DpoRequest, context: Context, quantisation: Quantisation | None = None
) -> str:
    """The fingerprint of a checkpoint's log-probs, as the request's training scores."""
    about = whole_summary(context.store.commit_of(checkpoint).summary, lambda: context.fetch(checkpoint))
    settings = request.settings
    return fingerprint(
        about["weights_digest"],
        about["config_digest"],
        settings.precision,
        quantisation=quantisation,
        numerics=numerics_class(
            settings.precision, request.pass_tokens, lambda: read_config(context.fetch(checkpoint)), settings.tf32
        ),
        rope_by_length=about["rope_by_length"],
    )


def training_rows(
    request: DpoRequest, context: Context, ranks: Ranks, folder: Path, manifest_folder: Path, manifest: Manifest
) -> tuple[PolicyRows, dict[str, int], dict[str, int]]:
    """The rows, and why others and SFT rows were dropped; the first rank writes them down, and all read them from
    there."""
    tokenizer = load_tokenizer(folder, context.runs_code(request.checkpoint))
    start = whole_summary(context.store.commit_of(request.checkpoint).summary, lambda: folder)
    tokens = Tokenization(tokenizer, request.tokens, max_positions(folder), start["end_ids"], embeddings(folder))
    scored, quantised = request.reference or request.checkpoint, request.settings.quantise
    name = _fingerprint_of(scored, request, context, quantised)
    into, method = context.work / "rows", method_of(request.settings)
    dropped, sft_dropped = dict[str, int](), dict[str, int]()
    if ranks.rank == 0:
        policy = policy_name(request.tokens, start, lambda: folder, context.runs_code(request.checkpoint))
        ids, record = TokenIds(context.store, policy), context.out / ROWS_FILE
        dropped = Joining(context, method, tokens, ids, name).write(manifest, manifest_folder, into, record)
        if request.sft_dataset is not None:
            sft_dropped = write_sft_rows_of(context.fetch(request.sft_dataset), tokens, into / SFT_FILE)
    written = ranks.gather(str(into))[0]  # all wait for the first, whose work folder may be another than theirs
    return open_rows(Path(written), name), dropped, sft_dropped


def _same_device(context: Context, manifest: Manifest) -> bool:
    """Whether the manifest's references were all scored where this runs: on such a device, with this torch."""
    here = environment()
    names = [shard.reference for shard in manifest.shards if shard.reference is not None]
    made = [context.store.commit_of(reference) for reference in names]
    if any(ReferenceSummary.of(each).cache_hits for each in made):  # nobody says which device those were scored on
        return False
    return all(each.environment.get(name) == here[name] for each in made for name in ("device", "torch"))


def _reference_agrees(
    request: DpoRequest, context: Context, rows: PolicyRows, same_device: bool
) -> dict[str, float | None]:
    """Where the policy does not start as its reference, compares the reference itself with the cached log-probs by the
    trainer's pass, before the policy is loaded. Nothing, where it does."""
    reference = request.reference
    if reference is None or resume.last_complete(context.work / "trainer") is not None:
        return {}
    from alignment.logprobs.scorer import logps
    from alignment.models.loading import load_sharded
    from alignment.models.sharding import without_gradient
    from alignment.training.agreement import require_agreement
    from alignment.training.preference_trainer import logps_alone

    settings, at, runs_code = request.settings, context.fetch(reference), context.runs_code(reference)
    if settings.sharded and context.world_size > 1:
        model = load_sharded(at, settings.precision, runs_code=runs_code)
    else:
        model = load_model(at, settings.precision, runs_code=runs_code, quantise=settings.quantise)

    def packed(sequences: Sequence[TokenSequence], wholes: Sequence[int] | None = None) -> list[float]:
        return logps(model, sequences, request.pass_tokens, wholes)

    def alone(sequences: Sequence[TokenSequence], wholes: Sequence[int] | None = None) -> list[float]:
        with without_gradient(model):
            return logps_alone(model, sequences)

    first = [rows.train[place] for place in range(min(REFERENCE_ROWS, len(rows.train)))]
    agreed = require_agreement(first, settings, packed, None if same_device else alone)
    return {name: rounded(value) for name, value in agreed.items()}


def _train(request: DpoRequest, context: Context, folder: Path, rows: PolicyRows, same_device: bool) -> dict[str, Any]:
    from alignment.training.agreement import require_agreement
    from alignment.training.models import TrainedModel
    from alignment.training.preference_trainer import preference_trainer

    settings, pairs, work = request.settings, rows.train, context.work / "trainer"
    checkpoint = resume.last_complete(work)
    if checkpoint is not None:  # first, as `align run` shows one line in three seconds
        log.info("resuming from step %d", resume.step_of(checkpoint))
    if settings.micro_batch_size != Dpo.model_fields["micro_batch_size"].default:
        log.info("micro_batch_size is ignored: a step's rows go in passes of %d tokens", request.pass_tokens)
    order = training_order(pairs.row_ids, request.manifest.digest, request.seed, settings.epochs, settings.most_rows)
    arguments = trainer_arguments(settings, work, request.seed, len(order), settings.batch_size, 1)
    trained = TrainedModel(folder, settings, context.runs_code(request.checkpoint), dropout=False)
    is_reference = request.reference is None
    trainer = preference_trainer(
        trained, pairs, trained.tokenizer(), arguments, settings, request.pass_tokens, is_reference=is_reference
    )
    trainer.order = order
    agreed: dict[str, float] = {}
    longest = list(pairs.longest().sequences.values())
    if rows.sft is not None:
        fraction, digest = settings.sft_rows_fraction, request.manifest.digest
        trainer.sft_rows = rows.sft
        trainer.sft_order = order_beside(rows.sft, digest, request.seed, len(order), settings.batch_size, fraction)
        longest += rows.sft.longest().sequences.values()
    trainer.logps(longest)  # shows how this model is run, before a step relies on it
    if checkpoint is None and method_of(settings).needs_reference and request.reference is None:
        first = [pairs[index] for index in dict.fromkeys(order[: settings.batch_size].tolist())]
        # every rank of a sharded model makes the same passes
        share = first if trained.sharded else first[slice(context.rank, None, request.world_size)]
        agreed = require_agreement(share, settings, trainer.logps, None if same_device else trainer.logps_alone)
    looks = None
    if settings.stop is not None or settings.keep_steps is not None:
        from alignment.training.sft_trainer import BestWeights
        from alignment.training.stops import HeldOutLooks

        runs_code, best = context.runs_code(request.checkpoint), BestWeights(context.work / "best")
        looks = HeldOutLooks(trainer, rows.held_out, folder, request.seed, runs_code, best)
        trainer.add_callback(looks)
    with trainer.attending():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    recorded = history(trainer.state.log_history)
    summary: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "first_loss": next((record["loss"] for record in recorded if "loss" in record), None),
        "agreement": {name: rounded(value) for name, value in agreed.items()},
        "rows_per_rank": gathered(trainer.rows_forwarded, request.world_size),
        "resumed_from_step": None if checkpoint is None else resume.step_of(checkpoint),
        "history": recorded,
        **({} if looks is None else {"stopped_by": looks.stopped_by, **looks.restore_best()}),
    }
    if context.rank == 0:
        summary |= trained.keep_adapter(trainer.model, context.store.commit_of(request.checkpoint), context.out)
    trained.save(trainer.model, trainer.optimizer, context.out)
    return summary


def measure_held_out(
    request: DpoRequest, context: Context, rows: PolicyRows, saved: Path, sharded: bool = False
) -> dict[str, Any]:
    """Measures the held-out rows on the checkpoint in `saved`, loaded as evaluations load it, and writes them.

    Evaluations compare the policy with its start on these rows; of a chain that is where the chain began. Where its
    log-probs are not the reference's, which are known, it is measured here, on these rows alone. The means in the
    summary are by the reference that the training had. Of a `sharded` model every rank measures them all.
    """
    from alignment.logprobs.scorer import free_memory, logps
    from alignment.training.held_out import means, measure, measured, with_reference
    from alignment.training.held_out_pairs import write_held_out

    def score(folder: Path) -> Score:
        """By the model in a folder, which is in memory for one call."""

        def logps_of(sequences: Sequence[TokenSequence], wholes: Sequence[int] | None = None) -> list[float]:
            free_memory()
            load = load_sharded if sharded else load_model
            model = load(folder, request.settings.precision, runs_code=context.runs_code(request.checkpoint))
            return logps(model, sequences, request.pass_tokens, wholes)

        return logps_of

    held_out, method = measured(rows.held_out), method_of(request.settings)
    if not held_out:
        if not context.rank:
            write_held_out(context.out, [])
        return {"held_out": means([], request.settings)}
    if not method.needs_reference:
        held_out = with_reference(held_out, method, score(context.fetch(request.checkpoint)))
    policy = once(score(saved))
    found = of_start = measure(held_out, method, rows.fingerprint, policy)
    start = began_with(context.store.commit_of, request.checkpoint)
    reference = request.reference if request.reference and method.needs_reference else request.checkpoint
    if start.digest != reference.digest:
        beside = with_reference(held_out, method, score(context.fetch(start)))
        of_start = measure(beside, method, _fingerprint_of(start, request, context), policy)
    if not context.rank:
        write_held_out(context.out, of_start)
    return {"held_out": means(found, request.settings)}


def once(score: Score) -> Score:
    """A score that is computed at the first call, for callers that give the same sequences each time."""
    known: list[float] = []

    def logps_of(sequences: Sequence[TokenSequence], wholes: Sequence[int] | None = None) -> list[float]:
        if not known:
            known.extend(score(sequences, wholes) if wholes is not None else score(sequences))
        return list(known)

    return logps_of


STAGE: Stage[DpoRequest] = Stage(name="policy_checkpoint", code_version=3, request=DpoRequest, run=run, device="gpu")
