"""A run that diverges ends at the step where it does, says so in one line, and leaves nothing bad to go on from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from alignment.errors import BadInput
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE as DPO
from alignment.stages.sft_checkpoint import STAGE as SFT
from alignment.training import resume
from alignment.training.preference_trainer import CachedReferenceTrainer
from alignment.training.sft_trainer import CompletionTrainer

if TYPE_CHECKING:
    from tests.alignment.training.conftest import Lab

ONE_LINE = re.compile(
    r"field 'learning_rate': training diverged: (the loss is nan|the gradient's norm is (nan|inf)) in step (\d+) of"
    r" (\d+); lower the learning rate \(1e\+30\); (.+)"
)


def stopped(stage: Any, request: Any, lab: Lab) -> re.Match[str]:
    with pytest.raises(BadInput) as refused:
        execute(stage, request, lab.store)
    found = ONE_LINE.fullmatch(str(refused.value))
    assert found, str(refused.value)
    return found


def requests(lab: Lab, precision: str = "float32", **how: Any) -> list[tuple[Any, Any]]:
    start = lab.checkpoint()
    settings = {"learning_rate": 1e30, "precision": precision, "warmup_ratio": 0.0, "epochs": 4.0, **how}
    manifest = lab.manifest(start, lab.rows(16), precision=precision)
    return [
        (SFT, lab.sft_request(start, lab.sft_dataset(16), **settings)),
        (DPO, lab.dpo_request(start, manifest, **settings)),
    ]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_first_step_that_is_not_finite_ends_fine_tuning_and_dpo(lab: Lab, precision: str) -> None:
    for stage, request in requests(lab, precision):
        found = stopped(stage, request, lab)
        assert int(found[3]) <= 4 < int(found[4]) == 16
        assert found[5] == "no trainer checkpoint was written before"
        assert lab.store.find(stage.kind, stage.key(request)) is None


def test_the_last_good_trainer_checkpoint_is_kept_and_a_retry_goes_on_from_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where a device failed in one step: the next try starts before that step and ends as if nothing had been."""
    start = lab.checkpoint()
    manifest = lab.manifest(start, lab.rows(16))
    for trainer, stage, request in (
        (
            CompletionTrainer,
            SFT,
            lab.sft_request(start, lab.sft_dataset(16), epochs=2.0, save_steps=2, learning_rate=1e-3),
        ),
        (CachedReferenceTrainer, DPO, lab.dpo_request(start, manifest, epochs=2.0, save_steps=2)),
    ):

        def failing(trainer: Any, model: Any, *args: Any, plain: Any = trainer.training_step, **kwargs: Any) -> Any:
            loss = plain(trainer, model, *args, **kwargs)
            if trainer.state.global_step == 4:
                next(weight for weight in model.parameters() if weight.grad is not None).grad[0] = float("nan")
            return loss

        with monkeypatch.context() as patch:
            patch.setattr(trainer, "training_step", failing)
            with pytest.raises(BadInput, match=r"norm is nan in step 5 of 8.*checkpoint-4 is kept, from before it"):
                execute(stage, request, lab.store)
        work = lab.store.work_path(stage.kind, stage.key(request)) / "trainer"
        assert [resume.step_of(one) for one in resume.checkpoints(work)] == [4]
        resumed = execute(stage, request, lab.store)
        assert resumed.summary["resumed_from_step"] == 4
        undisturbed = execute(stage, request, lab.twin(tmp_path / stage.name))
        assert resumed.digest == undisturbed.digest


def test_weights_that_one_step_made_infinite_are_not_written_as_a_trainer_checkpoint(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    plain = torch.optim.AdamW.step

    def overflowing(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        done = plain(optimizer, *args, **kwargs)
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].view(-1)[0] = float("inf")
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", overflowing)
    for stage, request in requests(lab, learning_rate=1e-4, save_steps=1):
        with pytest.raises(BadInput, match=r"training diverged by step 1: .* holds values that are not finite"):
            execute(stage, request, lab.store)
        work = lab.store.work_path(stage.kind, stage.key(request)) / "trainer"
        assert resume.last_complete(work) is None


def test_a_loss_that_is_not_finite_before_any_update_is_not_blamed_on_the_learning_rate(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = CompletionTrainer.compute_loss
    monkeypatch.setattr(CompletionTrainer, "compute_loss", lambda *a, **k: plain(*a, **k) * float("nan"))
    with pytest.raises(BadInput, match="the loss is nan in step 1, before any weight changed") as refused:
        execute(SFT, lab.sft_request(lab.checkpoint(), lab.sft_dataset(8)), lab.store)
    assert refused.value.field is None


def test_what_is_measured_on_held_out_rows_is_finite_or_ends_the_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step can go wrong too, and no step comes after it that would show."""
    import torch

    base, dataset = lab.checkpoint(), lab.sft_dataset(8, held_out=4)
    manifest = lab.manifest(base, lab.rows(24), held_out_fraction=0.3)
    plain = torch.optim.AdamW.step

    def exploding(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        done = plain(optimizer, *args, **kwargs)
        with torch.no_grad():
            for group in optimizer.param_groups:
                for norm in (weight for weight in group["params"] if weight.ndim == 1):
                    norm.fill_(3e38)
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", exploding)
    with pytest.raises(BadInput, match=r"training diverged: the held-out loss is nan after step 1"):
        execute(SFT, lab.sft_request(base, dataset, batch_size=8), lab.store)
    with pytest.raises(BadInput, match=r"training diverged: the policy's log-prob of held-out row \w+ \(.*\) is nan"):
        execute(DPO, lab.dpo_request(base, manifest, batch_size=32), lab.store)
