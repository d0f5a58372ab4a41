"""When new rows wait: by their number, by what a night could prove, and not for ever."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from alignment.data.files import pin_file
from alignment.errors import BadInput
from alignment.recipe import Recipe, parse_recipe
from alignment.recipe.schedule import Worth
from alignment.stages import execute
from alignment.stages.preference_manifest import STAGE as MANIFEST
from alignment.stages.preference_manifest import ManifestRequest, TrainRows
from alignment.stages.preference_shard import STAGE as SHARD
from alignment.stages.preference_shard import ShardRequest
from alignment.store import Artifact, Store
from alignment_dags.cli.worth import show_worth
from alignment_dags.nights.night import NightWorth, Provable
from alignment_dags.nights.worth import changed_rows, provable_by, reason_to_sleep, reason_to_wake, settings_of, told
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
NOW = TWO + timedelta(days=3)


def sleeps(worth: NightWorth = WORTH, now: datetime = NOW, **rule: Any) -> str | None:
    return reason_to_sleep(worth, Worth(**rule), now)


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
    assert sleeps(WORTH.model_copy(update={"new_rows": 0}), min_new_rows=500) is None
    assert sleeps(min_new_rows=500, max_wait_days=3) is None
    assert sleeps(min_new_rows=500, max_wait_days=3.5) is not None


def test_the_alarm_of_a_drift_wakes_a_night_that_is_asked_to_look_at_it() -> None:
    red = NewRowsSummary(
        new=20, measured=20, accuracy=0.4, held_out_accuracy=0.7, drift=-0.3, drift_low=-0.5, drift_high=-0.1
    )
    drifted = WORTH.model_copy(update={"measured": red})
    assert sleeps(drifted, min_new_rows=500, wake_on_drift=True) is None
    assert "40.0% of 20 rows that it never saw" in str(sleeps(drifted, min_new_rows=500))
    calm = WORTH.model_copy(update={"measured": red.model_copy(update={"drift_high": 0.0})})
    assert sleeps(calm, min_new_rows=500, wake_on_drift=True) is not None
    rule = {"worth": {"min_new_rows": 5, "wake_on_drift": True}}
    with pytest.raises(BadInput, match=r"wake_on_drift looks at new rows, which are not measured: add evals\.new_rows"):
        parse_recipe(RECIPE.model_dump(mode="json", exclude_unset=True) | {"schedule": rule}, "-", {})


def test_a_night_that_wakes_says_what_for() -> None:
    def wakes(rule: dict[str, Any], **changed: Any) -> str | None:
        return reason_to_wake(WORTH.model_copy(update=changed), Worth(min_new_rows=500, **rule), NOW)

    since = "since the training of 2026-11-20 on 4,000"
    assert wakes({}, new_rows=500) == f"500 new rows {since}: as much as schedule.worth asks for"
    waited = "schedule.worth.max_wait_days: no row waits for more than 3 days"
    assert wakes({"max_wait_days": 3}, new_rows=1) == f"1 new row {since}: {waited}"
    assert wakes({}, gone_rows=2) == f"100 new rows, 2 gone {since}: rows that are gone do not wait"
    red = NewRowsSummary(
        new=20, measured=20, accuracy=0.4, held_out_accuracy=0.7, drift=-0.3, drift_low=-0.5, drift_high=-0.1
    )
    assert str(wakes({"wake_on_drift": True}, measured=red)).startswith(
        f"100 new rows {since}: schedule.worth.wake_on_drift; the champion prefers the chosen side in 40.0% of 20 rows"
    )
    assert wakes({}, new_rows=0) is None, "other settings, say"


def test_a_rule_that_asks_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="give min_new_rows, min_new_share or provable"):
        Worth(max_wait_days=3)


def test_the_rows_that_a_point_of_a_sweep_took_are_no_other_settings_of_the_data() -> None:
    whole = ManifestRequest(shards={}, held_out_fraction=0.1)
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


def test_rows_are_counted_by_their_ids_whatever_shards_hold_them(store: Store, tmp_path: Path) -> None:
    def shard(name: str, numbers: Iterable[int]) -> Artifact:
        path = tmp_path / f"{name}.jsonl"
        rows = ({"prompt": f"p{number}", "chosen": "c", "rejected": "r"} for number in numbers)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return execute(SHARD, ShardRequest(file=pin_file(str(path))), store).artifact

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
    alone = execute(MANIFEST, pinned(first), store)
    assert changed_rows(store, before.artifact, pinned(first)) == (0, train - int(alone.summary["train"]))


@pytest.mark.parametrize(
    ("new", "gone", "sleeps", "wakes", "said"),
    [
        (3, 0, "3 of 9", None, "the next night sleeps: 3 of 9"),
        (3, 0, None, None, "the next night trains"),
        (0, 1, None, "1 gone", "the next night trains: 1 gone"),
        (0, 0, None, None, "no row is new or gone, so rows give the next night no reason to train"),
    ],
)
def test_a_person_is_told_what_the_next_night_does(
    new: int, gone: int, sleeps: str | None, wakes: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    worth = WORTH.model_copy(update={"new_rows": new, "gone_rows": gone}).model_dump(mode="json")
    show_worth({"recipe": "r", "told": told(WORTH), "worth": worth, "sleeps": sleeps, "wakes": wakes})
    assert capsys.readouterr().out.splitlines()[-1] == said
