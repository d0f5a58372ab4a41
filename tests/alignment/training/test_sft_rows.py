"""SFT rows in the steps of preference training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment.data.rows import read_sft_rows, sft_row, write_sft_rows
from alignment.data.tokens import Tokenization
from alignment.errors import BadInput
from alignment.recipe import TokenPolicy
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.training.arguments import training_order
from alignment.training.sft_rows import rows_of_step
from tests.alignment.training.conftest import interrupted_at
from tests.alignment.training.test_processes import assert_same_losses
from tests.alignment.training.two_processes import TwoProcesses


def expected_step(lab: Any, checkpoint: Any, manifest: Any, dataset: Any) -> tuple[float, float, dict[str, Any]]:
    """One step of 4 pairs and 2 SFT rows by plain passes, each row alone: (loss of all, mean NLL of the SFT rows,
    gradient by parameter)."""
    import torch

    from alignment.data.manifest import read_manifest
    from alignment.data.rows import read_rows
    from alignment.models.checkpoint import load_model, load_tokenizer

    folder = lab.store.fetch(checkpoint)
    policy, reference = load_model(folder, "float32"), load_model(folder, "float32")
    tokens = Tokenization(load_tokenizer(folder), TokenPolicy(max_length=64))
    shard = read_manifest(lab.store.fetch(manifest)).shards[0].shard
    pairs = [tokens.pair(row) for row in read_rows(lab.store.fetch(shard) / "rows.parquet")]
    demonstrations = {row.row_id: row for row in read_sft_rows(lab.store.fetch(dataset) / "train.parquet")}
    ids = list(demonstrations)
    order = training_order(ids, f"{manifest.digest} sft", 3, 1.0)[:2]
    shown = [
        tokens.completion(row.form, row.prompt, row.completion) for row in (demonstrations[ids[at]] for at in order)
    ]

    def logp(model: Any, sequence: Any) -> Any:
        row = torch.tensor([[*sequence.prompt_ids, *sequence.completion_ids]])
        scores = model(input_ids=row).logits[0, :-1].log_softmax(-1)
        return scores.gather(1, row[0, 1:, None])[len(sequence.prompt_ids) - 1 :].sum()

    nll = sum(-logp(policy, sequence) / len(sequence.completion_ids) for sequence in shown)
    loss = nll / 4
    for chosen, rejected in pairs:
        with torch.no_grad():
            behind = logp(reference, chosen) - logp(reference, rejected)
        margin = logp(policy, chosen) - logp(policy, rejected) - behind
        loss = loss - torch.nn.functional.logsigmoid(0.1 * margin) / 4
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1e9)
    return float(loss), float(nll) / 2, {"grad_norm": float(norm)}


def test_a_step_is_its_pairs_and_the_rows_beside_them_each_of_the_same_weight(lab: Any) -> None:
    checkpoint, dataset = lab.checkpoint(), lab.sft_dataset(6)
    manifest = lab.manifest(checkpoint, lab.rows(4))
    request = lab.dpo_request(checkpoint, manifest, sft_rows_fraction=0.5, sft_dataset=dataset, max_grad_norm=1e9)
    summary = execute(STAGE, request, lab.store).summary
    loss, nll, gradient = expected_step(lab, checkpoint, manifest, dataset)
    (first,) = summary["history"]
    assert first["loss"] == pytest.approx(loss, abs=2e-5)
    assert first["sft_loss"] == pytest.approx(nll, abs=2e-5)
    assert first["grad_norm"] == pytest.approx(gradient["grad_norm"], rel=1e-4)
    assert (summary["rows_trained"], summary["rows_per_rank"], summary["sft_rows"]) == (4, [4], 6)


def test_rows_beside_keep_what_sft_taught(lab: Any) -> None:
    checkpoint, dataset = lab.checkpoint(kind="qwen2"), lab.sft_dataset(16)
    manifest = lab.manifest(checkpoint, lab.rows(32))
    given = {"learning_rate": 3e-3, "epochs": 4, "sft_rows_fraction": 0.5, "sft_dataset": dataset}
    history = execute(STAGE, lab.dpo_request(checkpoint, manifest, **given), lab.store).summary["history"]
    losses = [record["sft_loss"] for record in history]
    assert sum(losses[-4:]) < sum(losses[:4]) - 1


def test_a_run_that_one_process_began_shows_the_same_rows_when_two_go_on_with_it(
    lab: Any, tmp_path: Path, two_processes: TwoProcesses
) -> None:
    checkpoint, dataset = lab.checkpoint(), lab.sft_dataset(5)
    manifest = lab.manifest(checkpoint, lab.rows(19))
    given = {"epochs": 2.0, "save_steps": 2, "batch_size": 8, "sft_rows_fraction": 0.3, "sft_dataset": dataset}
    one, two = (lab.dpo_request(checkpoint, manifest, world_size=size, **given) for size in (1, 2))
    assert STAGE.key(one) == STAGE.key(two)
    undisturbed = execute(STAGE, one, lab.twin(tmp_path / "undisturbed"))
    with interrupted_at(3):
        execute(STAGE, one, lab.store)
    resumed = two_processes.execute(STAGE, two, lab.store)
    assert resumed.summary["resumed_from_step"] == 2
    assert_same_losses(resumed, undisturbed)
    ours, theirs = ([record["sft_loss"] for record in each.summary["history"]] for each in (resumed, undisturbed))
    assert ours == pytest.approx(theirs, abs=2e-3)
    assert len(set(theirs)) > 3, "the steps show different rows"


@pytest.mark.parametrize(("rows", "fraction", "beside"), [(32, 0.05, 2), (128, 0.1, 13), (4, 0.05, 1), (3, 1.0, 3)])
def test_a_step_has_a_fraction_of_its_rows_beside_it_and_one_at_least(rows: int, fraction: float, beside: int) -> None:
    assert rows_of_step(rows, fraction) == beside


def test_a_run_without_has_the_key_of_earlier_versions_and_one_with_takes_its_data_set(lab: Any) -> None:
    checkpoint, dataset = lab.checkpoint(), lab.sft_dataset(4)
    manifest = lab.manifest(checkpoint, lab.rows(4))
    plain = lab.dpo_request(checkpoint, manifest).identity()
    assert "sft_dataset" not in plain and "sft_rows_fraction" not in plain["settings"]
    with pytest.raises(ValueError, match="go together"):
        lab.dpo_request(checkpoint, manifest, sft_rows_fraction=0.1)
    with pytest.raises(ValueError, match="go together"):
        lab.dpo_request(checkpoint, manifest, sft_dataset=dataset)


def test_demonstrations_that_are_all_too_long_are_bad_input(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(4))
    long = [sft_row(f"p{number}", "a" * 80, "demos.jsonl", number) for number in range(4)]
    dataset = lab.publish("sft_dataset", "long", {}, lambda out: write_sft_rows(out / "train.parquet", long))
    request = lab.dpo_request(checkpoint, manifest, sft_rows_fraction=0.5, sft_dataset=dataset)
    with pytest.raises(BadInput, match=r"no row of sft.dataset left after the token policy \(too long: 4\)"):
        execute(STAGE, request, lab.store)
