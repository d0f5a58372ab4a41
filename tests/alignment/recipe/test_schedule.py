"""Schedules and alerts of a recipe: what is wrong in them is named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from dagster._utils.schedules import cron_string_iterator, is_valid_cron_string
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from alignment.errors import BadInput
from alignment.recipe import Alerts, Schedule, parse_recipe
from alignment.recipe.schedule import check_cron, next_time

NUMBERS = st.integers(0, 60).map(str)
NAMES = st.sampled_from(["jan", "DEC", "sun", "Fri"])
RANGES = st.tuples(NUMBERS, NUMBERS).map("-".join)
STEPS = st.tuples(st.one_of(st.just("*"), RANGES, NUMBERS), NUMBERS).map("/".join)
PART = st.one_of(st.just("*"), NUMBERS, RANGES, STEPS, NAMES)
FIELD = st.lists(PART, min_size=1, max_size=2).map(",".join)


def test_the_default_is_two_at_night_utc() -> None:
    assert Schedule().model_dump() == {
        "cron": "0 2 * * *",
        "timezone": "UTC",
        "deadline_minutes": 120,
        "max_hours": 24,
        "max_cost": None,
    }


@pytest.mark.parametrize("cron", ["*/15 * * * *", "30 1 * * mon-FRI", "0 2,14 1-7/2 jan *", "0 0 * * 7", "0 0 29 2 *"])
def test_standard_cron_is_taken(cron: str) -> None:
    assert Schedule(cron=cron).cron == cron
    assert is_valid_cron_string(cron)


def test_blanks_do_not_count() -> None:
    assert Schedule(cron=" 0  2 * * *\n").cron == "0 2 * * *"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"cron": "@daily"}, "five fields"),
        ({"cron": "0 0 2 * * *"}, "this has 6"),
        ({"cron": "60 2 * * *"}, "minute '60' is not within 0-59"),
        ({"cron": "0 5-1 * * *"}, "hour '5-1' is not within 0-23, lowest first"),
        ({"cron": "0 2 0 * *"}, "day of month '0'"),
        ({"cron": "0 2 * * 1,"}, "day of week '1,'"),
        ({"cron": "*/0 * * * *"}, "minute '*/0'"),
        ({"cron": "5/10 * * * *"}, "step of * or of a range"),
        ({"cron": "0 2 * mon *"}, "month has no 'mon'"),
        ({"cron": "0 2 30,31 2 *"}, "no month in '2' has a day '30,31'"),
        ({"timezone": "Berlin"}, "no time zone 'Berlin'"),
        ({"timezone": "../etc"}, "no time zone"),
        ({"timezone": "Europe"}, "no time zone 'Europe'"),
        ({"deadline_minutes": 0}, "greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_said(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told.replace("*", r"\*")):
        Schedule(**settings)


@given(st.lists(FIELD, min_size=5, max_size=5).map(" ".join))
def test_what_is_taken_here_is_taken_by_dagster(cron: str) -> None:
    try:
        check_cron(cron)
    except ValueError:
        return
    assert is_valid_cron_string(cron)


def test_a_url_in_place_of_a_variables_name_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValidationError) as refused:
        Alerts(webhook_env="https://hooks.example/secret")
    assert refused.value.errors()[0]["msg"] == (
        "Value error, expected the name of an environment variable that holds the secret, not the secret itself"
    )


@pytest.mark.parametrize("settings", [{"judge": {"kind": "openai", "model": "m"}}, {"evals": {"generate": {}}}])
def test_a_key_in_place_of_a_variables_name_is_refused_and_not_repeated(settings: dict[str, Any]) -> None:
    section = settings.get("judge") or settings["evals"]["generate"]
    section["api_key_env"] = "sk-4f9c2"
    minimal = {"base_model": {"embedded": "micro"}, "sft": {"dataset": {"embedded": "micro"}}}
    with pytest.raises(BadInput, match=r"api_key_env.*name of an environment variable") as refused:
        parse_recipe({"name": "small", "preferences": {"embedded": "micro"}, **minimal, **settings}, "-", {})
    assert "4f9c2" not in str(refused.value)


@pytest.mark.parametrize(
    "cron",
    ["0 2 * * *", "*/15 * * * *", "30 1 * * mon-FRI", "0 2,14 1-7/2 jan *", "0 0 * * 7", "0 0 13 * fri", "15 3 31 * *"],
)
@given(minutes=st.integers(0, 500_000))
def test_the_next_time_is_that_of_dagsters_scheduler(cron: str, minutes: int) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes, seconds=1)
    assert next_time(cron, now) == next(cron_string_iterator(now.timestamp(), cron, "UTC"))


@pytest.mark.parametrize("day", [(2026, 3, 28), (2026, 3, 29), (2026, 10, 24), (2026, 10, 25), (2026, 7, 1)])
def test_the_next_time_follows_the_changes_of_a_clock(day: tuple[int, int, int]) -> None:
    now = datetime(*day, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    assert next_time("0 4 * * *", now) == next(cron_string_iterator(now.timestamp(), "0 4 * * *", "Europe/Berlin"))


def test_a_leap_day_is_found() -> None:
    assert next_time("0 0 29 2 *", datetime(2026, 11, 28, tzinfo=UTC)) == datetime(2028, 2, 29, tzinfo=UTC)
