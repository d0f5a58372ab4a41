"""A judge that retires is told of once ahead and once when it is gone, whatever the nights between do."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from alignment.recipe import Judge
from alignment.store import Store
from alignment_dags.nights.finish import watch_judge
from alignment_dags.nights.night import Night
from alignment_dags.nights.records import NightBook
from tests.alignment_dags.nights.small import RECIPE, TWO


@pytest.fixture
def book(tmp_path: Path) -> NightBook:
    return NightBook(Store(str(tmp_path / "store")), "small")


def test_it_is_alerted_once_ahead_and_once_after(book: NightBook, caplog: pytest.LogCaptureFixture) -> None:
    day = TWO.date() + timedelta(days=40)
    recipe = RECIPE.model_copy(update={"judge": Judge(kind="openai", model="m", retires=day)})

    def night(after: int) -> list[str]:
        at: datetime = TWO + timedelta(days=after)
        record = Night(recipe="small", scheduled_at=at, recorded_at=at, deadline_minutes=120)
        caplog.clear()
        noted = watch_judge(book, recipe, record.closed("skipped", "nothing changed", at), at)
        assert next(book.latest()) == noted
        return [one.message for one in caplog.records if one.name == "alignment_dags.alerts"]

    alerts = {after: night(after) for after in (0, 9, 10, 11, 39, 40, 41, 80)}
    assert {after: len(found) for after, found in alerts.items() if found} == {10: 1, 40: 1}
    assert alerts[10][0].startswith(f"small: the judge m retires on {day}")
    assert alerts[40][0].startswith(f"small: the judge m has been retired since {day}")


def test_a_recipe_without_a_judge_has_nothing_to_tell(book: NightBook, caplog: pytest.LogCaptureFixture) -> None:
    night = Night(recipe="small", scheduled_at=TWO, recorded_at=TWO, deadline_minutes=120)
    assert watch_judge(book, RECIPE, night, TWO).judge == "" and not caplog.records
