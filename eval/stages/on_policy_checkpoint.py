"""`on_policy_checkpoint`: a policy that is trained on answers it samples itself, scored by what verifies them (GRPO).

Its artifacts are of the kind of policies, with the same files: what reads a policy reads this one. Scorers are of this
floor, so the stage stands here and not beside the one of methods that train on preferences.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.data.manifest import read_manifest
from alignment.data.mixing import place_in_draw
from alignment.data.overlap import item_texts
from alignment.data.rows import write_records
from alignment.errors import BadInput
from alignment.generation.generator import PromptEncoder, as_trained
from alignment.generation.prompts import Items, Prompt, Reading
from alignment.logprobs.effort import ALONE
from alignment.models.checkpoint import (
    checkpoint_summary,
    default_device,
    digest_checkpoint,
    embeddings,
    load_model,
    max_positions,
    require_precision,
)
from alignment.models.code import record_of_code
from alignment.stages.policy import ON_POLICY_FILE, ROWS_FILE, DpoRequest, Rollouts
from alignment.stages.policy_checkpoint import measure_held_out, training_rows
from alignment.stages.stage import POLICY, Context, PolicySummary, Result, Stage
from alignment.training import resume
from alignment.training.arguments import history, require_world_size, rounded, trainer_arguments, training_order
from alignment.training.demonstrations import with_known_pad
from eval.ranking.scorers import Scored, Scores

log = logging.getLogger(__name__)

PROMPTS_SCHEMA = pa.schema([("row_id", pa.string()), ("source", pa.string()), ("source_row", pa.int64())])
"""One row a prompt that was trained on; `row_id` is the prompt's."""
NOT_TRAINED = "not trained on: the policy samples its own answers"


@dataclass
class Verified:
    """Scores sampled answers by what their prompts say, and counts those that have none."""

    prompts: dict[str, Prompt]
    scores: Scores
    context: Context
    unscored: Counter[str] = field(default_factory=Counter)
    scored: int = 0

    def __call__(self, answers: Sequence[tuple[str, str, int]]) -> list[float | None]:
        """Raises `BadInput` if there was never a score."""
        asked = [
            Scored(f"{row_id}/{place}", row_id, prompt.content, prompt.about, text, tokens)
            for place, (row_id, text, tokens) in enumerate(answers)
            for prompt in [self.prompts[row_id]]
        ]
        totals = self.scores.of(asked, self.context)
        self.unscored.update(total.failed for total in totals if total.failed is not None)
        self.scored += sum(total.failed is None for total in totals)
        if not self.scored:
            told = ", ".join(f"{reason}: {count}" for reason, count in self.unscored.most_common())
            raise BadInput(f"no sampled answer has a score ({told})", field="on_policy.score")
        return [total.score for total in totals]


def run(request: DpoRequest, context: Context) -> Result:
    """Trains and writes the checkpoint, on_policy_prompts.parquet (the prompts it was trained on), held_out.parquet,
    and training_rows.parquet, which says of the preferences that none was trained on.

    In float32 on a CPU the same request gives the same policy, wherever it was interrupted: it goes on from the last
    whole trainer checkpoint. Raises `BadInput` without prompts, scores or differences between scores.
    """
    rollouts = request.rollouts
    assert rollouts is not None
    require_world_size(request.world_size, context.world_size)
    require_precision(request.settings.precision, default_device())
    if context.world_size > 1:
        raise BadInput("grpo trains in one process: give a pool of one", field="pools.policy")
    folder, manifest_folder = context.fetch(request.checkpoint), context.fetch(request.manifest)
    manifest = read_manifest(manifest_folder)
    rows, _, _ = training_rows(request, context, ALONE, folder, manifest_folder, manifest)
    _none_trained(context.out / ROWS_FILE)
    trained = _train(request, rollouts, context, folder)
    trained |= measure_held_out(request, context, rows, context.out)
    runs_code = context.runs_code(request.checkpoint)
    digest = digest_checkpoint(context.out, runs_code)
    about = checkpoint_summary(context.out, digest) | record_of_code(context.out, runs_code)
    summary = PolicySummary(**about, **trained, rows_held_out=len(rows.held_out))
    return Result(digest=digest.digest, summary=summary)


def _none_trained(record: Path) -> None:
    """Says of each row of the manifest that would be trained on that it is not."""
    table = pq.read_table(record)
    cells = table.to_pylist()
    for row in cells:
        if row["split"] == "train":
            row |= {"split": "dropped", "reason": NOT_TRAINED}
    pq.write_table(pa.Table.from_pylist(cells, schema=table.schema), record, compression="zstd")


def prompts_of(rollouts: Rollouts, seed: int, encoder: PromptEncoder) -> tuple[dict[str, Prompt], Reading]:
    """The prompts by id, in the order of their sources, and what was set aside; raises `BadInput` if none is left."""
    suites = {suite: item_texts(items, suite) for suite, items in (rollouts.suites or {}).items()}
    items, withdrawn = Items(suites) if suites else None, frozenset(rollouts.withdrawn)
    reading = Reading(rollouts.held_out_fraction, items, withdrawn, (0, 1), seed)
    found: dict[str, Prompt] = {}
    for source in rollouts.prompts:
        usable = []
        for prompt in reading.prompts(source):
            content = as_trained(prompt.content, encoder.tokens)
            if not encoder.is_chat and not isinstance(content, str):
                what = "prompts of messages need a chat template, and the checkpoint has none"
                raise BadInput(what, field="chat_template")
            problem = encoder.problem(encoder.encode(content), rollouts.max_new_tokens)
            if problem is None:
                usable.append(prompt)
            else:
                reading.set_aside(prompt, problem)
        usable.sort(key=lambda prompt: place_in_draw(seed, prompt.row_id))
        found |= {prompt.row_id: prompt for prompt in usable[: rollouts.max_prompts]}
    if not found:
        told = ", ".join(f"{reason}: {count}" for reason, count in reading.reasons.items())
        raise BadInput(f"no prompt is left to train on ({told or 'the sources have none'})", field="on_policy.prompts")
    return found, reading


def _train(request: DpoRequest, rollouts: Rollouts, context: Context, folder: Path) -> dict[str, Any]:
    """Trains, writes the checkpoint and the prompts, and returns the summary's fields."""
    import torch

    from alignment.training.models import TrainedModel
    from alignment.training.on_policy_trainer import hold_near, on_policy_trainer, places_of

    settings, work, runs_code = request.settings, context.work / "trainer", context.runs_code(request.checkpoint)
    torch.manual_seed(request.seed)
    trained = TrainedModel(folder, settings, runs_code, dropout=False)
    tokenizer = with_known_pad(trained.tokenizer(), embeddings(folder))
    encoder = PromptEncoder(trained.tokenizer(), max_positions(folder), request.tokens.writing())
    prompts, reading = prompts_of(rollouts, request.seed, encoder)
    order = _order(request, list(prompts))
    slices = settings.batch_size * rollouts.n // settings.micro_batch_size
    verified = Verified(prompts, Scores(rollouts.scores, rollouts.length_penalty), context)
    trainer = on_policy_trainer(
        trained.model,
        tokenizer,
        {row_id: encoder.encode(as_trained(one.content, encoder.tokens)) for row_id, one in prompts.items()},
        verified,
        trainer_arguments(settings, work, request.seed, len(order), settings.micro_batch_size, slices),
        n=rollouts.n,
        temperature=rollouts.temperature,
        max_new_tokens=rollouts.max_new_tokens,
        batch_tokens=request.pass_tokens,
        seed=request.seed,
    )
    if rollouts.kl_weight:
        hold_near(trainer, load_model(folder, settings.precision, runs_code=runs_code), rollouts.kl_weight)
    trainer.order = places_of(order, settings.batch_size, rollouts.n, slices)
    checkpoint = resume.last_complete(work)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    recorded = history(trainer.state.log_history)
    scores = _scores_told(rollouts, len(prompts), trainer.state.global_step, recorded)
    trained.save(trainer.model, trainer.optimizer, context.out)
    write_records(
        context.out / ON_POLICY_FILE,
        PROMPTS_SCHEMA,
        ({"row_id": one.row_id, "source": one.source, "source_row": one.source_row} for one in prompts.values()),
    )
    if verified.unscored:
        log.warning("answers without a score: %s", dict(verified.unscored.most_common()))
    return {
        "steps": trainer.state.global_step,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "rows_trained": len(prompts),
        "rows_dropped": reading.reasons,
        "resumed_from_step": None if checkpoint is None else resume.step_of(checkpoint),
        "history": recorded,
        "rollouts": {"answers": trainer.answers, "unscored": verified.unscored.total(), **scores},
    }


def _order(request: DpoRequest, ids: list[str]) -> list[int]:
    """The places of the prompts in the order they are trained on, whole steps of them; raises `BadInput` without
    one."""
    settings = request.settings
    order = training_order(ids, request.manifest.digest, request.seed, settings.epochs, settings.most_rows).tolist()
    if len(order) < settings.batch_size:
        what = f"{len(order)} prompts do not fill one step of {settings.batch_size}: lower it, or give more prompts"
        raise BadInput(what, field="batch_size")
    whole: list[int] = order[: len(order) // settings.batch_size * settings.batch_size]
    return whole


def _scores_told(
    rollouts: Rollouts, prompts: int, steps: int, recorded: list[dict[str, float]]
) -> dict[str, float | None]:
    """What the records of a training say of scores; raises `BadInput` where no answer was better than another."""
    equal = [record["equal_scores"] for record in recorded if "equal_scores" in record]
    if equal and min(equal) >= 1 and not rollouts.kl_weight:
        raise BadInput(
            f"nothing was learned: the {rollouts.n} answers to each of {prompts} prompts scored the same in all"
            f" {steps} steps; raise on_policy.temperature or n, or give other prompts",
            field="on_policy.score",
        )
    scores = [record["score"] for record in recorded if "score" in record]
    return {
        "equal_scores": rounded(math.fsum(equal) / len(equal)) if equal else None,
        "first_score": scores[0] if scores else None,
        "last_score": scores[-1] if scores else None,
    }


STAGE: Stage[DpoRequest] = Stage(
    name="on_policy_checkpoint", code_version=1, request=DpoRequest, run=run, device="gpu", kind=POLICY
)
