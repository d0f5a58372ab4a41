"""The policy stage against independent oracles."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from alignment.errors import BadInput
from alignment.recipe import TokenPolicy
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.store import CorruptArtifact

ROUNDED = 1e-5
"""How far a first loss in float32 may be from theory: sums of some -60 nats are known to about 1e-5, beta takes a
tenth or a third of that, and the history rounds to six digits."""


def losses(summary: dict[str, Any]) -> list[float]:
    return [record["loss"] for record in summary["history"]]


def oracle(
    lab: Any,
    checkpoint: Any,
    manifest: Any,
    steps: int,
    batch: int,
    rate: float,
    beta: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> list[float]:
    """DPO (Rafailov et al. 2023, eq. 7) as a plain loop: one sequence at a time, its own reference pass, AdamW."""
    import torch

    from alignment.data.manifest import read_manifest
    from alignment.data.rows import read_rows
    from alignment.data.tokens import Tokenization
    from alignment.models.checkpoint import load_model, load_tokenizer
    from alignment.training.arguments import training_order

    folder = lab.store.fetch(checkpoint)
    policy, reference = load_model(folder, "float32"), load_model(folder, "float32")
    tokens = Tokenization(load_tokenizer(folder), TokenPolicy(max_length=64))
    shard = read_manifest(lab.store.fetch(manifest)).shards[0].shard
    pairs = {row.row_id: tokens.pair(row) for row in read_rows(lab.store.fetch(shard) / "rows.parquet")}
    names = sorted(pairs)
    order = training_order(names, manifest.digest, 3, 1.0)

    def logp(model: Any, sequence: Any) -> Any:
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.completion_ids]])
        scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return scores.gather(1, ids[0, 1:, None])[len(sequence.prompt_ids) - 1 :].sum()

    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate, betas=betas, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (steps - step) / steps)
    found = []
    for start in range(0, steps * batch, batch):
        loss = torch.zeros(())
        rows = [pairs[names[index]] for index in order[start : start + batch]]
        for chosen, rejected in rows:
            with torch.no_grad():
                behind = logp(reference, chosen) - logp(reference, rejected)
            margin = logp(policy, chosen) - logp(policy, rejected) - behind
            loss = loss - torch.nn.functional.logsigmoid(beta * margin) / len(rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        found.append(float(loss))
    return found


def test_training_is_the_plain_dpo_loop_of_the_paper(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(22))
    request = lab.dpo_request(
        checkpoint, manifest, micro_batch_size=2, schedule="linear", warmup_ratio=0.0, beta=0.3, epochs=1
    )
    summary = execute(STAGE, request, lab.store).summary
    expected = oracle(lab, checkpoint, manifest, steps=6, batch=4, rate=1e-3, beta=0.3)
    # AdamW moves a weight whose gradient is little more than rounding by as much as any other, so that losses part by
    # up to some 3e-5, with the order that a machine's own reference digests give; training moves them by 0.1 and more
    assert losses(summary) == pytest.approx(expected, abs=1e-3)
    assert losses(summary)[0] == pytest.approx(math.log(2), abs=ROUNDED)
    assert summary["first_loss"] == losses(summary)[0]
    assert max(abs(loss - math.log(2)) for loss in losses(summary)) > 0.02
    assert (summary["rows_trained"], summary["steps"], summary["rows_per_rank"]) == (22, 6, [22])


def test_training_ends_after_max_steps_whose_schedule_spans_them_with_the_betas_that_the_recipe_names(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(22))
    plain = {"schedule": "linear", "warmup_ratio": 0.0, "beta": 0.3, "epochs": 3}
    request = lab.dpo_request(checkpoint, manifest, max_steps=4, adam_betas=(0.5, 0.7), **plain)
    summary = execute(STAGE, request, lab.store).summary
    expected = oracle(lab, checkpoint, manifest, steps=4, batch=4, rate=1e-3, beta=0.3, betas=(0.5, 0.7))
    assert losses(summary) == pytest.approx(expected, abs=1e-3)
    usual = oracle(lab, checkpoint, manifest, steps=4, batch=4, rate=1e-3, beta=0.3)
    assert max(abs(one - other) for one, other in zip(expected, usual, strict=True)) > 5e-3  # the betas can be seen
    assert (summary["steps"], summary["rows_per_rank"]) == (4, [16])
    rates = [record["learning_rate"] for record in summary["history"]]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_cached_reference_log_probs_of_something_else_are_refused(lab: Any) -> None:
    from alignment.training.agreement import Disagreement

    checkpoint = lab.checkpoint()
    rows = lab.rows(4)

    def falsify(scored: list[dict[str, Any]]) -> None:
        scored[2]["chosen_logp"] += 3.0

    manifest = lab.manifest(checkpoint, rows, change=falsify)
    with pytest.raises(Disagreement, match=rf"row {rows[2].row_id} \(chosen, .*-3\.0000 nat"):
        execute(STAGE, lab.dpo_request(checkpoint, manifest), lab.store)


def test_token_ids_other_than_those_that_were_scored_are_refused(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(4), change=lambda scored: scored[0].update(chosen_key="0" * 32))
    with pytest.raises(CorruptArtifact, match="chosen side's token ids are not those that were scored"):
        execute(STAGE, lab.dpo_request(checkpoint, manifest), lab.store)


def test_references_of_another_precision_are_refused(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(4), precision="float32")
    with pytest.raises(BadInput, match="not those of the checkpoint"):
        execute(STAGE, lab.dpo_request(checkpoint, manifest, precision="bfloat16"), lab.store)


def test_every_row_is_trained_on_held_out_or_dropped_for_a_reason(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    tokens = TokenPolicy(max_length=30)
    manifest = lab.manifest(checkpoint, lab.rows(40), tokens=tokens, held_out_fraction=0.3)
    commit = execute(STAGE, lab.dpo_request(checkpoint, manifest, tokens=tokens, batch_size=8), lab.store)
    summary, record = commit.summary, pq.read_table(lab.store.fetch(commit.artifact) / "training_rows.parquet")
    dropped = summary["rows_dropped"]["too long"]
    assert dropped > 0 and summary["rows_held_out"] > 0
    assert summary["rows_trained"] + summary["rows_held_out"] + dropped == 40 == record.num_rows
    assert summary["held_out"]["pairs"] == summary["rows_held_out"]
    assert record.column("split").to_pylist().count("train") == summary["rows_trained"]


def test_a_policy_is_described_as_every_checkpoint_is(lab: Any) -> None:
    from alignment.models.checkpoint import checkpoint_summary

    checkpoint = lab.checkpoint()
    commit = execute(STAGE, lab.dpo_request(checkpoint, lab.manifest(checkpoint, lab.rows(4))), lab.store)
    described = checkpoint_summary(lab.store.fetch(commit.artifact))
    assert {name: commit.summary[name] for name in described} == described


def test_bfloat16_trains_on_bfloat16_weights_and_keeps_what_they_round_away(lab: Any) -> None:
    import torch
    from safetensors.torch import load_file

    checkpoint = lab.checkpoint(kind="qwen2")
    manifest = lab.manifest(checkpoint, lab.rows(24), precision="bfloat16", held_out_fraction=0.2)
    request = lab.dpo_request(
        checkpoint, manifest, precision="bfloat16", learning_rate=1e-5, gradient_checkpointing=True
    )
    commit = execute(STAGE, request, lab.store)
    before = load_file(lab.store.fetch(checkpoint) / "model.safetensors")
    after = load_file(lab.store.fetch(commit.artifact) / "model.safetensors")
    moved = torch.cat([(after[name] - before[name]).abs().flatten() for name in before])
    assert commit.summary["first_loss"] == pytest.approx(math.log(2), abs=0.02)
    assert before.keys() == after.keys() and {t.dtype for t in after.values()} == {torch.float32}
    assert 0 < float(moved.max()) < 1e-4  # far below what a bfloat16 weight can show of such a step


@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.2}])
def test_what_is_computed_again_changes_neither_the_policy_nor_its_key(lora: Any, lab: Any, tmp_path: Path) -> None:
    """Numbers that dropout draws are drawn again."""
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(12))
    requests = [
        lab.dpo_request(checkpoint, manifest, lora=lora, max_steps=3, gradient_checkpointing=kept)
        for kept in (False, "selective", True)
    ]
    assert len({STAGE.key(request) for request in requests}) == 1
    digests = {
        execute(STAGE, request, lab.twin(tmp_path / f"{place}")).digest for place, request in enumerate(requests)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_lora_is_merged_into_a_plain_checkpoint_that_answers_as_the_adapter_did(
    lab: Any, stored: str, monkeypatch: pytest.MonkeyPatch, score_alone: Any
) -> None:
    from alignment.models.checkpoint import load_model
    from alignment.training import models

    checkpoint = lab.checkpoint(kind="qwen2", dtype=stored)
    precision = "float32" if stored == "float32" else "bfloat16"
    manifest = lab.manifest(checkpoint, lab.rows(12), precision=precision)
    seen: list[list[float]] = []
    save = models.TrainedModel.save

    def scores(model: Any) -> list[float]:
        return [score_alone(model, [0, n, n + 1, n + 2], [n + 3, n + 7, 9, n + 5, 1]) for n in range(4, 20)]

    def watched(self: Any, trained: Any, optimizer: Any, out: Any) -> None:
        trained.eval()
        seen.append(scores(trained))
        with trained.disable_adapter():
            seen.append(scores(trained))
        save(self, trained, optimizer, out)

    monkeypatch.setattr(models.TrainedModel, "save", watched)
    lora = {"rank": 4, "alpha": 8, "dropout": 0.1}
    request = lab.dpo_request(checkpoint, manifest, precision=precision, lora=lora, learning_rate=2e-2, epochs=4)
    commit = execute(STAGE, request, lab.store)
    merged = load_model(lab.store.fetch(commit.artifact), precision)
    adapted, base = seen

    def apart(these: list[float], those: list[float]) -> float:
        return sum(abs(one - other) for one, other in zip(these, those, strict=True)) / len(these)

    # rounding to bfloat16 may take a sequence 0.3 nat away, and training may move it by less; all together were moved
    # by 1.4 to 4 nats each, of which rounding left up to a twentieth in doubt, and a wrong scale would leave a half
    assert apart(adapted, base) > 0.5
    assert apart(scores(merged), adapted) < (1e-3 if stored == "float32" else 0.2) * apart(adapted, base)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert commit.summary["first_loss"] == pytest.approx(math.log(2), abs=ROUNDED if stored == "float32" else 0.02)


def test_a_lora_target_that_is_not_there_is_bad_input(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(4))
    with pytest.raises(BadInput, match="target"):
        execute(STAGE, lab.dpo_request(checkpoint, manifest, lora={"target_modules": ["nowhere"]}), lab.store)


def test_one_model_is_held_in_memory_and_no_reference_is_run(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment.training import models
    from alignment.training import preference_trainer as dpo_trainer

    loaded: list[Any] = []
    held: list[int] = []
    load = models.load_model
    monkeypatch.setattr(models, "load_model", lambda *a, **k: loaded.append(load(*a, **k)) or loaded[-1])
    train = dpo_trainer.CachedReferenceTrainer.train

    def counted(self: Any, **settings: Any) -> Any:
        held.append(sum(weight.numel() for weight in self.accelerator.unwrap_model(self.model).parameters()))
        assert self.ref_model is None
        return train(self, **settings)

    monkeypatch.setattr(dpo_trainer.CachedReferenceTrainer, "train", counted)
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(4))
    execute(STAGE, lab.dpo_request(checkpoint, manifest), lab.store)
    assert len(loaded) == 1
    assert held == [lab.store.commit_of(checkpoint).summary["parameters"]]


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"loss": "hinge"}, 1.0),
        ({"loss": "ipo", "beta": 0.2}, 6.25),
        ({"loss": "robust", "label_smoothing": 0.2}, math.log(2)),
        ({"loss": "cdpo", "label_smoothing": 0.2}, math.log(2)),
        ({"loss": "apo_zero"}, 1.0),
        ({"loss": "apo_down"}, 1.0),
        ({"loss": "sigmoid_norm"}, math.log(2)),
        ({"loss": "sigmoid", "sft_weight": 0.5}, None),
    ],
)
def test_each_loss_starts_where_theory_says_and_measures_held_out_rows_as_trl_does(
    lab: Any, settings: dict[str, Any], first: float | None
) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(12))
    summary = execute(STAGE, lab.dpo_request(checkpoint, manifest, **settings), lab.store).summary
    if first is None:
        assert summary["first_loss"] > math.log(2) + 0.5
        assert summary["agreement"]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    else:
        assert summary["first_loss"] == pytest.approx(first, abs=1e-4)


def test_chat_rows_and_another_seed_train_too_and_shard_order_is_not_in_the_result(lab: Any, template: str) -> None:
    checkpoint = lab.checkpoint(template=template)
    rows = lab.rows(8, chat=True)
    one, other = lab.manifest(checkpoint, rows), lab.manifest(checkpoint, rows[::-1])
    digests = {execute(STAGE, lab.dpo_request(checkpoint, manifest), lab.store).digest for manifest in (one, other)}
    assert len(digests) == 1


def test_a_step_takes_exactly_its_rows_whatever_the_micro_batch(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(15))
    made = [
        execute(STAGE, lab.dpo_request(checkpoint, manifest, batch_size=6, micro_batch_size=micro), lab.store)
        for micro in (4, 1)
    ]
    assert made[0].key == made[1].key
    assert (made[0].summary["steps"], made[0].summary["rows_per_rank"]) == (3, [15])
    with pytest.raises(BadInput, match="made for 2 processes but 1"):
        execute(STAGE, lab.dpo_request(checkpoint, manifest, world_size=2, seed=4), lab.store)


def test_a_run_of_one_step_trains_at_its_learning_rate(lab: Any) -> None:
    """A warm-up starts at rate 0, and one step of it would end as the checkpoint that it began with."""
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(3))
    summary = execute(STAGE, lab.dpo_request(checkpoint, manifest, batch_size=8, warmup_ratio=0.1), lab.store).summary
    assert (summary["steps"], summary["history"][0]["learning_rate"]) == (1, 1e-3)
    assert summary["weights_digest"] != lab.store.commit_of(checkpoint).summary["weights_digest"]
