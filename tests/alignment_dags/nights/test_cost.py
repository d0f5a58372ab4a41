"""A night is over before its costs are counted, and whatever happens to these keeps no night open."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from alignment.recipe import Recipe, parse_recipe
from alignment.store import Ref, Store
from alignment.store.store import COMMIT_FILE
from alignment_dags.nights import cost as spent
from alignment_dags.nights import tick
from alignment_dags.nights.decide import Close, RunSeen
from alignment_dags.nights.night import Night
from alignment_dags.nights.records import NightBook
from resources.pools import load_pools
from tests.alignment_dags.nights.test_between import made, manifest, reference

TWO = datetime(2026, 11, 20, 2, tzinfo=UTC)
EMBEDDED = {"embedded": "micro"}


@pytest.fixture
def recipe() -> Recipe:
    plain = {"name": "small", "base_model": EMBEDDED, "sft": {"dataset": EMBEDDED}, "preferences": EMBEDDED}
    return parse_recipe(plain, "-", {})


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NightBook:
    """With a night that ran `r`, which scored `own`; its manifest holds `early` too."""
    monkeypatch.setattr(spent, "runs_since", lambda *_: {"r"})
    store = Store(str(tmp_path / "store"))
    early, own = reference(store, "early", 4, 1.0), reference(store, "own", 8, 2.0)
    store.write_ref(Ref(artifact=own.artifact, dagster_run_id="r"), "small", "reference_logprobs", "part")
    store.write_ref(Ref(artifact=manifest(store, "m", early, own)), "small", "preference_manifest")
    made(store, "policy_checkpoint", "others", recipe="another")
    book = NightBook(store, "small")
    book.write(Night(recipe="small", scheduled_at=TWO, recorded_at=TWO, deadline_minutes=120, runs=["r"]))
    return book


def noted(book: NightBook, recipe: Recipe, **changes: object) -> Night:
    night = next(book.latest()).model_copy(update=changes)
    with dg.DagsterInstance.ephemeral() as instance:
        told = spent.note_costs(instance, recipe, load_pools(), book, night)
    assert changes or next(book.latest()) == told
    return told


def test_costs_are_noted_in_the_record(book: NightBook, recipe: Recipe) -> None:
    costs = noted(book, recipe).costs
    assert costs is not None
    assert (costs.sequences_scored, costs.between.sequences) == (8, 4)


def test_an_unreadable_policy_of_any_recipe_is_left_out_and_logged(
    book: NightBook, recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    book.store.replace(book.store.path("policy_checkpoint", "others", COMMIT_FILE), b"no record")
    assert noted(book, recipe).costs is not None
    assert "policy_checkpoint: 1 of its records cannot be read and are left out" in caplog.messages


def test_what_cannot_be_read_leaves_the_night_without_costs_and_is_logged(
    book: NightBook, recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    book.store.replace(book.store.path("reference_logprobs", "early", COMMIT_FILE), b"no record")
    assert noted(book, recipe).costs is None
    assert [one for one in caplog.messages if "the costs of the night of" in one and "were not counted" in one]


def test_a_night_without_runs_reads_nothing(book: NightBook, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spent, "spent", lambda *_: pytest.fail("nothing was spent"))
    assert noted(book, recipe, runs=[]).costs is None


def test_the_night_is_closed_first(book: NightBook, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_long(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(tick, "note_costs", too_long)
    monkeypatch.setattr(tick, "runs_seen", lambda *_: [RunSeen("r", frozenset({"train"}), "failed", mine=True)])
    monkeypatch.setattr(tick, "decide_night", lambda *_: Close("failed", "the device fell off the bus"))
    monkeypatch.setattr(tick, "state_of", lambda *_: None)
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(TimeoutError):
        tick.tick(instance, recipe, load_pools(), book.store, TWO, None)
    assert next(book.latest()).outcome == "failed"
