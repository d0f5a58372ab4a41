"""Nights of a small recipe from end to end, its runs executed in this process as the daemon would launch them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from alignment.data.withdrawal import Tombstone, bury
from alignment.errors import BadInput
from alignment.recipe import Recipe
from alignment_dags.cli.output import show_nights
from alignment_dags.definitions import build_definitions
from alignment_dags.nights.decide import GRACE
from alignment_dags.nights.night import Night
from alignment_dags.nights.records import NightBook, latest_nights
from alignment_dags.nights.tick import Ticked, tick
from alignment_dags.nights.worth import worth_now
from alignment_dags.run.workspace import Workspace
from assets.building.factory import shards_definition
from assets.building.upstream import Upstream
from eval.report.worth import new_rows_course
from resources.home import ensure_home
from resources.mlflow import Tracking
from resources.pools import load_pools
from resources.store import ArtifactStore


class Nights:
    """One recipe's nights; its clock moves as far as each step needs."""

    def __init__(self, instance: dg.DagsterInstance, settings: dict[str, Any]) -> None:
        self.instance = instance
        self.now = datetime.now(UTC)
        self.due = self.now - timedelta(days=9)
        self.settings = settings | {"schedule": {}}
        self.use()

    def use(self, **changes: Any) -> None:
        """From here on the recipe has these sections."""
        self.recipe = Recipe.model_validate(self.settings | changes)
        self.store = ArtifactStore().open()
        self.launched: list[tuple[str, list[str]]] = []

    def record(self) -> None:
        self.now = datetime.now(UTC)
        self.due += timedelta(days=1)
        night = Night(recipe=self.recipe.name, scheduled_at=self.due, recorded_at=self.now, deadline_minutes=120)
        assert NightBook(self.store, self.recipe.name).add(night)

    def look(self, idle_since: datetime | None = None) -> Ticked:
        return tick(self.instance, Workspace(self.recipe, load_pools()), self.now, idle_since)

    def execute(self, ticked: Ticked) -> None:
        definition = shards_definition(self.recipe.name)
        assert definition.name is not None
        self.instance.add_dynamic_partitions(definition.name, list(ticked.new_shards))
        definitions = build_definitions([self.recipe])
        for request in ticked.requests:
            assert request.job_name is not None
            self.launched.append((request.job_name, [key.path[-1] for key in request.asset_selection or ()]))
            definitions.resolve_job_def(request.job_name).execute_in_process(
                instance=self.instance,
                asset_selection=list(request.asset_selection or ()),
                tags=dict(request.tags),
                raise_on_error=False,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )

    def night(self) -> Night:
        """Records a night and carries it to its end."""
        self.record()
        self.launched = []
        while NightBook(self.store, self.recipe.name).open_nights():
            done = self.look()
            if done.idle:
                idle_since, self.now = self.now, self.now + GRACE
                done = self.look(idle_since)
            self.execute(done)
        return next(NightBook(self.store, self.recipe.name).latest())

    def champion(self) -> str | None:
        registered = Upstream(self.store, self.recipe.name).get("registered_model")
        return None if registered is None else str(self.store.commit_of(registered).summary.get("version"))


@pytest.fixture
def nights(tables: None, small_recipe: dict[str, Any], small_data: dict[str, str]) -> Iterator[Nights]:
    ensure_home()
    with dg.DagsterInstance.get() as instance:
        gate = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}}
        small_recipe["preferences"] |= {"files": [small_data["pairs"]], "settle_seconds": 0}
        yield Nights(instance, small_recipe | {"gate": gate})


def pairs_of(settings: dict[str, Any]) -> Path:
    return Path(settings["preferences"]["files"][0])


def test_a_night_sleeps_while_few_rows_are_new_says_why_and_wakes_when_enough_came(
    nights: Nights, small_recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    first_file = pairs_of(small_recipe)
    rule = {"min_new_rows": 6, "provable": True, "max_wait_days": 30}
    nights.use(
        schedule={"worth": rule},
        preferences=small_recipe["preferences"] | {"files": [str(first_file.with_name("pairs*.jsonl"))]},
        held_out_fraction=0.0,
    )
    first = nights.night()
    assert (first.outcome, first.worth) == ("passed", None), first.reason

    def arrive(name: str, rows: int) -> None:
        lines = first_file.read_text(encoding="utf-8").splitlines()[:rows]
        changed = [line.replace("Name ", f"Call {name} ") for line in lines]
        first_file.with_name(f"pairs-{name}.jsonl").write_text("\n".join([*changed, ""]), encoding="utf-8")

    arrive("monday", 4)
    slept = nights.night()
    assert slept.outcome == "slept", slept.reason
    assert slept.worth is not None
    assert (slept.worth.new_rows, slept.worth.gone_rows, slept.worth.trained_rows) == (4, 0, 48)
    assert "4 new rows since the training of" in slept.reason and "min_new_rows asks for 6" in slept.reason
    (provable,) = slept.worth.provable
    assert provable.metric == "ifeval/prompt_level_strict_acc" and provable.change is not None
    assert provable.is_enough and provable.reports == 1, "a margin of 1 is the whole scale"
    assert slept.worth.seconds is not None and "a night could prove" in slept.reason
    assert ("small_shards", ["preference_shard"]) in nights.launched, "rows are read and scored while they wait"
    assert "small_train" not in {job for job, _ in nights.launched}

    arrive("tuesday", 3)
    manifest = Upstream(nights.store, "small")("preference_manifest")
    row = pq.read_table(nights.store.fetch(manifest) / "split.parquet")["row_id"][0].as_py()
    bury(nights.store, "old_name", "rows", [Tombstone(id=row, at="2026-11-01")])
    woken = nights.night()
    (told,) = woken.elsewhere
    assert told.startswith("1 of its rows was withdrawn from recipe old_name: ")
    show_nights(latest_nights(nights.store, nights.recipe, 1))
    assert f"    {told}\n" in capsys.readouterr().out
    assert (woken.outcome, woken.version) == ("passed", "2"), woken.reason
    assert woken.worth is not None and woken.worth.new_rows == 7
    assert "why tonight: 7 new rows since the training of" in woken.reason
    assert woken.reason.endswith(" on 48: as much as schedule.worth asks for")


def test_rows_that_wait_are_measured_each_night_and_a_drift_wakes_the_night_that_is_asked_to(
    nights: Nights, small_recipe: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    first_file = pairs_of(small_recipe)
    changed: dict[str, Any] = {
        "schedule": {"worth": {"min_new_rows": 1000}},
        "preferences": small_recipe["preferences"] | {"files": [str(first_file.with_name("pairs*.jsonl"))]},
        "evals": small_recipe["evals"] | {"new_rows": {}},
    }
    nights.use(**changed)
    first = nights.night()
    assert first.outcome == "passed", first.reason

    def arrive(name: str, numbers: range) -> None:
        rows = [{"prompt": f"Name {n}", "chosen": "No.", "rejected": f"It is {n}."} for n in numbers]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        first_file.with_name(f"pairs-{name}.jsonl").write_text(text, encoding="utf-8")

    arrive("monday", range(100, 120))
    slept = nights.night()
    assert slept.outcome == "slept" and slept.worth is not None, slept.reason
    measured = slept.worth.measured
    assert measured is not None and (measured.measured, measured.scored) == (20, 40), measured
    assert measured.accuracy is not None and measured.accuracy < 0.2 and measured.start_ranking_accuracy is not None
    assert "the champion prefers the chosen side in" in slept.reason and "look at the new data" in slept.reason
    assert nights.launched[-1] == ("small_train", ["preference_manifest", "new_rows"])
    assert any("the guard drift of incoming/new_rows is red" in one.message for one in caplog.records)
    kept = Upstream(nights.store, "small")("preference_manifest")
    assert kept.digest == first.manifest, "the policy's manifest stays what it was trained on"

    arrive("tuesday", range(120, 124))
    again = nights.night()
    assert again.worth is not None and again.worth.measured is not None and again.outcome == "slept"
    assert (again.worth.measured.scored, again.worth.measured.cache_hits) == (8, 40), "no pass for known sequences"
    nights.launched = []
    assert nights.night().outcome == "slept" and nights.launched == [], "nothing to measure again"

    nights.use(**changed | {"schedule": {"worth": {"min_new_rows": 1000, "wake_on_drift": True}}})
    woken = nights.night()
    assert (woken.outcome, woken.version) == ("passed", "2"), woken.reason
    assert "on 45: schedule.worth.wake_on_drift; the champion prefers the chosen side in" in woken.reason
    assert nights.night().outcome == "skipped"
    settled: Any = worth_now(Workspace(nights.recipe, load_pools()), datetime.now(UTC))
    assert settled["worth"]["new_rows"] == 0 and settled["worth"]["measured"] is None, "no row is new to the champion"
    course = new_rows_course(nights.store, "small")
    assert course is not None and [line.has_drifted for line in course.lines] == [True, True]
    page = (nights.store.fetch(Upstream(nights.store, "small")("evaluation_report")) / "report.html").read_text("utf-8")
    assert "Rows that the champion never saw" in page and "2 measurements" in page and ">drift<" in page


def test_a_drift_that_was_trained_on_wakes_no_second_night_nor_do_known_rows_or_rows_that_the_gate_refuses(
    nights: Nights, small_recipe: dict[str, Any]
) -> None:
    first_file = pairs_of(small_recipe)
    metric = "ifeval/prompt_level_strict_acc"
    fails = {"metrics": {metric: {"at_least": 1.1}}}
    changed: dict[str, Any] = {
        "schedule": {"worth": {"min_new_rows": 1000, "wake_on_drift": True}},
        "preferences": small_recipe["preferences"] | {"files": [str(first_file.with_name("pairs*.jsonl"))]},
        "evals": small_recipe["evals"] | {"new_rows": {}},
    }

    def arrive(name: str, lines: list[str]) -> None:
        first_file.with_name(f"pairs-{name}.jsonl").write_text("".join(lines), encoding="utf-8")

    def flipped(numbers: range) -> list[str]:
        rows = [{"prompt": f"Name {n}", "chosen": "No.", "rejected": f"It is {n}."} for n in numbers]
        return [json.dumps(row) + "\n" for row in rows]

    def worth() -> dict[str, Any]:
        return worth_now(Workspace(nights.recipe, load_pools()), datetime.now(UTC))

    nights.use(**changed)
    assert nights.night().outcome == "passed"

    arrive("known", first_file.read_text(encoding="utf-8").splitlines(keepends=True)[:5])
    assert [name.partition("-0")[0] for name in worth()["late"]] == ["pairs-known"] * 2
    known = nights.night()
    assert known.outcome == "slept" and known.reason.endswith("nothing to train on is new or gone"), known.reason
    assert worth()["late"] == [] and worth()["sleeps"] == known.reason

    nights.use(**changed | {"gate": fails})
    assert nights.night().outcome == "gated", "the gate is another, and the policy is looked at again"
    arrive("monday", flipped(range(100, 120)))
    woken = nights.night()
    assert woken.outcome == "gated" and "why tonight: 18 new rows" in woken.reason, woken.reason
    assert "schedule.worth.wake_on_drift; the champion prefers" in woken.reason

    arrive("tuesday", flipped(range(120, 123)))
    slept = nights.night()
    assert slept.outcome == "slept" and "min_new_rows asks for 1,000" in slept.reason, slept.reason
    assert slept.worth is not None and slept.worth.drift_tried and slept.worth.measured is not None

    bound = {"metrics": {metric: {"no_regression": 1.0}, "new_rows/accuracy": {"at_least": 0.9}}}
    nights.use(**changed | {"gate": bound, "schedule": {"worth": {"min_new_rows": 2}}})
    with pytest.raises(BadInput, match="evaluation_report, registered_model are to be made, whatever rows are new"):
        worth()
    assert nights.night().outcome == "gated", "a change of the recipe takes what waits along"
    arrive("wednesday", flipped(range(123, 126)))
    refused = nights.night()
    assert refused.outcome == "slept" and nights.champion() == "1"
    assert "the gate would refuse whatever is trained on them: new_rows/accuracy" in refused.reason, refused.reason


def test_a_night_trains_what_changed_and_the_next_is_skipped(nights: Nights, small_recipe: dict[str, Any]) -> None:
    first = nights.night()
    assert (first.outcome, first.version) == ("passed", "1"), first.reason
    assert first.costs is not None
    assert first.costs.sequences_scored == 96
    assert first.costs.tokens_trained > 0
    assert first.costs.suites_run == 2
    assert [job for job, _ in nights.launched] == [
        "small_base",
        "small_shards",
        "small_reference",
        "small_train",  # the manifest, and then what differs with it
        "small_train",
    ]
    assert first.left_out == {}

    again = nights.night()
    assert again.outcome == "skipped"
    assert "nothing changed" in again.reason
    assert nights.launched == []

    lines = pairs_of(small_recipe).read_text(encoding="utf-8").splitlines()
    lines[0] = lines[0].replace("It is 0.", "It is nil.")
    pairs_of(small_recipe).write_text("\n".join(lines) + "\n", encoding="utf-8")
    changed = nights.night()
    assert (changed.outcome, changed.version) == ("passed", "2"), changed.reason
    assert changed.costs is not None
    assert changed.costs.sequences_scored == 1
    assert changed.manifest != first.manifest
    assert ("small_train", "sft_responses") not in {(job, node) for job, nodes in nights.launched for node in nodes}
    assert changed.costs.suites_run == 1


def test_what_was_scored_before_a_night_is_counted_in_it_and_an_alias_moved_meanwhile_told_of_once(
    nights: Nights,
    small_recipe: dict[str, Any],
    bring_up_to_date: Callable[..., Upstream],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bring_up_to_date(nights.recipe, only=("base", "shards", "reference"))
    first = nights.night()
    assert first.costs is not None
    assert (first.costs.sequences_scored, first.costs.between.sequences, first.costs.between.shards) == (0, 96, 2)
    assert first.costs.between.tokens > 0
    assert "between the nights 96 sequences" in first.costs.told()
    assert first.alias == ""

    path = pairs_of(small_recipe)
    path.write_text(path.read_text(encoding="utf-8").replace("It is 0.", "It is nil."), encoding="utf-8")
    bring_up_to_date(nights.recipe, only=("shards", "reference"))
    Tracking().client().delete_registered_model_alias("small", "champion")
    second = nights.night()
    assert (second.outcome, second.version) == ("passed", "2"), second.reason
    assert second.costs is not None
    assert (second.costs.sequences_scored, second.costs.between.sequences, second.costs.between.shards) == (0, 1, 1)
    assert [one for one in alias_alerts(caplog) if "is gone, the registered champion is version 1" in one], "put back"

    Tracking().client().set_registered_model_alias("small", "champion", "1")
    caplog.clear()
    assert [nights.night().outcome for _ in range(2)] == ["skipped", "skipped"]
    (told,) = alias_alerts(caplog)
    assert "is on version 1, the registered champion is version 2" in told
    shown = latest_nights(nights.store, nights.recipe, 1)["nights"][0]
    assert shown["alias"] in told


def alias_alerts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if "alias_moved" in one.message]


def test_a_shard_without_a_valid_row_is_left_out_by_name(nights: Nights, small_recipe: dict[str, Any]) -> None:
    bad = pairs_of(small_recipe).with_name("bad.jsonl")
    bad.write_text(json.dumps({"prompt": "a"}) + "\n", encoding="utf-8")
    preferences = {"files": [*small_recipe["preferences"]["files"], str(bad)], "settle_seconds": 0}
    nights.use(preferences=preferences)
    night = nights.night()
    assert night.outcome == "passed", night.reason
    assert list(night.left_out) == ["bad"]
    (trouble,) = night.troubles
    assert "bad" in trouble
    assert "no valid preference row" in trouble
    again = nights.night()
    assert again.outcome == "skipped"
    assert "not ready: bad" in again.reason


def test_a_bad_file_beside_what_is_trained_on_trains_nothing(nights: Nights, small_recipe: dict[str, Any]) -> None:
    assert nights.night().version == "1"
    pairs_of(small_recipe).with_name("bad.jsonl").write_text("{}\n", encoding="utf-8")
    preferences = {"files": [*small_recipe["preferences"]["files"], str(pairs_of(small_recipe).with_name("bad.jsonl"))]}
    nights.use(preferences=preferences | {"settle_seconds": 0, "split_into": 2})
    night = nights.night()
    assert night.outcome == "skipped", night.reason
    assert [nodes for _, nodes in nights.launched] == [["preference_shard"], ["preference_manifest"]]
    assert sorted(night.left_out) == ["bad-00001-of-00002", "bad-00002-of-00002"]
    assert nights.champion() == "1"


def test_a_gate_that_says_no_alerts_and_is_not_asked_again(nights: Nights, caplog: pytest.LogCaptureFixture) -> None:
    nights.use(gate={"metrics": {"ifeval/prompt_level_strict_acc": {"at_least": 2.0}}})
    night = nights.night()
    assert night.outcome == "gated"
    assert "the gate says fail" in night.reason
    assert nights.champion() is None
    assert any(one.name == "alignment_dags.alerts" and "night_gated" in one.message for one in caplog.records)
    again = nights.night()
    assert again.outcome == "skipped"
    assert "the gate said fail to its policy" in again.reason


def test_a_night_that_fails_alerts_keeps_the_champion_and_the_next_one_starts_clean(
    nights: Nights, small_recipe: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import alignment.stages.policy_checkpoint as dpo

    assert nights.night().version == "1"
    path = pairs_of(small_recipe)
    path.write_text(path.read_text(encoding="utf-8").replace("It is 7.", "It is seven."), encoding="utf-8")

    def broken(*_: Any) -> None:
        raise RuntimeError("the device fell off the bus")

    with monkeypatch.context() as patched:
        patched.setattr(dpo, "_train", broken)
        failed = nights.night()
    assert failed.outcome == "failed"
    assert "the device fell off the bus" in failed.reason
    assert nights.champion() == "1"
    assert any(one.levelno == logging.WARNING and "night_failed" in one.message for one in caplog.records)

    mended = nights.night()
    assert (mended.outcome, mended.version) == ("passed", "2"), mended.reason
    assert [job for job, _ in nights.launched] == ["small_train"]


def test_a_night_whose_source_is_gone_waits_and_fails_at_its_deadline(
    nights: Nights, small_recipe: dict[str, Any]
) -> None:
    pairs_of(small_recipe).unlink()
    nights.record()
    assert "no such file" in nights.look().reason
    nights.now += timedelta(minutes=120)
    assert nights.look().requests == ()
    night = next(NightBook(nights.store, "small").latest())
    assert night.outcome == "failed"
    assert "no such file" in night.reason
