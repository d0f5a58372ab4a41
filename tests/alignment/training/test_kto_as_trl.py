"""A whole run of KTO beside TRL's own trainer, which is fed the ring's partners: losses, z₀ and the trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from alignment.data.tokens import Dropped, Tokenization
from alignment.data.validate import halves
from alignment.methods import method_of
from alignment.models.checkpoint import load_model, load_tokenizer
from alignment.recipe import Dpo, TokenPolicy
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.training.arguments import trainer_arguments, training_order

BATCH, EPOCHS, RATE = 8, 3, 2e-3
KTO = {"loss": "kto", "beta": 0.3, "desirable_weight": 1.4, "undesirable_weight": 0.8}


def examples(folder: Path, rows: list[Any], most: int, score_alone: Any) -> list[dict[str, Any]]:
    """TRL's own columns, by row id. A row's partner is the next by id, and the last one's the first; the reference's
    log-probs are those of one sequence alone, from its full logits."""
    model, tokenizer = load_model(folder, "float32"), load_tokenizer(folder)
    tokens = Tokenization(tokenizer, TokenPolicy(max_length=most))
    made = []
    for row in sorted(rows, key=lambda row: row.row_id):
        sequence = tokens.pair(row)
        assert not isinstance(sequence, Dropped)
        made.append((row, sequence[0]))
    found = []
    for (row, own), (_, partner) in zip(made, [*made[1:], made[0]], strict=True):
        prompt, completion = list(own.prompt_ids), list(own.completion_ids)
        other = list(partner.completion_ids)[: max(1, most - len(prompt))]
        found.append(
            {
                "prompt_ids": prompt,
                "completion_ids": completion,
                "KL_completion_ids": other,
                "label": row.label,
                "ref_logps": score_alone(model, prompt, completion),
                "ref_KL_logps": score_alone(model, prompt, other),
            }
        )
    return found


def trl_run(folder: Path, dataset: list[dict[str, Any]], settings: Dpo, work: Path) -> tuple[Any, list[dict[str, Any]]]:
    """TRL's trainer over the rows in their order, a step's rows in one batch; gives its model and its log."""
    from trl import KTOConfig, KTOTrainer

    class AsGiven(KTOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = trainer_arguments(settings, work, 3, len(dataset), BATCH, 1) | {
        "save_strategy": "no",
        "logging_steps": 1,
        "include_num_input_tokens_seen": "no",
    }
    config = KTOConfig(
        **arguments,
        beta=settings.beta,
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
        precompute_ref_log_probs=True,
        max_length=None,
    )
    model = load_model(folder, "float32", dropout=False)
    trainer = AsGiven(
        model=model, args=config, train_dataset=Dataset.from_list(dataset), processing_class=load_tokenizer(folder)
    )
    trainer.train()
    return trainer.model, [record for record in trainer.state.log_history if "loss" in record]


def test_a_run_of_kto_ends_with_the_weights_that_trls_trainer_ends_with(
    lab: Any, score_alone: Any, tmp_path: Path
) -> None:
    checkpoint = lab.checkpoint(kind="qwen2")
    rows = [half for row in lab.rows(10) for half in halves(row)]
    method = method_of(Dpo(**KTO))
    manifest = lab.scored_manifest(checkpoint, rows, method)
    request = lab.dpo_request(checkpoint, manifest, **KTO, batch_size=BATCH, epochs=EPOCHS, learning_rate=RATE)
    commit = execute(STAGE, request, lab.store)
    history = [record for record in commit.summary["history"] if "loss" in record]

    folder = lab.store.fetch(checkpoint)
    by_id = examples(folder, rows, 64, score_alone)
    order = training_order(sorted(row.row_id for row in rows), manifest.digest, request.seed, EPOCHS)
    assert len(order) == EPOCHS * len(rows) and len(order) % BATCH
    trained, log = trl_run(folder, [by_id[place] for place in order], request.settings, tmp_path / "trl")

    assert [record["loss"] for record in history] == pytest.approx([record["loss"] for record in log], abs=2e-4)
    assert [record["kl"] for record in history] == pytest.approx([record["kl"] for record in log], abs=2e-4)
    assert max(record["kl"] for record in log) > 0.05, "z₀ takes part"
    assert [record["grad_norm"] for record in history] == pytest.approx(
        [float(record["grad_norm"]) for record in log], rel=2e-3
    )
    start, ours = load_model(folder, "float32"), load_model(lab.store.fetch(commit.artifact), "float32")
    moved = apart = 0.0
    for name, weight in ours.named_parameters():
        moved += float((weight - start.get_parameter(name)).square().sum())
        apart += float((weight - trained.get_parameter(name)).square().sum())
    assert apart < 1e-4 * moved, "within a hundredth of the way that training went"
