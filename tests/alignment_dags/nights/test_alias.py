"""An alias that somebody moved by hand is told of once for every change, by the night that finds it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from alignment.store import Artifact, Ref, Store
from alignment_dags.nights.finish import watch_alias
from alignment_dags.nights.night import Night
from alignment_dags.nights.records import NightBook
from resources.mlflow import Tracking, TrackingUnreachable
from tests.alignment_dags.nights.small import DAY, RECIPE, TWO


class Mlflow(Tracking):
    """A registry whose alias is on a version; `?` for one that does not answer."""

    version: str | None = None

    def aliased(self, model_name: str, alias: str = "champion") -> tuple[str, dict[str, str]] | None:
        if self.version == "?":
            raise TrackingUnreachable("MLflow at nowhere: no answer")
        return None if self.version is None else (self.version, {})


@pytest.fixture
def book(tmp_path: Path) -> NightBook:
    return NightBook(Store(str(tmp_path / "store")), "small")


@pytest.fixture
def look(book: NightBook, caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """A night that finds the alias on a version: what it alerts."""
    nights = count()

    def look(version: str | None) -> list[str]:
        at = TWO + next(nights) * DAY
        night = Night(recipe="small", scheduled_at=at, recorded_at=at, deadline_minutes=120)
        night = night.closed("skipped", "nothing changed", at)
        book.write(night)
        caplog.clear()
        watch_alias(book, RECIPE, night, Mlflow(version=version))
        return [one.message for one in caplog.records if one.name == "alignment_dags.alerts"]

    return look


def register(book: NightBook, version: str, at: datetime = TWO - DAY, alias_moved: str | None = None) -> None:
    store = book.store
    policy = Artifact(kind="policy_checkpoint", key="p", attempt="a", digest="d")
    summary: dict[str, object] = {"registered": True, "model": "small", "version": version}
    commit = store.commit(
        store.begin("registered_model", version),
        digest=version,
        stage="registered_model",
        code_version=1,
        inputs={"policy": policy},
        summary=summary | ({"alias_moved": alias_moved} if alias_moved else {}),
        environment={},
        started_at=at.isoformat(timespec="seconds"),
        seconds=0.0,
    )
    store.write_ref(Ref(artifact=commit.artifact), "small", "registered_model")


def noted(book: NightBook) -> str | None:
    return next(book.latest()).alias


def test_an_alias_in_its_place_alerts_nobody(book: NightBook, look: Callable[..., list[str]]) -> None:
    assert look("?") == [], "nothing was registered yet, so MLflow is not asked"
    register(book, "2")
    assert look("2") == []
    assert noted(book) == ""


def test_every_change_is_told_once(book: NightBook, look: Callable[..., list[str]]) -> None:
    register(book, "2")
    (first,) = look("1")
    assert first.startswith("small: the alias champion of small is on version 1")
    assert look("1") == []
    (gone,) = look(None)
    assert "is gone" in gone
    assert look("2") == []
    assert len(look("1")) == 1, "it was back in its place in between"


def test_while_mlflow_does_not_answer_nothing_is_noted_and_nothing_told_again(
    book: NightBook, look: Callable[..., list[str]]
) -> None:
    register(book, "2")
    assert len(look("1")) == 1
    assert look("?") == []
    assert noted(book) is None
    assert look("1") == []


def test_an_alias_that_the_night_itself_put_back_is_told_of_too(
    book: NightBook, look: Callable[..., list[str]]
) -> None:
    register(book, "2", TWO + timedelta(minutes=30), alias_moved="it was on version 1")
    assert look("2") == ["small: it was on version 1 (alert alias_moved)"]
    assert noted(book) == ""
    assert look("2") == [], "that was an earlier night's registration"
