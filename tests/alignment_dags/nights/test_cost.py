"""A night is over before its costs are counted, and whatever happens to these keeps no night open."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from alignment.recipe import Recipe, parse_recipe
from alignment.store import Ref, Store
from alignment.store.store import COMMIT_FILE
from alignment_dags.nights import cost, tick
from alignment_dags.nights.decide import Close, RunSeen
from alignment_dags.nights.night import Night
from alignment_dags.nights.records import NightBook
from alignment_dags.run.workspace import Workspace
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
    monkeypatch.setattr(cost, "runs_since", lambda *_: {"r"})
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
        told = cost.note_costs(instance, Workspace(recipe, load_pools(), lambda: book.store), book, night)
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
    monkeypatch.setattr(cost, "costs_of", lambda *_: pytest.fail("nothing was spent"))
    assert noted(book, recipe, runs=[]).costs is None


def test_the_night_is_closed_first(book: NightBook, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_long(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(tick, "note_costs", too_long)
    monkeypatch.setattr(tick, "runs_seen", lambda *_: [RunSeen("r", frozenset({"train"}), "failed", mine=True)])
    monkeypatch.setattr(tick, "decide_night", lambda *_: Close("failed", "the device fell off the bus"))
    monkeypatch.setattr(tick, "state_of", lambda *_: None)
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(TimeoutError):
        tick.tick(instance, Workspace(recipe, load_pools(), lambda: book.store), TWO, None)
    assert next(book.latest()).outcome == "failed"


def test_what_a_night_has_cost_is_the_time_its_own_steps_held_slots_at_their_pools_prices(recipe: Recipe) -> None:
    pools = load_pools()
    pool = pools[recipe.pools.policy].model_copy(update={"price_per_hour": 36_000.0})
    dear = pools.model_copy(update={"pools": {**pools.pools, recipe.pools.policy: pool}})
    priced = Workspace(recipe, dear)
    night = Night(recipe="small", scheduled_at=TWO, recorded_at=TWO, deadline_minutes=120)

    @dg.op(name="small__policy_checkpoint")
    def training() -> None: ...

    @dg.op(name="small__preference_manifest")
    def no_pool() -> None: ...

    @dg.job
    def train() -> None:
        training()
        no_pool()

    with dg.instance_for_test() as instance:
        train.execute_in_process(instance=instance, tags=night.tags)
        train.execute_in_process(instance=instance, tags={"align/night": "small/of another night"})
        ours = instance.get_runs(dg.RunsFilter(tags=night.tags))[0].run_id
        (step,) = [one for one in instance.get_run_step_stats(ours) if one.step_key == "small__policy_checkpoint"]
        assert step.start_time is not None and step.end_time is not None
        told = cost.cost_so_far(instance, priced, night, datetime.now(UTC))
        assert told == pytest.approx(10 * (step.end_time - step.start_time))
        assert cost.cost_so_far(instance, Workspace(recipe, pools), night, datetime.now(UTC)) == 0

        going = instance.create_run_for_job(train, tags=night.tags)
        for kind in (dg.DagsterEventType.RUN_START, dg.DagsterEventType.STEP_START):
            event = dg.DagsterEvent(kind.value, "train", step_key="small__policy_checkpoint")
            instance.report_dagster_event(event, going.run_id)
        later = cost.cost_so_far(instance, priced, night, datetime.now(UTC) + timedelta(seconds=100))
        assert later - told == pytest.approx(1000, abs=100), "a step that is going on counts up to now"
