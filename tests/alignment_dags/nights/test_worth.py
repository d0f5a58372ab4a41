"""When new rows wait: by their number, by what a night could prove, and not for ever."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from alignment.data.files import pin_file
from alignment.data.mixing import Mix
from alignment.errors import BadInput
from alignment.recipe import Reading, Recipe, parse_recipe
from alignment.recipe.schedule import Schedule, Worth
from alignment.stages import execute
from alignment.stages.preference_manifest import STAGE as MANIFEST
from alignment.stages.preference_manifest import ManifestRequest, TrainRows
from alignment.stages.preference_shard import STAGE as SHARD
from alignment.stages.preference_shard import ShardRequest
from alignment.store import Artifact, Store
from alignment_dags.cli.worth import show_worth
from alignment_dags.nights.changes import changed_rows, settings_of
from alignment_dags.nights.night import NightWorth, Provable
from alignment_dags.nights.worth import provable_by, reason_to_sleep, reason_to_wake, told
from eval.gate.compare import MetricComparison, compare_samples
from eval.stages.evaluation_report import ReportSummary
from eval.suites.samples import Sample
from eval.summaries import NewRowsSummary
from tests.alignment_dags.nights.small import RECIPE, TWO

WEAK = Provable(metric="ifeval/acc", change=0.08, margin=0.05, clusters=100, needed=250, reports=3, width=1.0)
STRONG = WEAK.model_copy(update={"change": 0.04})
WORTH = NightWorth(
    new_rows=100, gone_rows=0, trained_rows=4_000, trained_at=TWO, provable=[WEAK, STRONG], seconds=1_200, price=3.2
)
NEXT = TWO + timedelta(days=3)
RED = NewRowsSummary(
    new=20, measured=20, accuracy=0.4, held_out_accuracy=0.7, drift=-0.3, drift_low=-0.5, drift_high=-0.1
)


def sleeps(worth: NightWorth = WORTH, next_night: datetime = NEXT, **rule: Any) -> str | None:
    return reason_to_sleep(worth, Worth(**rule), next_night)


def test_a_night_sleeps_until_both_the_number_and_the_share_of_new_rows_are_reached() -> None:
    assert sleeps(min_new_rows=100, min_new_share=0.025) is None
    assert sleeps(min_new_rows=101) == (
        "100 new rows since the training of 2026-11-20 on 4,000; the smallest change that a night could prove: "
        "ifeval/acc 8.0 percentage points, ifeval/acc 4.0 percentage points; it would take 1,200 s and 3.20; "
        "schedule.worth.min_new_rows asks for 101"
    )
    assert "schedule.worth.min_new_share asks for 104" in str(sleeps(min_new_rows=1, min_new_share=0.026))


def test_a_night_that_could_not_prove_its_margin_sleeps_and_says_how_many_items_would_do() -> None:
    reason = str(sleeps(provable=True))
    assert "ifeval/acc has a margin of 5.0 percentage points, and 250 items would be enough instead of 100" in reason
    for known in ([STRONG], [WEAK.model_copy(update={"change": None, "needed": None})], []):
        assert sleeps(WORTH.model_copy(update={"provable": known}), provable=True) is None


def test_rows_that_are_gone_never_wait_and_no_row_waits_for_ever() -> None:
    assert sleeps(WORTH.model_copy(update={"gone_rows": 1}), min_new_rows=500) is None
    assert sleeps(WORTH.model_copy(update={"gone_rows": 1, "new_rows": 0}), min_new_rows=500) is None
    assert sleeps(min_new_rows=500, max_wait_days=2.9) is None, "the next night would be too late"
    assert sleeps(min_new_rows=500, max_wait_days=3) is not None


@pytest.mark.parametrize(("cron", "days", "most"), [("0 2 * * *", 1, 1), ("0 2 * * 1", 7, 7), ("0 2 * * *", 14, 14)])
def test_no_row_waits_for_longer_than_it_says_though_a_training_begins_after_its_night(
    cron: str, days: int, most: int
) -> None:
    schedule = Schedule(cron=cron, worth=Worth(min_new_rows=500, max_wait_days=days))
    night = schedule.next_night(TWO)
    worth = WORTH.model_copy(update={"trained_at": night + timedelta(minutes=10)})
    assert schedule.worth is not None
    while reason_to_sleep(worth, schedule.worth, schedule.next_night(night)) is not None:
        night = schedule.next_night(night)
    waited = night - worth.trained_at
    assert timedelta(days=most) - timedelta(days=1) < waited <= timedelta(days=most)


def test_nothing_new_is_nothing_to_train_on_whatever_the_rule_asks() -> None:
    known = WORTH.model_copy(update={"new_rows": 0})
    told = "0 new rows since the training of 2026-11-20 on 4,000: nothing to train on is new or gone"
    assert sleeps(known, min_new_rows=1) == told
    assert sleeps(known, min_new_rows=500, max_wait_days=0.1) == told


def test_rows_that_the_gate_would_refuse_anyway_wait_and_rows_that_are_gone_do_not() -> None:
    unfit = WORTH.model_copy(update={"refused": ["new_rows/accuracy itself: 40 %"], "new_rows": 900, "measured": RED})
    reason = str(sleeps(unfit, min_new_rows=5, wake_on_drift=True, max_wait_days=0.1))
    assert reason.endswith("the gate would refuse whatever is trained on them: new_rows/accuracy itself: 40 %")
    assert sleeps(unfit.model_copy(update={"gone_rows": 1}), min_new_rows=5) is None


def test_the_alarm_of_a_drift_wakes_a_night_that_is_asked_to_look_at_it() -> None:
    drifted = WORTH.model_copy(update={"measured": RED})
    assert sleeps(drifted, min_new_rows=500, wake_on_drift=True) is None
    assert "40.0% of 20 rows that it never saw" in str(sleeps(drifted, min_new_rows=500))
    calm = WORTH.model_copy(update={"measured": RED.model_copy(update={"drift_high": 0.0})})
    tried = drifted.model_copy(update={"drift_tried": True})
    assert sleeps(tried, min_new_rows=500, wake_on_drift=True) is not None, "it is no news after a training"
    assert sleeps(calm, min_new_rows=500, wake_on_drift=True) is not None
    rule = {"worth": {"min_new_rows": 5, "wake_on_drift": True}}
    with pytest.raises(BadInput, match=r"wake_on_drift looks at new rows, which are not measured: add evals\.new_rows"):
        parse_recipe(RECIPE.model_dump(mode="json", exclude_unset=True) | {"schedule": rule}, "-", {})


def test_a_night_that_wakes_says_what_for() -> None:
    def wakes(rule: dict[str, Any], **changed: Any) -> str:
        return reason_to_wake(WORTH.model_copy(update=changed), Worth(min_new_rows=500, **rule), NEXT)

    since = "since the training of 2026-11-20 on 4,000"
    assert wakes({}, new_rows=500) == f"500 new rows {since}: as much as schedule.worth asks for"
    waited = "schedule.worth.max_wait_days: no row waits for more than 2.5 days"
    assert wakes({"max_wait_days": 2.5}, new_rows=1) == f"1 new row {since}: {waited}"
    assert wakes({}, gone_rows=2) == f"100 new rows, 2 gone {since}: rows that are gone do not wait"
    assert wakes({"wake_on_drift": True}, measured=RED).startswith(
        f"100 new rows {since}: schedule.worth.wake_on_drift; the champion prefers the chosen side in 40.0% of 20 rows"
    )


def test_a_rule_that_asks_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="give min_new_rows, min_new_share or provable"):
        Worth(max_wait_days=3)


def test_the_rows_that_a_point_of_a_sweep_took_are_no_other_settings_of_the_data_and_a_mix_is() -> None:
    whole = ManifestRequest(shards={}, held_out_fraction=0.1)
    mixed, other = (whole.model_copy(update={"mix": (Mix(shards=("a",), max_rows=most),)}) for most in (10, 20))
    grown = whole.model_copy(update={"mix": (Mix(shards=("a", "b"), max_rows=10),)})
    assert settings_of(mixed) == settings_of(grown) != settings_of(other) != settings_of(whole)
    part = whole.model_copy(update={"train_rows": TrainRows(most=100)})
    assert settings_of(part) == settings_of(whole) != settings_of(whole.model_copy(update={"max_length_gap": 5}))


def compared(lost: int, gained: int, items: int = 200) -> MetricComparison:
    def side(name: str) -> list[Sample]:
        right = {"before": range(100), "after": range(lost, 100 + gained)}[name]
        return [
            Sample("ifeval", str(n), str(n), "prompt_level_strict_acc", float(n in right), "") for n in range(items)
        ]

    return compare_samples(side("before"), side("after"))["prompt_level_strict_acc"]


def report(sft: MetricComparison, champion: MetricComparison | None = None) -> ReportSummary:
    def suites(one: MetricComparison) -> dict[str, dict[str, MetricComparison]]:
        return {"ifeval": {"prompt_level_strict_acc": one}}

    return ReportSummary(
        verdict="pass", comparisons=suites(sft), champion=None if champion is None else suites(champion)
    )


def recipe(**asked: float) -> Recipe:
    gate = {"metrics": {"ifeval/prompt_level_strict_acc": asked}}
    written = RECIPE.model_dump(mode="json", exclude_unset=True)
    return parse_recipe(written | {"evals": {"ifeval": {"embedded": "micro"}}, "gate": gate}, "-", {})


def test_what_could_be_proved_is_by_the_spread_against_the_champion_where_there_is_one() -> None:
    calm, wild = compared(4, 4), compared(30, 30)
    (alone,) = provable_by(recipe(no_regression=0.05), [report(wild)])
    (both,) = provable_by(recipe(no_regression=0.05), [report(wild, calm), report(wild)])
    assert alone.change is not None and both.change is not None
    assert both.change < 0.06 < 0.1 < alone.change and (alone.reports, both.reports) == (1, 1)
    assert (both.clusters, both.margin, both.width) == (200, 0.05, 1.0)
    assert alone.needed is not None and alone.needed > 200
    assert (alone.against, both.against) == ("sft", "champion")
    assert alone.is_enough, "else no night would ever make the first comparison with a champion"
    (weak,) = provable_by(recipe(no_regression=0.05), [report(wild, wild)])
    assert not weak.is_enough


def test_the_margin_is_the_gates_own_and_of_an_improvement_the_champions() -> None:
    calm = [report(compared(4, 4))]
    margins = {
        "no_regression": provable_by(recipe(no_regression=0.02), calm)[0].margin,
        "improve": provable_by(recipe(improve=0.1), calm)[0].margin,
        "champion": provable_by(recipe(improve=0.1, champion_margin=0.03), calm)[0].margin,
    }
    assert margins == {"no_regression": 0.02, "improve": 0.05, "champion": 0.03}
    wide, narrow = (
        provable_by(recipe(no_regression=ours, champion_margin=champions), calm)[0].margin
        for ours, champions in ((0.02, 0.06), (0.06, 0.02))
    )
    assert (wide, narrow) == (0.06, 0.02), "a night's policy is compared with the champion"
    assert provable_by(recipe(improve=0.1, champion_margin=0.0), calm) == [], "no number of items would prove it"
    assert provable_by(recipe(at_least=0.3), calm) == [] and provable_by(recipe(no_regression=0.1), []) == []


@pytest.fixture
def shard(store: Store, tmp_path: Path) -> Callable[[str, Iterable[int]], Artifact]:
    """Makes a shard of the rows with these numbers."""

    def made(name: str, numbers: Iterable[int]) -> Artifact:
        rows = ({"prompt": f"p{number}", "chosen": "c", "rejected": "r"} for number in numbers)
        return made_of(store, tmp_path / f"{name}.jsonl", rows)

    return made


def made_of(store: Store, path: Path, rows: Iterable[dict[str, Any]], reading: Reading | None = None) -> Artifact:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return execute(SHARD, ShardRequest(file=pin_file(str(path)), reading=reading or Reading()), store).artifact


def test_rows_are_counted_by_their_ids_whatever_shards_hold_them(
    store: Store, shard: Callable[[str, Iterable[int]], Artifact]
) -> None:
    def pinned(*shards: Artifact) -> ManifestRequest:
        return ManifestRequest(shards={f"s{n}": one for n, one in enumerate(shards)}, held_out_fraction=0.5)

    first, second = shard("first", range(40)), shard("second", range(40, 80))
    before = execute(MANIFEST, pinned(first, second), store)
    train = int(before.summary["train"])
    assert changed_rows(store, before.artifact, pinned(second, first)) == (0, 0), "other names"
    everything = shard("everything", range(80))
    assert changed_rows(store, before.artifact, pinned(everything)) == (0, 0), "the same rows in one shard"
    more = shard("more", range(70, 160))
    new, gone = changed_rows(store, before.artifact, pinned(first, second, more))
    assert 20 < new < 60 and gone == 0, "held-out rows are not trained on, and ten of the rows were known"
    assert new == execute(MANIFEST, pinned(first, shard("rest", range(40, 160))), store).summary["train"] - train
    late = pinned(first).model_copy(update={"left_out": {"s1": "no reference log-probs"}})
    assert changed_rows(store, before.artifact, late) == (0, 0), "a shard that is late is not gone"
    assert changed_rows(store, before.artifact, pinned(first)) == (0, 40), "held-out rows are gone as well"
    split = pq.read_table(store.fetch(before.artifact) / "split.parquet").to_pylist()
    of_second = [row["row_id"] for row in split if row["shard"] == "s1"]
    behind = late.model_copy(
        update={"left_out": {"s1": "rows of it were withdrawn, and it was not built without them"}}
    )
    assert changed_rows(store, before.artifact, behind, frozenset(of_second[:3])) == (0, 3), "not the whole shard"
    assert changed_rows(store, before.artifact, pinned(first, second), frozenset([*of_second[:1], "of others"])) == (
        0,
        1,
    )


def test_a_row_with_another_weight_is_new_where_training_reads_weights(store: Store, tmp_path: Path) -> None:
    def pinned(weights: list[float], reads: bool) -> ManifestRequest:
        rows = ({"prompt": f"p{n}", "chosen": "c", "rejected": "r", "weight": one} for n, one in enumerate(weights))
        shard = made_of(store, tmp_path / "rows.jsonl", rows, Reading(weight_column="weight"))
        return ManifestRequest(shards={"rows": shard}, held_out_fraction=0.0, reads_numbers=reads)

    for reads, corrected in ((True, 2), (False, 0)):
        before = execute(MANIFEST, pinned([1.0, 1.0, 1.0, 1.0], reads), store).artifact
        assert changed_rows(store, before, pinned([1.0, 0.5, 1.0, 2.0], reads)) == (corrected, 0)


def test_of_a_mix_those_rows_count_that_it_gives(store: Store, shard: Callable[[str, Iterable[int]], Artifact]) -> None:
    def pinned(*web: Artifact) -> ManifestRequest:
        mix = (
            Mix(shards=tuple(sorted(one.digest for one in web)), weight=1.0, max_rows=60),
            Mix(shards=(team.digest,), weight=1.0),
        )
        shards = {"team": team} | {f"web{n}": one for n, one in enumerate(web)}
        return ManifestRequest(shards=shards, held_out_fraction=0.25, mix=mix)

    def given(request: ManifestRequest) -> set[str]:
        rows = pq.read_table(store.fetch(execute(MANIFEST, request, store).artifact) / "split.parquet").to_pylist()
        return {row["row_id"] for row in rows if row["split"] == "train"}

    team, first, second = shard("team", range(80)), shard("first", range(100, 200)), shard("second", range(150, 500))
    before = execute(MANIFEST, pinned(first), store).artifact
    added = given(pinned(first, second)) - given(pinned(first))
    assert 0 < len(added) < 60 and changed_rows(store, before, pinned(first, second)) == (len(added), 0)
    assert changed_rows(store, before, pinned(first)) == (0, 0)


@pytest.mark.parametrize(
    ("new", "gone", "more", "said"),
    [
        (3, 0, {"sleeps": "3 of 9"}, "the next night sleeps: 3 of 9"),
        (3, 0, {}, "the next night trains"),
        (3, 0, {"scheduled": False}, "no night trains on them, as the recipe has no schedule: `align run` does"),
        (0, 1, {"wakes": "1 gone"}, "the next night trains: 1 gone"),
        (0, 0, {}, "no row is new or gone, so rows give no reason to train"),
        (0, 0, {"late": ["web"]}, "the next night trains"),
    ],
)
def test_a_person_is_told_what_the_next_night_does(
    new: int, gone: int, more: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    worth = WORTH.model_copy(update={"new_rows": new, "gone_rows": gone}).model_dump(mode="json")
    plain = {"recipe": "r", "told": told(WORTH), "worth": worth}
    show_worth(plain | {"sleeps": None, "wakes": None, "scheduled": True, "late": []} | more)
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == said
    assert ("not counted are rows of 1 shard not read or scored yet: web" in lines) is ("late" in more)
