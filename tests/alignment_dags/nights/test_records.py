"""Records of nights: kept, replaced as a whole, and only the latest that waits has its turn."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import dagster as dg
import pytest

from alignment.store import Store
from alignment_dags.nights.night import Night
from alignment_dags.nights.records import NightBook, latest_nights
from alignment_dags.nights.tick import tick, whose_turn
from alignment_dags.run.workspace import Workspace
from resources.pools import load_pools
from tests.alignment_dags.nights.small import DAY, RECIPE, TWO


@pytest.fixture
def book(store_url: str, tmp_path: Path) -> NightBook:
    return NightBook(Store(store_url, cache=tmp_path / "cache"), "small")


def night(at: datetime, recipe: str = "small") -> Night:
    return Night(recipe=recipe, scheduled_at=at, recorded_at=at, deadline_minutes=120)


def test_a_book_without_nights_is_empty(book: NightBook) -> None:
    assert list(book.latest()) == []
    assert whose_turn(book, RECIPE, TWO) is None


def test_a_tick_that_is_evaluated_twice_records_one_night(book: NightBook) -> None:
    assert book.add(night(TWO))
    book.write(night(TWO).closed("failed", "why", TWO))
    assert not book.add(night(TWO))
    assert [one.outcome for one in book.latest()] == ["failed"]


def test_nights_of_one_clock_time_where_clocks_go_back_are_two(book: NightBook) -> None:
    first = datetime.fromisoformat("2026-10-25T02:30:00+02:00")
    second = datetime.fromisoformat("2026-10-25T02:30:00+01:00")
    assert book.add(night(first))
    assert book.add(night(second))
    assert [one.scheduled_at for one in book.latest()] == [second, first]


def test_missed_nights_do_not_pile_up_and_somebody_is_told(book: NightBook, caplog: pytest.LogCaptureFixture) -> None:
    for days in range(3):
        book.add(night(TWO + days * DAY))
    turn = whose_turn(book, RECIPE, TWO + 3 * DAY)
    assert turn is not None
    assert turn.scheduled_at == TWO + 2 * DAY
    assert [one.outcome for one in book.latest()] == ["waiting", "missed", "missed"]
    assert "2026-11-22 02:00 UTC came before it began" in list(book.latest())[1].reason
    told = [record.getMessage() for record in caplog.records if record.name == "alignment_dags.alerts"]
    assert len(told) == 2
    assert told[0].startswith("small: night of 2026-11-21 02:00 UTC missed: ")
    caplog.clear()
    assert whose_turn(book, RECIPE, TWO + 3 * DAY) == turn
    assert caplog.records == []


def test_a_night_that_has_begun_is_finished_before_the_next(book: NightBook) -> None:
    book.add(night(TWO).model_copy(update={"outcome": "running"}))
    book.add(night(TWO + DAY))
    book.add(night(TWO + 2 * DAY))
    turn = whose_turn(book, RECIPE, TWO)
    assert turn is not None
    assert turn.scheduled_at == TWO
    book.write(turn.closed("passed", "done", TWO))
    turn = whose_turn(book, RECIPE, TWO)
    assert turn is not None
    assert turn.scheduled_at == TWO + 2 * DAY


def test_recipes_have_books_of_their_own(book: NightBook) -> None:
    book.add(night(TWO))
    assert list(NightBook(book.store, "other").latest()) == []


def test_a_record_that_cannot_be_read_is_told_of_once_and_the_other_nights_go_on(
    book: NightBook, caplog: pytest.LogCaptureFixture
) -> None:
    for days in range(3):
        book.add(night(TWO + days * DAY))
    path = book.store.path("nights", "small", "20261121T020000Z.json")
    whole = book.store.fs.cat_file(path)
    book.store.fs.pipe_file(path, b"{")
    assert list(latest_nights(book.store, RECIPE, 10)["unreadable"]) == [path]
    workspace = Workspace(RECIPE, load_pools(), lambda: book.store)
    with dg.instance_for_test() as instance:
        for _ in range(2):
            assert "2026-11-22" in tick(instance, workspace, TWO + 3 * DAY, None).reason
    told = [one.getMessage() for one in caplog.records if "night_unreadable" in one.getMessage()]
    assert len(told) == 1 and path in told[0] and "set aside" in told[0]
    assert [one.outcome for one in book.latest()] == ["running", "missed"]
    assert not book.add(night(TWO + DAY)), "its tick, evaluated again, would begin it anew"
    book.store.fs.pipe_file(path, whole)
    assert len(list(book.latest())) == 3
