"""Interrupted runs: killed without warning, they go on and end where an undisturbed run ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignment.data.validate import halves
from alignment.methods import METHODS
from alignment.stages import execute
from alignment.store import Store
from alignment.training import resume

KILLED = """
import os, signal, sys
from pathlib import Path
from alignment.store import Store
from alignment.stages import execute
from alignment.stages.__main__ import load_stage
from alignment.training import resume

stage, request, store, step = sys.argv[1:]
whole = resume.mark_complete

def die_at(checkpoint):
    if resume.step_of(checkpoint) >= int(step):
        os.kill(os.getpid(), signal.SIGKILL)
    whole(checkpoint)

resume.mark_complete = die_at
stage = load_stage(stage)
execute(stage, stage.request.model_validate_json(Path(request).read_text()), Store(store))
"""


def killed_while_saving(stage: str, request: Any, store: Store, step: int, folder: Path) -> None:
    """Runs a stage in a process of its own that SIGKILLs itself with the checkpoint of `step` half written."""
    path = folder / "request.json"
    path.write_text(request.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-c", KILLED, stage, str(path), store.url, str(step)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_policy_killed_in_mid_training_ends_at_the_same_weights(lab: Any, tmp_path: Path, precision: str) -> None:
    from alignment.stages.policy_checkpoint import STAGE

    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(40), precision=precision, held_out_fraction=0.1)
    lora = {"rank": 2, "dropout": 0.2} if precision == "float32" else None
    request = lab.dpo_request(
        checkpoint, manifest, precision=precision, micro_batch_size=2, save_steps=3, lora=lora, epochs=1.5
    )
    killed_while_saving("policy_checkpoint", request, lab.store, 9, tmp_path)
    work = lab.store.work_path(STAGE.kind, STAGE.key(request)) / "trainer"
    whole = resume.last_complete(work)
    assert whole is not None and resume.step_of(whole) == 6
    assert {path.suffix for path in whole.iterdir()} == {".json", ".safetensors"}, "nothing is pickled"
    assert (work / "checkpoint-9").exists()

    resumed = execute(STAGE, request, lab.store)
    for name in ("model", "optimizer"):
        assert not list(work.glob(f"**/{name}*"))  # the work folder is cleared after the commit
    undisturbed = execute(STAGE, request, lab.twin(tmp_path / "other"))
    assert resumed.summary["resumed_from_step"] == 6 and undisturbed.summary["resumed_from_step"] is None
    assert resumed.summary["rows_per_rank"] < undisturbed.summary["rows_per_rank"]
    assert resumed.digest == undisturbed.digest
    assert resumed.summary["held_out"] == undisturbed.summary["held_out"]
    assert resumed.summary["steps"] == undisturbed.summary["steps"] > 9


def test_kto_killed_in_mid_training_ends_at_the_same_weights(lab: Any, tmp_path: Path) -> None:
    """The divergence that couples a step's rows is that of the policy at that step, before and after."""
    from alignment.stages.policy_checkpoint import STAGE

    checkpoint = lab.checkpoint()
    rows = [half for row in lab.rows(20) for half in halves(row)]
    manifest = lab.scored_manifest(checkpoint, rows, METHODS["kto"], held_out_fraction=0.1)
    request = lab.dpo_request(checkpoint, manifest, loss="kto", save_steps=3, epochs=1.5, learning_rate=5e-3)
    killed_while_saving("policy_checkpoint", request, lab.store, 9, tmp_path)
    resumed = execute(STAGE, request, lab.store)
    undisturbed = execute(STAGE, request, lab.twin(tmp_path / "other"))
    assert resumed.summary["resumed_from_step"] == 6 and undisturbed.summary["resumed_from_step"] is None
    assert resumed.digest == undisturbed.digest
    assert resumed.summary["held_out"] == undisturbed.summary["held_out"]
    assert max(record["kl"] for record in undisturbed.summary["history"]) > 0
    assert undisturbed.summary["first_loss"] == pytest.approx(0.5, abs=1e-6)


def test_fine_tuning_killed_in_mid_training_keeps_the_same_best_weights(lab: Any, tmp_path: Path) -> None:
    from alignment.stages.sft_checkpoint import STAGE

    base, dataset = lab.checkpoint(), lab.sft_dataset(24, held_out=8)
    request = lab.sft_request(
        base, dataset, epochs=8, eval_steps=2, save_steps=4, patience=3, precision="bfloat16", learning_rate=3e-2
    )
    killed_while_saving("sft_checkpoint", request, lab.store, 8, tmp_path)
    resumed = execute(STAGE, request, lab.store)
    undisturbed = execute(STAGE, request, lab.twin(tmp_path / "other"))
    assert resumed.summary["resumed_from_step"] == 4
    assert resumed.summary["stopped_early"] and undisturbed.summary["stopped_early"]
    assert resumed.summary["best_step"] == undisturbed.summary["best_step"] < undisturbed.summary["steps"]
    assert resumed.digest == undisturbed.digest


def write_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "weights").write_bytes(b"x" * step)
    (checkpoint / resume.TRAINING_FILE).write_text("{}", encoding="utf-8")
    return checkpoint


def test_only_checkpoints_written_to_their_end_are_resumed_from(tmp_path: Path) -> None:
    assert resume.last_complete(tmp_path / "nothing") is None
    first, second, third = (write_checkpoint(tmp_path, step) for step in (9, 10, 11))
    assert resume.last_complete(tmp_path) is None
    resume.mark_complete(first)
    resume.mark_complete(second)
    assert resume.last_complete(tmp_path) == second
    (second / "weights").write_bytes(b"cut")
    assert resume.last_complete(tmp_path) == first
    resume.mark_complete(third)
    resume.keep_only(third)
    assert resume.checkpoints(tmp_path) == [third]
    resume.unmark(third)
    assert resume.last_complete(tmp_path) is None


def test_what_an_earlier_version_pickled_is_not_read_and_said_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, older = (write_checkpoint(tmp_path, step) for step in (6, 4))
    (old / resume.TRAINING_FILE).rename(old / "optimizer.pt")
    for each in (old, older):
        resume.mark_complete(each)
    assert resume.last_complete(tmp_path) == older
    (message,) = caplog.messages
    assert "checkpoint-6: an earlier version pickled it" in message


def test_what_diverged_under_an_older_version_is_not_resumed_from(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    for step, value in ((3, 1.0), (6, float("nan"))):
        folder = write_checkpoint(tmp_path, step)
        save_file({"weight": torch.full((2, 2), value, dtype=torch.bfloat16)}, folder / "adapter_model.safetensors")
        resume.mark_complete(folder)
    whole = resume.last_complete(tmp_path)
    assert whole is not None and resume.step_of(whole) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "kto", "sft_rows_fraction": 0.25, "lora": {"rank": 2, "dropout": 0.2, "keep_adapter": True}},
        {"loss": "ld_dpo", "max_steps": 7, "keep_steps": 3, "stop": {"eval_steps": 2, "kl": 1e6}},
        {"loss": "orpo", "keep_steps": 2, "precision": "bfloat16", "max_steps": 7},
    ],
    ids=lambda settings: settings["loss"],
)
def test_a_killed_policy_of_a_newer_method_ends_at_the_same_weights(
    lab: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    from alignment.data.validate import halves
    from alignment.methods import METHODS
    from alignment.recipe import TokenPolicy
    from alignment.stages.policy_checkpoint import STAGE

    checkpoint, method = lab.checkpoint(kind="qwen2"), METHODS[settings["loss"]]
    tokens = TokenPolicy(max_length=64, format_tokens="mask")
    rows = [half for row in lab.rows(20) for half in halves(row)] if method.coupled else lab.rows(40)
    if method.needs_reference:
        manifest = lab.scored_manifest(checkpoint, rows, method, held_out_fraction=0.2, tokens=tokens)
    else:
        manifest = lab.manifest(checkpoint, rows, held_out_fraction=0.2, referenced=False)
    beside = {"sft_dataset": lab.sft_dataset(5)} if "sft_rows_fraction" in settings else {}
    request = lab.dpo_request(checkpoint, manifest, tokens=tokens, save_steps=2, **settings, **beside)
    twin = lab.twin(tmp_path / "twin")
    killed_while_saving("policy_checkpoint", request, lab.store, 6, tmp_path)
    resumed, undisturbed = execute(STAGE, request, lab.store), execute(STAGE, request, twin)
    assert resumed.summary["resumed_from_step"] == 4
    assert resumed.digest == undisturbed.digest
    for name in ("steps", "kept_step", "stopped_by", "held_out", "adapter"):
        assert resumed.summary.get(name) == undisturbed.summary.get(name), name
    names = set(undisturbed.files) - {"request.json"}
    assert {name: resumed.files[name].sha256 for name in names} == {
        name: undisturbed.files[name].sha256 for name in names
    }
