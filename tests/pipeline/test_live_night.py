"""A live Dagster through several nights: trained, changed, skipped, and with its daemon and a worker killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from alignment.recipe import Recipe, load_recipe
from alignment_dags.nights.night import TAG, Night
from alignment_dags.nights.records import NightBook
from alignment_dags.run.workers import PROCESS, is_alive, pid_of
from assets.building.factory import asset_key
from assets.building.upstream import Upstream
from resources.store import ArtifactStore

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]

LONG = 1800.0  # seconds that a night may take, on a machine with many times more to do than it can


class Team:
    """A folder of pairs as a team keeps it, and what its nights have made of it."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder
        folder.mkdir()

    def write(self, shard: str, **third: str) -> None:
        """A file of twelve pairs, the third with the given fields."""
        rows = [{"prompt": f"{shard} {n}", "chosen": f"It is {n}.", "rejected": "No."} for n in range(12)]
        rows[2] |= third
        partial = self.folder / f"{shard}.tmp"
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        partial.rename(self.folder / f"{shard}.jsonl")

    def nights(self, outcome: str) -> list[Night]:
        """Nights with the outcome, the latest first."""
        book = NightBook(ArtifactStore().open(), self.recipe.name)
        return [night for night in book.latest() if night.outcome == outcome]

    def champion(self) -> str | None:
        store = ArtifactStore().open()
        registered = Upstream(store, self.recipe.name).get("registered_model")
        return None if registered is None else str(store.commit_of(registered).summary["version"])


@pytest.fixture
def team(tmp_path: Path, small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Team:
    folder, path = tmp_path / "source", tmp_path / "recipe.yaml"
    settings = small_recipe | {
        "dpo": small_recipe["dpo"] | {"save_steps": 1},
        "preferences": {"files": [str(folder)], "settle_seconds": 0, "watch_seconds": 1},
        "gate": {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}},
        "schedule": {"cron": "* * * * *"},
    }
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    monkeypatch.setenv("ALIGN_RECIPES", str(path))
    return Team(load_recipe(path), folder)


def test_nights_train_what_changed_and_outlive_a_killed_daemon_and_a_killed_worker(
    live: Any, team: Team, hold: Path
) -> None:
    instance: dg.DagsterInstance = live.instance

    def finished(version: str) -> Night | None:
        """The night that registered the version; fails at once when a night fails instead."""
        failed = team.nights("failed")
        assert not failed, f"{failed[0].reason}\n{live.runs()}"
        return next((night for night in team.nights("passed") if night.version == version), None)

    team.write("day-0")
    team.write("day-1")
    live.start()
    first = live.wait_for("the first night", lambda: finished("1"), LONG)
    assert first.left_out == {}
    assert team.champion() == "1"
    skipped = live.wait_for("a night without a change", lambda: team.nights("skipped"), LONG)
    assert "nothing changed" in skipped[0].reason
    assert skipped[0].runs == []

    team.write("day-1", chosen="Another answer.", rejected="Another one.")
    second = live.wait_for("the night after a change", lambda: finished("2"), LONG)
    assert second.manifest != first.manifest
    told = live.materializations(asset_key(team.recipe.name, "reference_logprobs"), "day-1")
    scored = [one["scored"] for one in told if not one["reused"]]  # who asks a moment later finds it made
    assert scored == [2, 24], "one pair was scored again"
    assert second.costs is not None
    assert second.costs.suites_run == 1, "the SFT baseline is scored once"

    def training() -> dg.DagsterRun | None:
        """The third night's run, while the policy is trained."""
        for run in instance.get_runs(dg.RunsFilter(job_name="small_train", statuses=[dg.DagsterRunStatus.STARTED])):
            begun = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_START)
            if run.tags[TAG].split("/")[1] > second.id and "small__policy_checkpoint" in {e.step_key for e in begun}:
                return run
        return None

    hold.touch()
    team.write("day-0", chosen="A third answer.")
    run = live.wait_for("the third night's training", training, LONG)
    live.processes.pop("daemon").kill()
    assert is_alive(run.tags[PROCESS]), "a run goes on without its daemon"
    os.kill(pid_of(run.tags[PROCESS]), signal.SIGKILL)
    live.start_daemon()

    def ended() -> bool:
        now = instance.get_run_by_id(run.run_id)
        return now is not None and now.status == dg.DagsterRunStatus.FAILURE

    live.wait_for("the end of the run whose worker was killed", ended, LONG)
    hold.unlink()
    third = live.wait_for("the night it was part of", lambda: finished("3"), LONG)
    assert run.run_id not in third.runs
    assert len(third.runs) == 2, "the manifest's, and the retry of the training that was killed"

    def slots() -> int:
        return len(instance.event_log_storage.get_concurrency_info("local").claimed_slots)

    live.wait_for("free slots", lambda: slots() == 0)
    live.wait_for("the night after", lambda: team.nights("skipped")[0].scheduled_at > third.scheduled_at, LONG)
    assert team.champion() == "3"
