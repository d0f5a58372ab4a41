"""A live Dagster follows a folder: what people do to files, done to files, and what the daemon makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from alignment.recipe import load_recipe
from alignment_dags.run.workers import UNFINISHED
from assets.building.factory import asset_key, shards_definition
from assets.building.upstream import Upstream
from resources.store import ArtifactStore

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]

SHARD, REFERENCE = "preference_shard", "reference_logprobs"
PAIRS = 8


class Source:
    """A folder of preference files, and the recipe's artifacts that follow from it."""

    def __init__(self, folder: Path, recipe: str) -> None:
        self.folder = folder
        self.recipe = recipe
        folder.mkdir()

    def pairs(self, shard: str, **changed: str) -> list[dict[str, str]]:
        """The shard's pairs, the third with other answers if `changed` says so."""
        rows = [
            {"prompt": f"{shard} {number}", "chosen": f"It is {number}.", "rejected": "No."} for number in range(PAIRS)
        ]
        rows[2] |= changed
        return rows

    def write(self, shard: str, rows: list[dict[str, str]]) -> None:
        """As a careful writer does it: under another name first."""
        partial = self.folder / f"{shard}.jsonl.tmp"
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        partial.rename(self.folder / f"{shard}.jsonl")

    def remove(self, shard: str) -> None:
        (self.folder / f"{shard}.jsonl").unlink()

    def made(self, node: str, shard: str) -> Any:
        """The current artifact's commit, None if there is none."""
        store = ArtifactStore().open()
        artifact = Upstream(store, self.recipe).get(node, shard)
        return None if artifact is None else store.commit_of(artifact)

    def scored(self, *shards: str) -> bool:
        """Whether the shards are built from their files as they are, and their references are of these rows."""
        from alignment.data.validate import Validation

        for shard in shards:
            rows, reference = self.made(SHARD, shard), self.made(REFERENCE, shard)
            if rows is None or reference is None or reference.inputs["shard"].digest != rows.digest:
                return False
            text = (self.folder / f"{shard}.jsonl").read_text(encoding="utf-8").splitlines()
            if rows.digest != digest_of(Validation(), [json.loads(line) for line in text]):
                return False
        return True


def digest_of(validation: Any, rows: list[dict[str, str]]) -> str:
    from alignment.data.readers import Record

    list(validation.accepted((Record(number, value=row) for number, row in enumerate(rows, 1)), "-"))
    return str(validation.digest)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "source", "small")


def test_the_daemon_follows_a_folder(
    live: Any,
    source: Source,
    small_recipe: dict[str, Any],
    tmp_path: Path,
    bring_up_to_date: Callable[..., Upstream],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "recipe.yaml"
    preferences = {"files": [str(source.folder)], "settle_seconds": 0, "watch_seconds": 1}
    path.write_text(
        yaml.safe_dump(small_recipe | {"preferences": preferences, "schedule": {"cron": "0 0 1 1 *"}}), encoding="utf-8"
    )
    monkeypatch.setenv("ALIGN_RECIPES", str(path))
    for day in ("day-0", "day-1", "day-2"):
        source.write(day, source.pairs(day))
    source.write("bad", [{"prompt": "p", "chosen": "same", "rejected": "same"}])
    bring_up_to_date(load_recipe(path), only=("base",))
    instance: dg.DagsterInstance = live.instance
    partitions = str(shards_definition("small").name)

    def failed() -> list[dg.DagsterRun]:
        return list(instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])))

    live.start()
    live.wait_for("the first shards", lambda: source.scored("day-0", "day-1", "day-2"))
    live.wait_for("the bad shard's second run", lambda: len(failed()) == 2)
    first = source.made(REFERENCE, "day-1")
    assert first.summary["scored"] == 2 * PAIRS
    assert source.made(SHARD, "bad") is None

    # one row changed, a file withdrawn, a bad file corrected
    source.write("day-1", source.pairs("day-1", chosen="Another answer.", rejected="Another one."))
    source.remove("day-2")
    source.write("bad", source.pairs("bad"))
    live.wait_for("the changed and the corrected shard", lambda: source.scored("day-1", "bad"))
    live.wait_for("the withdrawal", lambda: "day-2" not in instance.get_dynamic_partitions(partitions))
    live.wait_for("the end of it, as the ref goes last", lambda: source.made(SHARD, "day-2") is None)
    key = asset_key("small", REFERENCE)
    live.wait_for("its report", lambda: len(live.materializations(key, "day-1")) > 1)
    again, *_, before = live.materializations(key, "day-1")
    assert (before["sequences"], before["scored"]) == (2 * PAIRS, 2 * PAIRS)
    assert (again["sequences"], again["scored"]) == (2 * PAIRS, 2), "one pair was scored"
    assert len(live.materializations(key, "day-0")) == 1, "no other shard was touched"

    # the row as it was, the withdrawn file back, a new one
    source.write("day-1", source.pairs("day-1"))
    source.write("day-2", source.pairs("day-2"))
    source.write("day-3", source.pairs("day-3"))
    live.wait_for("all shards", lambda: source.scored("day-0", "day-1", "day-2", "day-3", "bad"))
    assert source.made(REFERENCE, "day-1") == first, "A, B, A ends at A"
    live.wait_for("its report", lambda: live.materializations(key, "day-1")[0]["reused"])
    assert source.made(REFERENCE, "day-3").summary["scored"] == 2 * PAIRS

    def at_rest() -> bool:
        slots = instance.event_log_storage.get_concurrency_info("local").active_slot_count
        return not instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)) and slots == 0

    live.wait_for("every run's end, and its slots", at_rest)
    assert len(failed()) == 2, f"only the bad file failed, and not for ever\n{live.runs()}"
