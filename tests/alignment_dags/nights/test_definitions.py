"""The schedule records and the sensor launches; time zones and clock changes are the schedule's."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._utils.schedules import schedule_execution_time_iterator

from alignment.errors import BadInput
from alignment.recipe import Recipe, parse_recipe
from alignment_dags.definitions import build_definitions
from alignment_dags.nights.definitions import read_cursor, schedule_name, sensor_name
from alignment_dags.nights.records import NightBook
from resources.home import PROJECT, ensure_home
from resources.store import ArtifactStore

SETTINGS: dict[str, Any] = {
    "name": "small",
    "base_model": {"embedded": "micro"},
    "sft": {"dataset": {"embedded": "micro"}},
    "preferences": {"embedded": "micro"},
    "schedule": {"cron": "30 2 * * *", "timezone": "Europe/Berlin", "deadline_minutes": 45, "max_hours": 6},
}


def recipe(**changes: Any) -> Recipe:
    return parse_recipe(SETTINGS | changes, "-", {})


def due(definitions: dg.Definitions, at: datetime, instance: dg.DagsterInstance) -> str | None:
    schedule = definitions.get_repository_def().get_schedule_def(schedule_name("small"))
    context = dg.build_schedule_context(instance=instance, scheduled_execution_time=at)
    return schedule.evaluate_tick(context).skip_message


def test_a_recipe_without_a_schedule_has_no_night() -> None:
    repository = build_definitions([recipe(schedule=None)]).get_repository_def()
    assert repository.schedule_defs == []
    assert not repository.has_sensor_def(sensor_name("small"))


def test_schedule_and_sensor_run_by_default_on_the_recipes_clock() -> None:
    repository = build_definitions([recipe()]).get_repository_def()
    schedule = repository.get_schedule_def(schedule_name("small"))
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("30 2 * * *", "Europe/Berlin")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    assert repository.get_sensor_def(sensor_name("small")).default_status == dg.DefaultSensorStatus.RUNNING


def test_every_day_has_one_night_when_clocks_change(home: Path) -> None:
    ensure_home()
    definitions = build_definitions([recipe()])
    with dg.instance_for_test() as instance:
        for start in (datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 10, 24, tzinfo=UTC)):  # the nights around both
            ticks = schedule_execution_time_iterator(start.timestamp(), "30 2 * * *", "Europe/Berlin")
            for _ in range(3):
                assert "recorded" in str(due(definitions, next(ticks).astimezone(UTC), instance))
    nights = [night.scheduled_at for night in NightBook(ArtifactStore().open(), "small").latest()]
    assert [f"{night:%m-%d %H:%M}" for night in reversed(nights)] == [
        "03-28 01:30",
        "03-29 01:00",  # 02:30 does not exist: at 03:00, when the clock has jumped
        "03-30 00:30",
        "10-24 00:30",
        "10-25 01:30",  # 02:30 comes twice: the second time
        "10-26 01:30",
    ]


def test_the_sensor_launches_what_was_recorded_and_says_when_there_is_nothing(home: Path) -> None:
    ensure_home()
    definitions = build_definitions([recipe()])
    sensor = definitions.get_repository_def().get_sensor_def(sensor_name("small"))
    with dg.instance_for_test() as instance:
        idle = sensor.evaluate_tick(dg.build_sensor_context(instance=instance))
        assert (idle.run_requests, idle.skip_message) == ([], "no night is waiting")
        told = due(definitions, datetime(2026, 11, 21, 1, 30, tzinfo=UTC), instance)
        assert told == (
            "night of 2026-11-21 01:30 UTC recorded; small_night_sensor launches it when the shards are complete, "
            "and after 45 minutes with what is"
        )
        first, again = (sensor.evaluate_tick(dg.build_sensor_context(instance=instance)) for _ in range(2))
    (request,) = first.run_requests or []
    assert request.job_name == "small_base"
    assert request.tags["align/night"] == "small/20261121T013000Z"
    assert request.tags["dagster/max_runtime"] == str(6 * 3600)
    assert [one.run_key for one in again.run_requests or []] == [request.run_key]  # which Dagster launches once


def test_a_limit_of_cost_without_any_price_is_refused() -> None:
    with pytest.raises(BadInput, match=r"small, field 'schedule\.max_cost': no pool .* names a price_per_hour"):
        build_definitions([recipe(schedule={"max_cost": 20})])


def test_the_cursor_remembers_since_when_nobody_makes_what_is_behind() -> None:
    assert read_cursor(None) is None
    assert read_cursor("{}") is None
    since = datetime(2026, 11, 21, 2, tzinfo=UTC)
    assert read_cursor(json.dumps({"idle_since": since.isoformat()})) == since


@pytest.mark.parametrize("as_json", [False, True])
def test_align_nights_tells_outcome_and_reason(
    home: Path, align_command: list[str], tmp_path: Path, as_json: bool
) -> None:
    ensure_home()
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(SETTINGS), encoding="utf-8")
    with dg.instance_for_test() as instance:
        due(build_definitions([recipe()]), datetime(2026, 11, 21, 1, 30, tzinfo=UTC), instance)
    book = NightBook(ArtifactStore().open(), "small")
    (night,) = book.latest()
    book.write(night.closed("failed", "out of memory", datetime(2026, 11, 21, 3, tzinfo=UTC)))
    arguments = ["nights", str(path), *(["--json"] if as_json else [])]
    told = subprocess.run([*align_command, *arguments], capture_output=True, text=True, check=True, cwd=PROJECT).stdout
    if as_json:
        (shown,) = json.loads(told)["nights"]
        assert (shown["id"], shown["outcome"], shown["reason"]) == ("20261121T013000Z", "failed", "out of memory")
    else:
        assert told == "2026-11-21T01:30:00Z  failed: out of memory\n"
