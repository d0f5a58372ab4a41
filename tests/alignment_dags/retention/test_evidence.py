"""Withdrawn rows beside matched rows that a policy never saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.errors import BadInput
from alignment.models.pin import pin_model
from alignment.recipe import Dpo, ModelSource, Recipe, TokenPolicy, parse_recipe
from alignment.stages import Result, Stage, execute
from alignment.stages.base_model import BaseModelRequest
from alignment.stages.policy import DpoRequest
from alignment.store import Artifact, Commit, Ref, Store
from alignment_dags.retention.evidence import Evidence, _policy_before, _sources, bits_of_start
from alignment_dags.retention.trace import Measured, Trace, trace


def drawn(
    rng: np.random.Generator, rows: int, shift: float = 0.0, tokens_between: tuple[int, int] = (10, 400)
) -> list[Measured]:
    """Pairs whose margin depends on the start checkpoint's and on the length, and is higher by `shift`."""
    made = []
    for _ in range(rows):
        reference, tokens = float(rng.normal(0, 5)), int(rng.integers(*tokens_between))
        margin = 0.2 * reference + tokens / 200 + float(rng.normal(0, 0.5)) + shift
        made.append(Measured(margin, reference, tokens))
    return made


def test_rows_that_a_policy_never_saw_are_like_those_that_it_never_saw_in_nineteen_of_twenty_cases() -> None:
    rng = np.random.default_rng(5)
    found = [trace(drawn(rng, 30), drawn(rng, 200)) for _ in range(100)]
    inside = [one.low <= 0 <= one.high for one in found if one.low is not None and one.high is not None]
    assert len(inside) == 100 and sum(inside) >= 88
    assert np.mean([one.rank for one in found]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([one.rows for one in found]) > 24 and all(one.rows + one.unmatched == 30 for one in found)


def test_rows_that_are_longer_than_every_unseen_pair_have_no_match_and_leave_no_trace() -> None:
    """Nothing says what their margins would be unseen. Of rows that are longer in part, those are compared that are
    not; with a match for all, the interval lies above zero in more than half of cases. The caliper alone is not enough:
    of rows from 400 to 480 tokens it keeps two thirds, and the interval lies above zero in 18 of 100 cases."""
    rng = np.random.default_rng(10)
    for tokens in ((400, 800), (400, 440)):
        with pytest.raises(BadInput, match="each of the 30 withdrawn rows is unlike every held-out pair"):
            trace(drawn(rng, 30, tokens_between=tokens), drawn(rng, 200))
    found = [trace(drawn(rng, 30, tokens_between=(300, 600)), drawn(rng, 200)) for _ in range(100)]
    assert sum(not _contains_zero(one) for one in found) <= 11, "of 100, where 5 are expected"
    assert all(one.unmatched > 5 for one in found)
    left = [trace(drawn(rng, 60, shift=1.0, tokens_between=(300, 600)), drawn(rng, 200)) for _ in range(20)]
    assert all(one.low is not None and one.low > 0 for one in left), "a trace is found in those that are compared"


def test_rows_that_left_a_trace_are_seen_and_rows_of_another_kind_are_matched() -> None:
    rng = np.random.default_rng(6)
    unseen = drawn(rng, 300)
    left = trace(drawn(rng, 30, shift=1.0), unseen)
    assert left.low is not None and left.low > 0 and left.rank > 0.6
    long = [row for row in drawn(rng, 400) if row.tokens > 300][:40]
    found = trace(long, unseen)
    assert found.low is not None and found.high is not None and found.low < 0 < found.high, "long, and not remembered"
    assert found.rank > 0.6 and found.margin > 1.0, "beside all unseen pairs they would look remembered"


def test_rows_are_matched_within_their_source_where_it_has_unseen_pairs() -> None:
    """Pairs of a source that asks for the opposite have low margins: beside them every other row looks remembered."""
    rng = np.random.default_rng(8)
    asks = [replace(row, source="ask") for row in drawn(rng, 150)]
    opposite = [replace(row, source="web") for row in drawn(rng, 150, shift=-3.0)]
    rows = [replace(row, source="ask") for row in drawn(rng, 30)]
    found = trace(rows, opposite + asks)
    assert found.low is not None and found.high is not None and found.low < 0 < found.high
    assert found.rank == pytest.approx(0.5, abs=0.12)
    mixed = trace([replace(row, source="gone") for row in rows], opposite + asks)
    assert mixed.low is not None and mixed.low > 0, "a source without unseen pairs is matched among all"


def test_what_is_near_goes_by_the_spread_of_the_rows_own_source() -> None:
    """Beside a source whose margins under the start checkpoint spread widely, all of another's would look alike."""
    rng, above = np.random.default_rng(12), 0

    def narrow(rows: int, mean: float) -> list[Measured]:
        margins = rng.normal(mean, 0.5, rows).tolist()
        return [Measured(m + float(rng.normal(0, 0.3)), m, int(rng.integers(10, 400)), "ask") for m in margins]

    wide = [Measured(0.0, float(rng.normal(0, 30)), int(rng.integers(10, 400)), "web") for _ in range(200)]
    for _ in range(50):
        above += not _contains_zero(trace(narrow(30, 0.5), [*narrow(200, 0.0), *wide]))
    assert above <= 7, "of 50, where 2.5 are expected"


@pytest.mark.parametrize("shared", ["prompt", "match"])
def test_rows_of_one_prompt_and_rows_of_one_match_are_not_taken_for_independent(shared: str) -> None:
    """Twelve prompts of five rows that differ little within a prompt; or sixty rows beside twelve unseen pairs."""
    rng, wrong, naive = np.random.default_rng(9), 0, 0
    prompts, unseen_pairs = (12, 150) if shared == "prompt" else (60, 12)
    for _ in range(100):
        unseen = [Measured(float(rng.normal()), float(rng.normal()), 100) for n in range(unseen_pairs)]
        rows = [
            Measured(shift + float(rng.normal(0, 0.4)), float(rng.normal()), 100, prompt=f"w{prompt}")
            for prompt, shift in enumerate(rng.normal(0, 0.9, prompts).tolist())
            for _ in range(60 // prompts)
        ]
        wrong += not _contains_zero(trace(rows, unseen))
        alone = [replace(row, prompt=None) for row in rows]
        naive += not _contains_zero(trace(alone, unseen))
    assert wrong <= 11, "of 100, where 5 are expected"
    assert shared == "match" or naive >= 14, "rows taken for independent"


def _contains_zero(found: Trace) -> bool:
    assert found.low is not None and found.high is not None
    return found.low <= 0 <= found.high


def test_one_row_has_no_interval_and_no_rows_have_no_trace() -> None:
    rng = np.random.default_rng(7)
    one = trace(drawn(rng, 1), drawn(rng, 200))
    assert (one.rows, one.matches, one.low) == (1, 1, None)
    with pytest.raises(ValueError, match="nothing to compare"):
        trace([], drawn(rng, 2))


def test_the_sentence_counts_the_rows_that_could_not_be_compared() -> None:
    rng = np.random.default_rng(11)
    found = trace([*drawn(rng, 1), *drawn(rng, 2, tokens_between=(800, 900))], drawn(rng, 200))
    about = {"recipe": "r", "policy": "p", "policy_before": "b", "at": "2026-01-02T00:00:00+00:00"}
    told = Evidence(**about, after=found, before=found.model_copy(update={"unmatched": 0, "dropped": 3})).told()
    after, before = told.split("; under the policy before ")
    assert after.startswith("1 withdrawn row, on 2026-01-02: ")
    assert after.endswith(f"(too few for an interval), rank {found.rank:.2f}, without 2 that no held-out pair is like")
    assert before.endswith(", without 3 that the recipe's token policy drops")


def test_the_start_has_the_bits_that_it_had_for_the_held_out_pairs(store: Store) -> None:
    """Rows in other bits would differ from what they are matched with, whether they were seen or not."""
    base = BaseModelRequest(pin=pin_model(ModelSource(embedded="micro")), seed=1)
    start = execute(Stage("sft_checkpoint", 1, BaseModelRequest, lambda *_: Result("start")), base, store)

    def trained(checkpoint: Artifact, **settings: Any) -> Commit:
        request = DpoRequest(
            manifest=start.artifact, checkpoint=checkpoint, settings=Dpo(**settings), tokens=TokenPolicy(), seed=1
        )
        stage = Stage("policy_checkpoint", 1, DpoRequest, lambda *_: Result(stage.key(request)))
        return execute(stage, request, store)

    qlora = {"lora": {"quantise": "nf4"}}
    first = trained(start.artifact, **qlora)
    assert bits_of_start(store, first, start) == "nf4"
    assert bits_of_start(store, trained(first.artifact, **qlora), start) is None, "a chain is measured against it whole"
    assert bits_of_start(store, trained(start.artifact, loss="simpo", **qlora), start) is None
    assert bits_of_start(store, trained(start.artifact), start) is None


ROW = "withdrawn"


@pytest.fixture
def trained(store: Store) -> Callable[..., Commit]:
    """A policy of ten minutes' training, begun in that minute of the day, that saw the withdrawn row or did not; where
    it is `evaluated`, the recipe has a report of it."""

    def commit(kind: str, key: str, minute: int, recipe: str, **inputs: Artifact) -> Commit:
        attempt = store.begin(kind, key)
        rows = pa.table({"row_id": [key.partition("-")[2] or key, "other"], "split": ["train", "held_out"]})
        pq.write_table(rows, attempt.path / "training_rows.parquet")
        return store.commit(
            attempt,
            digest=f"digest-{key}",
            stage=kind,
            code_version=1,
            inputs=inputs,
            summary={},
            environment={"recipe": recipe},
            started_at=f"2026-01-01T{minute // 60:02d}:{minute % 60:02d}:00+00:00",
            seconds=600.0,
        )

    def train(name: str, minute: int, recipe: str = "r", *, saw: bool = True, evaluated: bool = False) -> Commit:
        policy = commit("policy_checkpoint", f"{name}-{ROW if saw else 'unseen'}", minute, recipe)
        if evaluated:
            commit("evaluation_report", f"{name}_report", minute + 10, recipe, policy=policy.artifact)
        return policy

    return train


def test_the_source_of_a_row_is_read_from_the_manifests_of_a_policy_and_of_those_before_it(
    store: Store, made: Callable[..., Commit]
) -> None:
    def manifest(key: str, **shards: str) -> Artifact:
        attempt = store.begin("preference_manifest", key)
        table = pa.table({"row_id": list(shards), "shard": list(shards.values()), "split": ["train"] * len(shards)})
        pq.write_table(table, attempt.path / "split.parquet")
        environment, at = {"recipe": "r"}, "2026-01-01T00:00:00+00:00"
        pinned = {f"shards.{name}": shard(name) for name in shards.values()}
        return store.commit(
            attempt, digest=key, stage="preference_manifest", code_version=1, inputs=pinned, summary={},
            environment=environment, started_at=at, seconds=1.0,
        ).artifact  # fmt: skip

    def shard(name: str) -> Artifact:
        return Artifact(kind="preference_shard", key=name, attempt="a", digest=f"rows of {name}")

    def recipe(*names: str) -> Recipe:
        sources = [{"name": name, "files": [f"{name}.jsonl"]} for name in names] or {"files": ["ask.jsonl"]}
        given = {
            "name": "r",
            "base_model": {"embedded": "micro"},
            "sft": {"adopt": {"embedded": "micro"}},
            "preferences": sources,
            "evals": {},
        }
        return parse_recipe(given, "-", {})

    first = made("policy_checkpoint", "first", 0, inputs={"manifest": manifest("one", a="ask-day-1", b="web-day-1")})
    inputs = {"manifest": manifest("two", c="ask", d="old-day"), "checkpoint": first.artifact}
    policy = made("policy_checkpoint", "second", 1, inputs=inputs)
    assert _sources(store, recipe("ask", "web"), policy, {"a", "b", "c", "d", "nowhere"}) == {
        "a": "ask",
        "b": "web",
        "c": "ask",
        "d": "",
    }
    assert _sources(store, recipe(), policy, {"a"}) == {"a": ""}, "there is one source"
    store.write_ref(Ref(artifact=shard("web-day-1")), "r", "preference_shard", "crawl-day-1")
    found = _sources(store, recipe("ask", "crawl"), policy, {"a", "b"})
    assert found == {"a": "ask", "b": "crawl"}, "the source has another name now"


def test_the_policy_before_is_the_latest_that_was_over_when_the_current_one_began(
    store: Store, trained: Callable[..., Commit]
) -> None:
    for name, minute in (("first", 0), ("second", 20)):
        trained(name, minute)
    before = trained("third", 40)
    trained("unseen", 60, saw=False)
    current = trained("current", 80, saw=False)
    trained("still_training", 75)
    trained("later", 120)
    trained("of_another", 55, "s")
    found, known = _policy_before(store, "r", current, {ROW})
    assert (found.key, known) == (before.key, {ROW})
    with pytest.raises(BadInput, match=r"no policy of r that was finished before the current one was begun"):
        _policy_before(store, "r", store.commit_of(before.artifact), {"nobody's"})


def test_a_policy_that_is_found_again_as_it_was_before_the_rows_came_has_none_before_it(
    store: Store, trained: Callable[..., Commit]
) -> None:
    """After a withdrawal the data may be what it was once, and its policy is not trained again."""
    once = trained("once", 0, saw=False)
    trained("with_the_row", 20, evaluated=True)
    with pytest.raises(BadInput, match=r"\(2026-01-01T00:00:00 UTC\) was trained on a withdrawn row"):
        _policy_before(store, "r", once, {ROW})


def test_the_policy_before_is_the_recipes_own_and_not_another_seed_or_candidate(
    store: Store, trained: Callable[..., Commit]
) -> None:
    trained("of_the_night_before", 0, evaluated=True)
    before = trained("of_the_night", 20, evaluated=True)
    trained("other_seed", 40)
    assert _policy_before(store, "r", trained("current", 90, saw=False), {ROW})[0].key == before.key


def test_a_policy_that_another_recipe_made_is_the_recipes_own_where_it_was_evaluated_or_promoted(
    store: Store, trained: Callable[..., Commit], made: Callable[..., Commit]
) -> None:
    old, shared = trained("old", 0, "twin"), trained("shared", 20, "twin")
    current = trained("current", 90, saw=False)
    with pytest.raises(BadInput, match="no policy of r"):
        _policy_before(store, "r", current, {ROW})
    made("evaluation_report", "of_the_shared_one", 31, inputs={"policy": shared.artifact})
    assert _policy_before(store, "r", current, {ROW})[0].key == shared.key
    first = made("registered_model", "first", 40, inputs={"policy": shared.artifact})
    back = made("registered_model", "back", 50, inputs={"policy": old.artifact, "previous": first.artifact})
    store.write_ref(Ref(artifact=back.artifact), "r", "registered_model")
    assert _policy_before(store, "r", current, {ROW})[0].key == shared.key, "a return to an older one trains nothing"
