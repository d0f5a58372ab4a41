from __future__ import annotations

from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.data.manifest import Manifest, ManifestShard
from alignment.data.rows import content_id
from alignment.stages import Context, Request, Result, Stage, execute
from alignment.store import Artifact, Store
from alignment.store.erase import erase
from eval.report.data_changes import data_changes
from eval.report.facts import ancestry, stage_totals

Commit = Callable[[str, Mapping[str, tuple[str, list[str]]]], Artifact]
NOTHING = Artifact(kind="preference_shard", key="k", attempt="a", digest="d")


class _Named(Request):
    name: str
    upstream: Artifact | None = None


@pytest.fixture
def commit(store: Store) -> Commit:
    """Commits a manifest of shards, each a digest and its rows by name."""

    def made(name: str, shards: Mapping[str, tuple[str, list[str]]]) -> Artifact:
        def run(request: _Named, context: Context) -> Result:
            rows = [content_id({"row": row}) for _, ids in shards.values() for row in ids]
            manifest = Manifest(
                kind="paired",
                shards=[
                    ManifestShard(
                        name=shard, rows=len(ids), row_digest=digest, shard=NOTHING, reference=None, fingerprint=None
                    )
                    for shard, (digest, ids) in shards.items()
                ],
                left_out={},
                held_out_fraction=0.0,
                counts={"rows": len(rows), "train": len(rows), "held_out": 0, "dropped": 0},
                dropped={},
            )
            (context.out / "manifest.json").write_text(manifest.model_dump_json())
            pq.write_table(pa.table({"row_id": rows}), context.out / "split.parquet")
            return Result(digest=name)

        return execute(Stage("preference_manifest", 1, _Named, run), _Named(name=name), store).artifact

    return made


def test_shards_are_compared_by_their_rows_whatever_they_are_called(store: Store, commit: Commit) -> None:
    kept = {"a": ("1", ["r1", "r2"])}
    before = commit("before", {**kept, "b": ("2", ["r3"]), "gone": ("3", ["r4"]), "old": ("4", ["r5"])})
    after = commit("after", {**kept, "b": ("9", ["r3", "r6"]), "new": ("8", ["r7"]), "named": ("4", ["r5"])})
    found = data_changes(store, after, before)
    assert {(one.name, one.state, one.before, one.now) for one in found.shards} == {
        ("a", "same", 2, 2),
        ("b", "changed", 1, 2),
        ("named", "same", 1, 1),
        ("new", "new", None, 1),
        ("gone", "removed", 1, None),
    }
    assert (found.rows, found.new_rows, found.removed_rows) == (6, 2, 1)


def test_without_a_champion_shards_are_only_listed(store: Store, commit: Commit) -> None:
    found = data_changes(store, commit("first", {"a": ("1", ["r1"])}), None)
    assert [(one.name, one.state) for one in found.shards] == [("a", "listed")]
    assert (found.new_rows, found.removed_rows) == (None, None)


def test_everything_behind_an_artifact_is_counted_once_with_its_price(store: Store) -> None:
    def run(request: _Named, context: Context) -> Result:
        return Result(digest=request.name)

    stages = {name: Stage(name, 1, _Named, run) for name in ("scores", "base_model", "policy_checkpoint")}
    base = execute(stages["base_model"], _Named(name="b"), store)
    policies = [execute(stages["policy_checkpoint"], _Named(name=n, upstream=base.artifact), store) for n in "pq"]
    scores = [execute(stages["scores"], _Named(name=p.digest, upstream=p.artifact), store).artifact for p in policies]
    commits = [one.model_copy(update={"seconds": 1800.0}) for one in ancestry(store, scores).values()]
    erase(store, base, base.files, "nobody needs it")
    assert set(ancestry(store, scores)) == {one.key for one in commits}, "what was erased was made all the same"
    found = stage_totals(commits, {"policy_checkpoint": 3.0})
    assert [(one.stage, one.artifacts, one.seconds, one.cost) for one in found] == [
        ("base_model", 1, 1800.0, None),
        ("policy_checkpoint", 2, 3600.0, 3.0),
        ("scores", 2, 3600.0, None),
    ]
    assert found[0].digest == "b" and found[1].digest == ""


def test_what_is_no_longer_in_the_store_is_left_out_of_the_ancestry(store: Store) -> None:
    stage = Stage("scores", 1, _Named, lambda request, context: Result(digest="x"))
    alone = execute(stage, _Named(name="x", upstream=NOTHING), store).artifact
    assert list(ancestry(store, [alone])) == [alone.key]
