"""Two runs that want one slot take turns, and one that is cancelled gives its slot and its GPU to the other."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from alignment import devices
from resources.store import ArtifactStore
from tests.pipeline.test_interruptions import Run, wait_for_checkpoint

pytestmark = pytest.mark.soak


def step_times(recipe: str) -> dict[str, float]:
    """When the training step of a recipe's latest run began and ended."""
    with dg.DagsterInstance.get() as instance:
        (run, *_) = [run for run in instance.get_runs() if run.tags.get("recipe") == recipe and "train" in run.job_name]
        return {
            entry.dagster_event.event_type_value: entry.timestamp
            for entry in instance.all_logs(run.run_id)
            if entry.dagster_event is not None and entry.step_key == f"{recipe}__policy_checkpoint"
        }


def test_a_cancelled_run_frees_its_slot_and_its_gpu_for_the_run_that_waits(
    small_recipe: dict[str, Any],
    tmp_path: Path,
    tables: None,
    align_command: list[str],
    hold: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pools = {"local": {"slots": 1}, "one_gpu": {"slots": 1, "gpus_per_slot": 1}}
    (tmp_path / "pools.yaml").write_text(yaml.safe_dump({"pools": pools}), encoding="utf-8")
    monkeypatch.setenv("ALIGN_POOLS", str(tmp_path / "pools.yaml"))
    monkeypatch.setenv(devices.GPUS, "GPU-a")
    monkeypatch.setenv(devices.LOCKS, str(tmp_path / "locks"))
    small_recipe["dpo"] |= {"epochs": 6, "save_steps": 10}
    paths = {}
    for name, seed in (("first", 1), ("second", 2)):
        recipe = small_recipe | {"name": name, "seed": seed, "pools": {"policy": "one_gpu"}}
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump(recipe), encoding="utf-8")

    hold.touch()
    first = Run(align_command, paths["first"])
    wait_for_checkpoint(first, ArtifactStore().open(), 10)
    assert devices._try_to_take(1, ["GPU-a"], devices._locks()) is None
    second = Run(align_command, paths["second"])
    second.wait_for("sft_responses done")  # all that needs no GPU of the pool
    os.killpg(first.process.pid, signal.SIGINT)
    assert first.end() == 130
    hold.unlink()
    assert second.end() == 0, "".join(second.lines)

    ended, began = step_times("first")["STEP_FAILURE"], step_times("second")["STEP_START"]
    assert ended <= began
    (gpus,) = [devices._try_to_take(1, ["GPU-a"], devices._locks())]
    assert gpus is not None
    gpus.release()
    with dg.DagsterInstance.get() as instance:
        assert instance.event_log_storage.get_concurrency_info("one_gpu").active_slot_count == 0
