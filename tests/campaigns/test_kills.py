"""A graph whose processes are killed again and again, at moments from a seed, ends where an undisturbed one does."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from alignment.store import Store
from alignment_dags.retention.items import leftovers, remove
from resources.home import database_uri
from resources.mlflow import Tracking
from resources.store import ArtifactStore
from tests.campaigns.planted import KILLED_AT, KILLED_ONCE, PART_SEQUENCES, SCORED_IN
from tests.campaigns.warm import Warm, WarmRun

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]

SEED, KILLS = 16, int(os.environ.get("CAMPAIGN_KILLS", "40"))
WAYS = ("process", "group", "step", "write")
LINES = 16
"""A run is killed behind its n-th line of progress, n below this: moments in the work, however busy the machine is."""
DELAY = 0.5
"""And at most so many seconds after it."""
WRITES = 6
"""A process that dies at a write does so at its n-th, n at most this."""
PATIENCE = 600.0
"""Seconds that a run may take to its end, or after a kill."""
LAST_SHARD = 3
"""Of the files of sixteen pairs: the first policy has one, and each that follows has one more, up to the last."""


def children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def steps_of(run: WarmRun) -> list[psutil.Process]:
    """Its steps, which the server of steps has forked; where there is none now, all that it has started."""
    below = children(run.pid)
    servers = {process.pid for process in below if process.ppid() == run.pid}
    return [process for process in below if process.ppid() in servers] or below


def killed(run: WarmRun, way: str, rng: random.Random) -> bool:
    """Kills some of a run at a moment, and waits for the rest of it; False where it was over before."""
    lines, seconds = rng.randrange(LINES), DELAY * rng.random()
    if way != "write":
        if not run.wait_for_lines(lines) or run.over.wait(seconds):
            return False
        if way == "process":
            os.kill(run.pid, signal.SIGKILL)
        elif way == "group":
            os.killpg(run.pid, signal.SIGKILL)
        elif below := steps_of(run):
            rng.choice(below).kill()
    assert run.over.wait(PATIENCE), f"hangs after a kill ({way}):\n{run.tail()}"
    return way != "write"


def digests(store: Store) -> dict[tuple[str, str], str]:
    kinds = [place.name for place in Path(store.root).iterdir() if place.name not in ("refs", "work", "cache", "locks")]
    return {(kind, commit.key): commit.digest for kind in kinds for commit in store.commits(kind)}


def finished_runs() -> None:
    """No Dagster run and no slot is taken any more, and each MLflow run is there once and finished."""
    with dg.DagsterInstance.get() as instance:
        begun = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.NOT_STARTED]
        assert instance.get_runs(dg.RunsFilter(statuses=begun)) == []
        assert instance.event_log_storage.get_concurrency_info("local").active_slot_count == 0
    client = Tracking().client()
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert Counter(run.info.status for run in runs).keys() == {"FINISHED"}
    assert max(Counter(run.data.tags["align.request"] for run in runs).values()) == 1


def cached_keys(store: Store) -> list[bytes]:
    parts = [pq.read_table(part) for part in Path(store.path("cache", "reference_logprobs")).rglob("part-*.parquet")]
    return list(pa.concat_tables(parts)["key"].to_pylist())


def processes_of(sessions: set[int]) -> list[int]:
    left = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process.pid)
        except (ProcessLookupError, psutil.Error):
            continue
    return left


def home_at(folder: Path) -> dict[str, str]:
    """The variables of a home in a folder: all of them, as this process's own may be those of another home."""
    align = folder / "align"
    places = {"ALIGN_HOME": str(align), "ALIGN_STORE": str(align / "store"), "DAGSTER_HOME": str(folder / "dagster")}
    return places | {"MLFLOW_TRACKING_URI": database_uri(align)}


def live_at(home: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Store:
    """Makes a home this process's own, and returns its store."""
    for name, place in home.items():
        monkeypatch.setenv(name, place)
    return ArtifactStore().open()


def test_runs_that_are_killed_again_and_again_end_where_undisturbed_ones_do(
    small_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, rng, scored_in = tmp_path / "recipe.yaml", random.Random(SEED), tmp_path / "scored"
    lines = Path(small_recipe["preferences"]["files"][0]).read_text(encoding="utf-8").splitlines(keepends=True)
    files = []
    for number in range(LAST_SHARD):
        files.append(tmp_path / f"day-{number}.jsonl")
        files[-1].write_text("".join(lines[number * 16 : number * 16 + 16]), encoding="utf-8")

    def write(number: int) -> str:
        small_recipe["dpo"] |= {"save_steps": 1, "beta": 0.1 + number / 100}
        small_recipe["preferences"] = {"files": [str(file) for file in files[: number + 1]]}
        path.write_text(yaml.safe_dump(small_recipe), encoding="utf-8")
        return str(path)

    counts: Counter[str] = Counter()
    number, sessions = 0, set[int]()
    with Warm(tmp_path) as warm:

        def start(number: int, home: Mapping[str, str], **planted: str) -> WarmRun:
            run = warm.start("run", write(number), **home, **planted)
            sessions.add(run.pid)
            return run

        home = home_at(tmp_path / "killed")
        turn = 0
        while sum(counts.values()) < KILLS:
            assert turn < 3 * KILLS, f"kills that hit nothing: {dict(counts)}"
            way, once = WAYS[turn % len(WAYS)], tmp_path / f"killed-{turn}"
            dying = {KILLED_AT: str(rng.randint(1, WRITES)), KILLED_ONCE: str(once)} if way == "write" else {}
            run = start(number, home, **{SCORED_IN: str(scored_in)}, **dying)
            if killed(run, way, rng) or once.exists():
                counts[way] += 1
            if run.code == 0:
                number += 1  # it is whole: the next policy is next
            turn += 1
        last = start(number, home, **{SCORED_IN: str(scored_in)})
        assert last.over.wait(PATIENCE) and last.code == 0, last.tail()

        store = live_at(home, monkeypatch)
        found = digests(store)
        finished_runs()
        keys = cached_keys(store)
        assert len(keys) == len(set(keys)), "no sequence is kept twice"
        again = scored_in.stat().st_size - len(keys)
        assert 0 <= again <= PART_SEQUENCES * sum(counts.values()), "a kill costs at most a part that was not written"
        until = time.monotonic() + 60
        while left := processes_of(sessions):
            assert time.monotonic() < until, f"processes are left: {left}"
            time.sleep(0.2)
        for leftover in leftovers(store, now=time.time() + 30 * 24 * 3600):
            remove(store, leftover)
        attempts = {place.name for at in found for place in Path(store.path(*at)).iterdir() if place.is_dir()}
        assert attempts == {commit.attempt for kind, _ in found for commit in store.commits(kind)}, (
            "gc sees what is left"
        )
        assert not list(Path(store.root).rglob("*.json.????????"))

        whole, home = number, home_at(tmp_path / "undisturbed")
        for number in range(whole + 1):
            run = start(number, home)
            assert run.over.wait(PATIENCE) and run.code == 0, run.tail()
        expected = digests(live_at(home, monkeypatch))
    assert {place: found.get(place) for place in expected} == expected
    with capsys.disabled():
        done = f"{sum(counts.values())} kills in {turn} runs {dict(counts)}"
        print(f"\n{done}, over {whole + 1} policies; {len(expected)} artifacts equal, {again} sequences scored again")
