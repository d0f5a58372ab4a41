"""What follows from one look: what is asked for, what goes, what is doubted."""

from __future__ import annotations

from typing import Any

import pytest

from alignment_dags.source import decide as module
from alignment_dags.source.decide import Actions, Asked, decide
from alignment_dags.source.observe import Seen


def after(source: dict[str, str], made: dict[str, str], asked: dict[str, Asked] | None = None, **more: Any) -> Actions:
    """`source` and `made` map shards to keys: what the files hold now, and what the store has."""
    seen = Seen(keys=source, waiting=more.get("waiting", {}), unreadable=more.get("unreadable", {}))
    return decide(
        seen, more.get("known", list(made)), made, asked or {}, more.get("running", set()), more.get("meant", ())
    )


def shards(count: int) -> dict[str, str]:
    return {f"day-{index}": f"content {index}" for index in range(count)}


def test_nothing_follows_from_a_source_that_is_as_it_was() -> None:
    assert after(shards(7), shards(7)) == Actions()


def test_new_and_changed_shards_are_asked_for_and_no_others() -> None:
    made = after({**shards(7), "day-3": "changed", "new": "content"}, shards(7))
    assert (made.ask, made.add, made.drop) == (["day-3", "new"], ["new"], [])


def test_a_shard_in_dagster_without_an_artifact_is_asked_for_and_not_added_again() -> None:
    made = after({"a": "1"}, {}, known=["a"])
    assert (made.ask, made.add) == (["a"], [])


def test_what_waits_is_neither_asked_for_nor_gone() -> None:
    made = after({}, shards(2), waiting=dict.fromkeys([*shards(2), "new"], "being written"))
    assert made == Actions()


def test_an_unreadable_shard_stays_as_it_is_and_is_told_of() -> None:
    made = after({}, shards(1), unreadable={"day-0": "day-0.jsonl: permission denied"})
    assert (made.ask, made.drop) == ([], [])
    assert "day-0.jsonl: permission denied" in made.troubles[0]


@pytest.mark.parametrize(("count", "gone", "withdrawn"), [(3, 2, True), (5, 1, True), (5, 2, False), (100, 21, False)])
def test_shards_that_are_gone_are_withdrawn_unless_too_many_went_at_once(
    count: int, gone: int, withdrawn: bool
) -> None:
    left = dict(list(shards(count).items())[gone:])
    made = after(left, shards(count))
    assert made.drop == ([f"day-{index}" for index in range(gone)] if withdrawn else [])
    assert bool(made.troubles) is not withdrawn
    assert withdrawn or f"{gone} of {count} shards are gone" in made.troubles[0]


def test_what_is_known_to_the_store_alone_goes_too() -> None:
    assert after({"a": "1"}, {"a": "1", "orphan": "2"}, known=["a"]).drop == ["orphan"]


def test_renamed_files_are_not_taken_for_lost_ones() -> None:
    renamed = {f"week-{index}": key for index, key in enumerate(shards(10).values())}
    made = after(renamed, shards(10))
    assert made.drop == list(shards(10))
    assert made.add == list(renamed)
    assert made.troubles == []


def test_other_shards_are_followed_while_a_mass_disappearance_is_doubted() -> None:
    made = after({"day-9": "changed", "new": "content"}, shards(10))
    assert made.ask == ["day-9", "new"]
    assert made.drop == []


def asked(key: str, **more: Any) -> dict[str, Asked]:
    return {"a": Asked(key=key, run_key="a:1", **more)}


def test_while_a_shards_run_is_under_way_no_other_is_asked_for_even_if_it_changed_again() -> None:
    for content in ("1", "2"):
        made = after({"a": content}, {}, asked("1"), running={"a:1"})
        assert (made.ask, made.asked) == ([], asked("1"))


def test_a_shard_that_changed_since_it_was_asked_for_is_asked_for_again() -> None:
    assert after({"a": "2"}, {"a": "1"}, asked("1", tries=2, given_up=True)).ask == ["a"]


def test_a_shard_that_is_current_is_asked_for_no_more() -> None:
    assert after({"a": "1"}, {"a": "1"}, asked("1")) == Actions()


def test_a_failed_shard_gets_a_second_run_and_then_waits_for_a_correction_and_is_told_of_once() -> None:
    assert after({"a": "1"}, {}, asked("1"), known=["a"]).ask == ["a"]
    made = after({"a": "1"}, {}, asked("1", tries=2), known=["a"])
    assert (made.ask, made.given_up) == ([], ["a"])
    again = after({"a": "1"}, {}, made.asked, known=["a"])
    assert (again.ask, again.given_up, again.asked) == ([], [], made.asked)


def test_a_failed_shard_that_is_being_rewritten_is_not_forgotten() -> None:
    made = after({}, {}, asked("1", tries=2), known=["a"], waiting={"a": "being written"})
    assert made.asked == asked("1", tries=2)


def test_one_look_asks_for_no_more_than_dagster_can_take_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASKED_AT_ONCE", 3)
    first = after(shards(5), {})
    assert (first.ask, len(first.add)) == (["day-0", "day-1", "day-2"], 5)
    done = dict(list(shards(5).items())[:3])
    assert after(shards(5), done, known=list(shards(5))).ask == ["day-3", "day-4"]


def test_what_a_person_withdrew_goes_even_where_the_source_is_in_doubt() -> None:
    made = after({}, shards(10), meant=["day-0", "day-1"])
    assert made.drop == ["day-0", "day-1"]
    assert "8 of 10 shards are gone" in made.troubles[0]
    left = {name: key for name, key in shards(10).items() if name not in ("day-0", "day-1", "day-2")}
    made = after(left, shards(10), meant=["day-0", "day-1", "day-2"])
    assert (made.drop, made.troubles) == (["day-0", "day-1", "day-2"], [])
