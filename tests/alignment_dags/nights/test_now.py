"""`align night`: what it refuses before anything runs. The example `a_night` carries whole nights out with it."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import typer
import yaml
from dagster._daemon.types import DaemonHeartbeat
from filelock import FileLock

from alignment.errors import BadInput
from alignment_dags.cli.run import night
from alignment_dags.nights import now as module
from alignment_dags.nights.night import Night, Outcome
from alignment_dags.nights.now import hold_night
from alignment_dags.nights.records import NightBook
from alignment_dags.nights.tick import Ticked, whose_turn
from alignment_dags.recipes import recipe_names
from alignment_dags.run.upgrade import ACCEPT
from alignment_dags.run.workspace import Workspace
from resources.home import align_home, ensure_home
from resources.store import ArtifactStore


def write(path: Path, **more: Any) -> Path:
    micro = {"embedded": "micro"}
    pairs = path.with_name("pairs.jsonl")
    pairs.write_text(json.dumps({"prompt": "p", "chosen": "yes", "rejected": "no"}) + "\n")
    data = {"name": "small", "base_model": micro, "sft": {"dataset": micro}, "preferences": {"files": [str(pairs)]}}
    path.write_text(yaml.safe_dump(data | more), encoding="utf-8")
    return path


def nights() -> list[str]:
    return [night.outcome for night in NightBook(ArtifactStore().open(), "small").latest()]


def test_a_recipe_without_a_schedule_has_no_nights(home: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "small.yaml")
    with pytest.raises(BadInput, match=rf"field 'schedule': has no schedule, so no nights; `align run {path}`"):
        hold_night(path, print)


def test_a_running_daemon_carries_the_nights_out_itself(home: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "small.yaml", schedule={"cron": "0 2 * * *"})
    ensure_home()
    with dg.DagsterInstance.get() as instance:
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SENSOR", "id", []))
    with pytest.raises(BadInput, match="Dagster's daemon is running, and carries out the nights by itself"):
        hold_night(path, print)
    assert nights() == []


def test_a_night_that_waits_for_an_acceptance_stays_open_and_says_so(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "small.yaml", schedule={"cron": "0 2 * * *"})
    monkeypatch.setattr(module, "tick", lambda *_: Ticked(f"waits for {ACCEPT}: this version makes anew it all"))
    said: list[str] = []
    with pytest.raises(BadInput, match=r"small\.yaml: the night waits for `align upgrade --accept`"):
        hold_night(path, said.append)
    assert nights() == ["waiting"] and [line.startswith("waits for") for line in said] == [True]
    assert recipe_names()["small"].resolve() == path.resolve(), "commands find it by its name from now on"


def test_tonight_is_held_whatever_nights_were_left_and_one_that_had_begun_first(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "small.yaml", schedule={"cron": "0 2 * * *"})
    ensure_home()
    book, yesterday = NightBook(ArtifactStore().open(), "small"), datetime.now(UTC) - timedelta(hours=20)

    def left(hours: int, outcome: Outcome) -> str:
        at = yesterday - timedelta(hours=hours)
        night = Night(recipe="small", scheduled_at=at, recorded_at=at, deadline_minutes=120, outcome=outcome)
        book.add(night)
        return night.id

    def skipped(_: object, workspace: Workspace, now: datetime, __: object) -> Ticked:
        night = whose_turn(book, workspace.recipe, now)
        assert night is not None
        book.write(night.closed("skipped", "nothing changed", now))
        return Ticked(f"{night.told}: skipped")

    begun, waiting = left(24, "running"), left(0, "waiting")
    monkeypatch.setattr(module, "tick", skipped)
    said: list[str] = []
    held = hold_night(path, said.append)
    assert [night.outcome for night in book.latest()] == ["skipped", "missed", "skipped"]
    assert len(held) == 2 and begun in held and waiting not in held
    assert said[0].endswith("was interrupted, and is carried out first") and len(said) == 3


def test_two_commands_do_not_carry_out_the_same_nights(home: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "small.yaml", schedule={"cron": "0 2 * * *"})
    ensure_home()
    with (
        FileLock(align_home() / "night-small.lock"),
        pytest.raises(BadInput, match="another `align night` carries out the nights of small"),
    ):
        hold_night(path, print)
    assert nights() == []


@pytest.mark.parametrize(
    ("outcome", "code"), [("passed", 0), ("skipped", 0), ("slept", 0), ("gated", 1), ("failed", 1), ("missed", 1)]
)
def test_a_night_that_sleeps_or_has_nothing_to_do_is_no_failure(
    outcome: str, code: int, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "hold_night", lambda *_: {"a"})
    monkeypatch.setattr(
        "alignment_dags.nights.records.latest_nights",
        lambda *_: {"recipe": "small", "nights": [{"id": "a", "outcome": outcome}]},
    )
    path = write(tmp_path / "small.yaml", schedule={"cron": "0 2 * * *"})
    with pytest.raises(typer.Exit) if code else nullcontext() as ended:
        night(path, as_json=True)
    assert ended is None or ended.value.exit_code == code
