"""Killed in the middle of DPO, once the step and once everything: the next run goes on and ends at the same weights.
Stopped with Ctrl-C or SIGTERM at any moment: one line says so."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
import yaml

from alignment.recipe import Recipe, load_recipe
from alignment.store import Store
from alignment.training.resume import MARKER
from assets.building.upstream import Upstream
from resources.mlflow import Tracking
from resources.store import ArtifactStore

pytestmark = pytest.mark.soak

EPOCHS = 15
SAVE_STEPS = 20


class Run:
    """`align run` in a process group of its own; its progress lines can be waited for."""

    def __init__(self, align: list[str], recipe: Path) -> None:
        self.process = subprocess.Popen(
            [*align, "run", str(recipe), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, pattern: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self.said(pattern))
        assert self.said(pattern), "".join(self.lines)

    def said(self, pattern: str) -> bool:
        return any(re.search(pattern, line) for line in self.lines)

    def end(self) -> int:
        code = self.process.wait()
        self._reader.join()
        return code


def training_process() -> int:
    """Process id of the newest step that trains, as Dagster recorded it."""
    with dg.DagsterInstance.get() as instance:
        pids = [
            entry.dagster_event.engine_event_data.metadata["pid"].value
            for run in reversed(instance.get_runs())
            for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_WORKER_STARTED)
            if entry.dagster_event and entry.step_key == "small__policy_checkpoint"
        ]
    return int(str(pids[-1]))


def wait_for_checkpoint(run: Run, store: Store, step: int) -> None:
    """Returns once the training has saved the step's checkpoint, at which it is held."""
    work = Path(store.path("work", "policy_checkpoint"))
    while not list(work.glob(f"*/trainer/checkpoint-{step}/{MARKER}")):
        assert run.process.poll() is None, "".join(run.lines)
        time.sleep(0.02)


def policy(store: Store) -> dict[str, Any]:
    (made,) = store.commits("policy_checkpoint")
    return made.summary


def test_a_killed_training_goes_on_and_ends_at_the_weights_of_an_undisturbed_one(
    small_recipe: dict[str, Any],
    tmp_path: Path,
    bring_up_to_date: Callable[[Recipe], Upstream],
    monkeypatch: Any,
    align_command: list[str],
    hold: Path,
) -> None:
    small_recipe["dpo"] |= {"epochs": EPOCHS, "save_steps": SAVE_STEPS}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe), encoding="utf-8")
    undisturbed = policy(bring_up_to_date(load_recipe(path)).store)

    for place in ("ALIGN_HOME", "DAGSTER_HOME", "ALIGN_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(place, raising=False)
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "killed" / "align"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "killed" / "dagster"))
    store = ArtifactStore().open()

    hold.touch()
    step_killed = Run(align_command, path)
    wait_for_checkpoint(step_killed, store, SAVE_STEPS)
    os.kill(training_process(), signal.SIGKILL)
    assert step_killed.end() == 1
    assert list(store.commits("policy_checkpoint")) == []

    all_killed = Run(align_command, path)
    all_killed.wait_for(rf"policy_checkpoint: resuming from step {SAVE_STEPS}\b")
    wait_for_checkpoint(all_killed, store, 2 * SAVE_STEPS)
    os.killpg(all_killed.process.pid, signal.SIGKILL)
    all_killed.end()
    assert list(store.commits("policy_checkpoint")) == []

    hold.unlink()
    last = Run(align_command, path)
    assert last.end() == 0, "".join(last.lines)
    assert last.said("ended run")
    resumed = policy(store)
    assert resumed["resumed_from_step"] == 2 * SAVE_STEPS
    assert resumed["steps"] == undisturbed["steps"] > 3 * SAVE_STEPS
    assert resumed["weights_digest"] == undisturbed["weights_digest"]

    with dg.DagsterInstance.get() as instance:
        unfinished = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
        assert instance.get_runs(unfinished) == []
        assert instance.event_log_storage.get_concurrency_info("local").active_slot_count == 0
    client = Tracking().client()
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`align.stage` = 'policy_checkpoint'")
    assert [run.info.status for run in runs] == ["FINISHED"]


def test_ctrl_c_says_at_which_step_it_stopped_and_the_next_run_goes_on_there(
    small_recipe: dict[str, Any], tmp_path: Path, tables: None, align_command: list[str], hold: Path
) -> None:
    small_recipe["dpo"] |= {"epochs": EPOCHS, "save_steps": SAVE_STEPS}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe), encoding="utf-8")
    store = ArtifactStore().open()

    hold.touch()
    stopped = Run(align_command, path)
    wait_for_checkpoint(stopped, store, SAVE_STEPS)
    stopped.wait_for(r"policy_checkpoint: step \d+/\d+")
    os.killpg(stopped.process.pid, signal.SIGINT)  # as a terminal does
    assert stopped.process.stdout is not None
    told = json.loads(stopped.process.stdout.read())
    assert stopped.end() == 130
    assert re.fullmatch(r"stopped at step \d+ of \d+ of policy_checkpoint; run it again to go on", told["stopped"])
    assert told["failure"] is None and told["registered"] is None
    assert not stopped.said("DagsterExecutionInterruptedError") and not stopped.said("FAILED")

    hold.unlink()
    again = Run(align_command, path)
    assert again.end() == 0, "".join(again.lines)
    assert again.said(rf"policy_checkpoint: resuming from step {SAVE_STEPS}\b")


# Moments of a run at which a signal comes, from its first imports to its second phase.


def _is_mapped(pid: int, library: str) -> bool:
    return library in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


def _server(run: Run) -> psutil.Process | None:
    """The server that step processes are forked from."""
    for child in psutil.Process(run.process.pid).children():
        with contextlib.suppress(psutil.Error):  # a child that ends meanwhile
            if any("forkserver" in word for word in child.cmdline()):
                return child
    return None


def _catches(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)  # type: ignore[index]
    return bool(caught >> (number - 1) & 1)


def _is_recorded(kind: dg.DagsterEventType) -> bool:
    with dg.DagsterInstance.get() as instance:
        return any(list(instance.all_logs(run.run_id, of_type=kind)) for run in instance.get_runs())


MOMENTS: dict[str, Callable[[Run], bool]] = {
    "the first handler": lambda run: _catches(run.process.pid, signal.SIGTERM),
    "the imports of Dagster": lambda run: _is_mapped(run.process.pid, "/sqlalchemy/"),
    "a run that is recorded": lambda run: _is_recorded(dg.DagsterEventType.RUN_START),
    "a server that starts": lambda run: _server(run) is not None,
    "a server that imports": lambda run: (
        (server := _server(run)) is not None and _is_mapped(server.pid, "libtorch_cpu")
    ),
    "a step that is starting": lambda run: _is_recorded(dg.DagsterEventType.STEP_WORKER_STARTING),
    "a step's process": lambda run: _is_recorded(dg.DagsterEventType.STEP_WORKER_STARTED),
    "a step that is done": lambda run: run.said(" done in "),
}


def _interrupt(run: Run, number: int) -> None:
    """SIGINT to every process of the group, as a terminal does; SIGTERM to the command alone, as services do."""
    (os.killpg if number == signal.SIGINT else os.kill)(run.process.pid, number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_stopped_at_any_moment_says_so_in_one_line(
    moment: str, number: int, small_recipe: dict[str, Any], tmp_path: Path, tables: None, align_command: list[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe), encoding="utf-8")
    run = Run(align_command, path)
    while not MOMENTS[moment](run):
        assert run.process.poll() is None, "".join(run.lines)
        time.sleep(0.01)
    _interrupt(run, number)
    assert run.process.stdout is not None
    printed = run.process.stdout.read()
    assert run.end() == 130, "".join(run.lines)

    told = [json.loads(printed)["stopped"]] if printed else []
    told += [line.strip() for line in run.lines if "stopped" in line]
    assert told == ["stopped; run it again to go on"]
    progress = re.compile(r"  \w+ · \S+ (…|done in [\d.]+ s)|    \S+: .*|stopped; run it again to go on")
    assert [line for line in run.lines if not progress.fullmatch(line.rstrip("\n"))] == []
    with dg.DagsterInstance.get() as instance:
        assert all(run.is_finished for run in instance.get_runs())
        assert instance.event_log_storage.get_concurrency_info("local").active_slot_count == 0
