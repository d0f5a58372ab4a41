"""What a night does next, by tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from alignment_dags.nights.decide import (
    GRACE,
    Close,
    End,
    Launch,
    Limits,
    RunSeen,
    Wait,
    decide_night,
    never_sleeps,
)
from alignment_dags.nights.night import Night
from alignment_dags.nights.state import State
from alignment_dags.run.upgrade import Moved

TWO = datetime(2026, 11, 21, 2, tzinfo=UTC)
DEADLINE = timedelta(minutes=120)
NIGHT = Night(recipe="small", scheduled_at=TWO, recorded_at=TWO, deadline_minutes=120)
TRAIN = ("policy_checkpoint", "evaluation_report", "registered_model")
CURRENT = State(total=3, verdict="pass", manifest="m" * 64)
SHARD_BEHIND = replace(CURRENT, shards=("b",))
REFERENCE_BEHIND = replace(CURRENT, reference=("b",), train=TRAIN)
READY = replace(CURRENT, train=TRAIN)


def run(phase: str, state: str = "going", *, mine: bool = False, **more: object) -> RunSeen:
    return RunSeen("0123456789", frozenset({phase}), state, mine, **more)  # type: ignore[arg-type]


def decide(
    standing: State | None,
    *runs: RunSeen,
    after: timedelta = timedelta(0),
    idle: timedelta | None = None,
    asleep: Callable[[], str | None] = never_sleeps,
) -> Launch | Wait | Close:
    now = TWO + after

    def look() -> State:
        assert standing is not None, "the runs alone should have decided"
        return standing

    return decide_night(NIGHT, look, runs, now, None if idle is None else now - idle, asleep=asleep)


def test_nothing_changed_is_skipped_and_says_what_was_looked_at() -> None:
    decision = decide(CURRENT)
    assert isinstance(decision, Close)
    assert decision.outcome == "skipped"
    assert "nothing changed: manifest mmmmmmmmmmmm is the one tried last" in decision.reason
    assert "looked at 3 shards" in decision.reason


@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_a_policy_the_gate_refused_is_not_tried_again_on_the_same_manifest(verdict: str) -> None:
    decision = decide(replace(CURRENT, train=("registered_model",), verdict=verdict))
    assert isinstance(decision, Close)
    assert decision.outcome == "skipped"
    assert f"the gate said {verdict} to its policy" in decision.reason


def test_a_policy_that_passed_and_was_not_registered_is_registered() -> None:
    assert decide(replace(CURRENT, train=("registered_model",))) == Launch("train", nodes=("registered_model",))


def test_what_changed_is_trained_and_only_what_is_behind() -> None:
    assert decide(READY) == Launch("train", nodes=TRAIN)


def test_what_a_version_makes_anew_is_launched_in_no_phase_before_a_person_has_accepted_it() -> None:
    moved = (Moved("preference_shard", 3, 4, ("a", "b")), Moved("policy_checkpoint", 2, 3))
    for behind in (READY, SHARD_BEHIND, replace(CURRENT, base=("sft_dataset",)), replace(READY, manifest_behind=True)):
        decision = decide(replace(behind, upgrade=moved), after=timedelta(hours=3), idle=2 * GRACE)
        assert decision == Wait(
            "waits for `align upgrade --accept`: this version makes anew preference_shard (code version 3 → 4, "
            "2 artifacts), policy_checkpoint (code version 2 → 3, 1 artifact)"
        )
    under_way = decide(None, run("train", mine=True))
    assert isinstance(under_way, Wait) and "in progress" in under_way.reason


def test_after_the_acceptance_shards_have_the_whole_time_until_the_deadline() -> None:
    accepted = replace(SHARD_BEHIND, manifest_behind=True, accepted_at=TWO + timedelta(hours=8))
    assert decide(accepted, after=timedelta(hours=9), idle=2 * GRACE) == Launch("shards", shards=("b",))
    assert decide(accepted, after=timedelta(hours=10), idle=2 * GRACE) == Launch("manifest", ("preference_manifest",))
    long_ago = replace(accepted, accepted_at=TWO - timedelta(days=8))
    assert decide(long_ago, after=timedelta(hours=2), idle=2 * GRACE) == Launch("manifest", ("preference_manifest",))


def test_the_manifest_is_pinned_before_anything_is_trained() -> None:
    other = replace(CURRENT, manifest_behind=True)
    assert decide(other) == Launch("manifest", nodes=("preference_manifest",))
    assert isinstance(decide(None, run("manifest", mine=True)), Wait)
    pinned = run("manifest", "succeeded", mine=True)
    assert decide(READY, pinned) == Launch("train", nodes=TRAIN)
    same = decide(CURRENT, pinned)
    assert isinstance(same, Close)
    assert same.outcome == "skipped", "another list of what was left out, and the same rows"


def test_new_rows_wait_where_they_are_all_that_is_new() -> None:
    other = replace(CURRENT, manifest_behind=True)
    pinned = Launch("manifest", nodes=("preference_manifest",))
    assert decide(other, asleep=lambda: "40 new rows, 500 asked for") == Close("slept", "40 new rows, 500 asked for")
    assert decide(other, asleep=lambda: None) == pinned

    def asleep() -> str:
        raise AssertionError("more than rows is new, and nobody asks")

    for more in ({"train": TRAIN}, {"manifest": None}):  # other settings or a night that failed, and the first night
        assert decide(replace(other, **more), asleep=asleep) == pinned  # type: ignore[arg-type]
    refused = replace(other, train=("registered_model",), verdict="fail")
    assert decide(refused, asleep=lambda: "few") == Close("slept", "few"), "the gate said no, and that is settled"
    shard = decide(replace(other, shards=("b",)), idle=2 * GRACE, asleep=asleep)
    assert shard == Launch("shards", shards=("b",)), "rows are read and scored while they wait"


def test_rows_that_wait_are_measured_once_and_what_that_finds_may_wake_the_night() -> None:
    other = replace(CURRENT, manifest_behind=True, incoming=("incoming/new_rows",))
    few = Close("slept", "few")
    assert decide(other, asleep=lambda: "few") == Launch("measure", nodes=("incoming/new_rows",))
    assert isinstance(decide(other, run("measure", mine=True), asleep=lambda: "few"), Wait)
    for ended in ("failed", "succeeded"):  # a shard may have come meanwhile, and the next night measures it
        assert decide(other, run("measure", ended, mine=True), asleep=lambda: "few") == few
    pinned = Launch("manifest", nodes=("preference_manifest",))
    assert decide(other, run("measure", "succeeded", mine=True), asleep=lambda: None) == pinned
    sampled = replace(other, pinning=("candidates", "preference_manifest"))
    assert decide(sampled, asleep=lambda: "few") == few, "answers are not sampled for a measurement"

    bounded = replace(other, bounded=True)  # what is found may be what the gate refuses
    assert decide(bounded, asleep=lambda: None) == Launch("measure", nodes=("incoming/new_rows",))
    assert decide(bounded, run("measure", "succeeded", mine=True), asleep=lambda: None) == pinned
    assert decide(bounded, run("measure", "succeeded", mine=True), asleep=lambda: "few") == few


def test_a_manifest_that_cannot_be_pinned_ends_the_night() -> None:
    failed = run("manifest", "failed", mine=True, told="no shard to train on (a: not built)")
    assert decide(None, failed) == Close("failed", "the manifest: no shard to train on (a: not built)")


def test_what_changes_after_the_manifest_was_pinned_is_for_the_next_night() -> None:
    pinned = run("manifest", "succeeded", mine=True)
    changed = replace(READY, shards=("b",), reference=("c",), manifest_behind=True, unsettled={"d": "may be written"})
    assert decide(changed, pinned, idle=2 * GRACE) == Launch("train", nodes=TRAIN)
    decision = decide(State(base=("sft_checkpoint",)), pinned)
    assert isinstance(decision, Close)
    assert (decision.outcome, decision.reason) == (
        "failed",
        "sft_checkpoint: changed after the manifest was pinned",
    )


def test_base_and_sft_come_first_whatever_the_deadline() -> None:
    behind = State(base=("sft_checkpoint",), reference=("a", "b"), total=2)
    assert decide(behind, after=2 * DEADLINE) == Launch("base", nodes=("sft_checkpoint",))
    assert isinstance(decide(behind, run("base"), after=2 * DEADLINE), Wait)
    assert isinstance(decide(None, run("base", mine=True), after=2 * DEADLINE), Wait)


def test_a_base_that_failed_ends_the_night_with_the_reason() -> None:
    assert decide(None, run("base", "failed", mine=True, told="no space left")) == Close(
        "failed", "the base model and SFT: no space left"
    )


def test_a_base_that_is_out_of_date_again_is_not_made_all_night() -> None:
    decision = decide(State(base=("base_model",)), run("base", "succeeded", mine=True))
    assert isinstance(decision, Close)
    assert decision.outcome == "failed"


def test_the_deadline_counts_from_the_end_of_the_base_phase() -> None:
    made = run("base", "succeeded", mine=True, ended_at=TWO + DEADLINE)
    assert isinstance(decide(REFERENCE_BEHIND, made, run("reference"), after=DEADLINE + timedelta(minutes=1)), Wait)
    assert decide(REFERENCE_BEHIND, made, run("reference"), after=2 * DEADLINE) == Launch("train", nodes=TRAIN)


@pytest.mark.parametrize(("standing", "phase"), [(SHARD_BEHIND, "shards"), (REFERENCE_BEHIND, "reference")])
class TestShardsThatAreBehind:
    def test_are_left_to_the_sensors_at_first(self, standing: State, phase: str) -> None:
        for idle in (None, GRACE - timedelta(seconds=1)):
            decision = decide(standing, idle=idle)
            assert isinstance(decision, Wait)
            assert decision.idle

    def test_are_waited_for_while_somebody_makes_them(self, standing: State, phase: str) -> None:
        for mine in (False, True):
            decision = decide(standing, run(phase, mine=mine), idle=2 * GRACE)
            assert isinstance(decision, Wait)
            assert not decision.idle
            assert "b: run 01234567 is making them" in decision.reason

    def test_are_made_by_the_night_where_nobody_does(self, standing: State, phase: str) -> None:
        assert decide(standing, idle=GRACE) == Launch(phase, shards=("b",))

    @pytest.mark.parametrize("state", ["failed", "succeeded"])
    def test_are_tried_once_and_the_night_goes_on_without(self, standing: State, phase: str, state: str) -> None:
        decision = decide(replace(standing, train=TRAIN), run(phase, state, mine=True), idle=2 * GRACE)
        assert decision == Launch("train", nodes=TRAIN)

    def test_are_left_out_after_the_deadline(self, standing: State, phase: str) -> None:
        for mine in (False, True):
            decision = decide(replace(standing, train=TRAIN), run(phase, mine=mine), after=DEADLINE)
            assert decision == Launch("train", nodes=TRAIN)

    def test_are_named_when_nothing_else_changed(self, standing: State, phase: str) -> None:
        decision = decide(replace(standing, train=()), run(phase), after=DEADLINE)
        assert isinstance(decision, Close)
        assert decision.outcome == "skipped"
        assert "not ready: b" in decision.reason


def test_files_that_may_still_be_written_are_waited_for_until_the_deadline() -> None:
    written = replace(READY, unsettled={"c": "may still be being written"})
    assert decide(written) == Wait("c: may still be being written")
    assert decide(written, after=DEADLINE) == Launch("train", nodes=TRAIN)


def test_files_that_cannot_be_read_are_not_waited_for_and_are_named() -> None:
    broken = {"c": "c.jsonl: permission denied"}
    assert decide(replace(READY, unreadable=broken)) == Launch("train", nodes=TRAIN)
    decision = decide(replace(CURRENT, unreadable=broken))
    assert isinstance(decision, Close)
    assert "not ready: c" in decision.reason


def test_two_trainings_of_one_recipe_are_avoided_until_the_deadline() -> None:
    assert isinstance(decide(READY, run("train")), Wait)
    assert decide(READY, run("train"), after=DEADLINE) == Launch("train", nodes=TRAIN)


@pytest.mark.parametrize(
    ("trained", "outcome", "told"),
    [
        (run("train", "succeeded", mine=True), "passed", "trained and evaluated"),
        (run("train", "failed", mine=True, told="out of memory"), "failed", "out of memory"),
        (run("train", "failed", mine=True, verdict="fail", told="worse"), "gated", "the gate says fail: worse"),
    ],
)
def test_the_end_of_training_is_the_end_of_the_night(trained: RunSeen, outcome: str, told: str) -> None:
    decision = decide(None, run("shards", "succeeded", mine=True), trained)
    assert isinstance(decision, Close)
    assert decision.outcome == outcome
    assert told in decision.reason


def test_training_is_waited_for_past_the_deadline() -> None:
    assert isinstance(decide(None, run("train", mine=True), after=3 * DEADLINE), Wait)


HOURS, COST = Limits(max_hours=6), Limits(max_hours=6, max_cost=50.0)
SIX = timedelta(hours=6)
LONGER = "longer than schedule.max_hours, 6 hours since its first run was asked for"
DEARER = "schedule.max_cost is reached: 50.50 of 50.00 spent"


@pytest.mark.parametrize(
    ("limits", "after", "spent", "reason"),
    [
        (HOURS, SIX, None, LONGER),
        (COST, timedelta(hours=1), 50.5, DEARER),
        (COST, timedelta(hours=1), 49.5, None),
        (HOURS, SIX - timedelta(seconds=1), 99.0, None),
        (Limits(), 9 * SIX, 99.0, None),
    ],
)
class TestANightBeyondALimit:
    """Its runs were asked for at two o'clock, and may be in a queue ever since."""

    def step(
        self, limits: Limits, after: timedelta, spent: float | None, *runs: RunSeen, state: State = READY
    ) -> Launch | Wait | Close | End:
        asked = [replace(one, asked_at=TWO) for one in runs]
        return decide_night(NIGHT, lambda: state, asked, TWO + after, None, limits, spent)

    @pytest.mark.parametrize("phase", ["base", "manifest", "train"])
    def test_has_its_runs_ended_and_closes_when_they_have(
        self, limits: Limits, after: timedelta, spent: float | None, reason: str | None, phase: str
    ) -> None:
        going = self.step(limits, after, spent, run(phase, mine=True))
        canceled = self.step(limits, after, spent, run(phase, "failed", mine=True, canceled=True, told="canceled"))
        if reason is None:
            assert isinstance(going, Wait)
            assert isinstance(canceled, Close) and "canceled" in canceled.reason
        else:
            assert (going, canceled) == (End(reason), Close("failed", reason))

    def test_launches_nothing_more(
        self, limits: Limits, after: timedelta, spent: float | None, reason: str | None
    ) -> None:
        step = self.step(limits, after, spent, run("base", "succeeded", mine=True))
        assert step == (Launch("train", nodes=TRAIN) if reason is None else Close("failed", reason))

    def test_keeps_what_is_done(
        self, limits: Limits, after: timedelta, spent: float | None, reason: str | None
    ) -> None:
        passed = self.step(limits, after, spent, run("train", "succeeded", mine=True))
        failed = self.step(limits, after, spent, run("train", "failed", mine=True, told="out of memory"))
        assert (passed, failed) == (Close("passed", "trained and evaluated"), Close("failed", "out of memory"))

    def test_is_one_of_its_own_runs(
        self, limits: Limits, after: timedelta, spent: float | None, reason: str | None
    ) -> None:
        assert not isinstance(self.step(limits, after, None, run("train")), End), "it is another's"


def test_a_night_that_was_recorded_late_has_its_whole_deadline() -> None:
    late = NIGHT.model_copy(update={"recorded_at": TWO + 5 * DEADLINE})
    decision = decide_night(late, lambda: SHARD_BEHIND, [run("shards")], TWO + 5.5 * DEADLINE, None)
    assert isinstance(decision, Wait)


def test_nothing_is_made_for_a_source_of_which_nothing_can_be_used() -> None:
    unusable = State(base=("sft_checkpoint",), total=1, unreadable={"a": "a.jsonl: holds unpaired rows"})
    assert decide(unusable) == Wait("a.jsonl: holds unpaired rows")
    assert decide(unusable, after=DEADLINE) == Close("failed", "a.jsonl: holds unpaired rows")
    assert isinstance(decide(replace(unusable, total=2)), Launch)
