"""What was scored between the nights: counted once, in the night whose manifest holds it first."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from alignment.store import Artifact, Commit, Store
from alignment_dags.nights.cost import scored_between
from alignment_dags.nights.night import Night, Scored
from tests.alignment_dags.nights.small import DAY, TWO


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def made(store: Store, kind: str, key: str, at: datetime = TWO, seconds: float = 0.0, **rest: Any) -> Commit:
    attempt = store.begin(kind, key)
    return store.commit(
        attempt,
        digest=f"digest-{key}",
        stage=kind,
        code_version=1,
        inputs=rest.get("inputs", {}),
        summary=rest.get("summary", {}),
        environment={"recipe": rest.get("recipe", "small")},
        started_at=at.isoformat(timespec="seconds"),
        seconds=seconds,
    )


def reference(store: Store, key: str, scored: int, seconds: float, recipe: str = "small") -> Commit:
    summary = {"scored": scored, "tokens": 10 * scored, "cache_hits": 5}
    return made(store, "reference_logprobs", key, seconds=seconds, summary=summary, recipe=recipe)


def manifest(store: Store, key: str, *parts: Commit) -> Artifact:
    inputs = {f"references.{number}": part.artifact for number, part in enumerate(parts)}
    return made(store, "preference_manifest", key, inputs=inputs).artifact


def night(at: datetime, stood_on: Artifact | None = None) -> Night:
    found = Night(recipe="small", scheduled_at=at, recorded_at=at, deadline_minutes=120)
    return found.model_copy(update={"manifest": None if stood_on is None else stood_on.digest})


def test_what_another_recipe_scored_is_its_own_cost(store: Store) -> None:
    taken_over, ours = reference(store, "a", 1400, 8.0, "other"), reference(store, "b", 2, 0.1)
    told = scored_between(store, night(TWO), [], manifest(store, "first", taken_over, ours), set(), None)
    assert (told.shards, told.sequences) == (1, 2)


def test_all_of_a_first_manifest_is_counted_but_what_the_night_scored_itself(store: Store) -> None:
    early, late, own = (reference(store, *one) for one in (("a", 4, 1.0), ("b", 2, 0.5), ("c", 8, 9.0)))
    pinned = manifest(store, "first", early, late, own)
    told = scored_between(store, night(TWO), [], pinned, {own.key}, None)
    assert told == Scored(shards=2, sequences=6, tokens=60, seconds=1.5, price=None)


def test_a_pool_with_a_price_tells_what_it_came_to(store: Store) -> None:
    pinned = manifest(store, "first", reference(store, "a", 4, 1800.0))
    assert scored_between(store, night(TWO), [], pinned, (), 3.0).price == 1.5


def test_what_an_earlier_night_stood_on_is_not_counted_again(store: Store) -> None:
    old, new = reference(store, "a", 4, 1.0), reference(store, "b", 2, 0.5)
    before, after = manifest(store, "first", old), manifest(store, "second", old, new)
    nights = [night(TWO + DAY), night(TWO, before)]  # the one in between was skipped
    assert scored_between(store, night(TWO + 2 * DAY), nights, after, (), None).sequences == 2


def test_nor_is_what_the_policy_before_the_night_was_trained_on_by_whoever(store: Store) -> None:
    old, new, others = (reference(store, *one) for one in (("a", 4, 1.0), ("b", 2, 0.5), ("c", 1, 0.1)))
    before, after = manifest(store, "first", old), manifest(store, "second", old, new, others)
    made(store, "policy_checkpoint", "p", TWO, inputs={"manifest": before})
    made(store, "policy_checkpoint", "tonight", TWO + DAY, inputs={"manifest": after})
    elsewhere = manifest(store, "third", others)
    made(store, "policy_checkpoint", "q", TWO + DAY / 2, inputs={"manifest": elsewhere}, recipe="another")
    assert scored_between(store, night(TWO + DAY), [], after, (), None).sequences == 3


def test_nor_is_what_stands_behind_the_log_probs_of_a_champion_or_a_link_that_it_was_trained_against(
    store: Store,
) -> None:
    old, new = reference(store, "a", 4, 1.0), reference(store, "b", 2, 0.5)
    first, after = manifest(store, "first", old), manifest(store, "second", old, new)
    under_champion = made(store, "policy_logprobs", "c", summary={"scored": 4}, inputs={"manifest": first})
    made(store, "policy_checkpoint", "p", TWO, inputs={"manifest": manifest(store, "of_champion", under_champion)})
    assert scored_between(store, night(TWO + DAY), [], after, (), None).sequences == 2


def test_without_a_manifest_nothing_is_counted(store: Store) -> None:
    assert scored_between(store, night(TWO), [], None, (), 3.0) == Scored()


def test_other_recipes_manifests_are_not_read_where_a_policy_names_the_last_nights(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = reference(store, "a", 4, 1.0), reference(store, "b", 2, 0.5)
    before, after = manifest(store, "first", old), manifest(store, "second", old, new)
    made(store, "policy_checkpoint", "p", TWO - DAY, inputs={"manifest": before})
    listed: list[str] = []
    glob = store.fs.glob
    monkeypatch.setattr(store.fs, "glob", lambda path: (listed.append(path), glob(path))[1])
    assert scored_between(store, night(TWO + DAY), [night(TWO, before)], after, (), None).sequences == 2
    assert not [path for path in listed if "/preference_manifest/" in path]
