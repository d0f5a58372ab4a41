"""A graph whose processes are killed again and again, at moments from a seed, ends where an undisturbed one does."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from alignment.recipe import Recipe, load_recipe
from alignment.store import Store
from alignment_dags.retention.items import leftovers, remove
from assets.building.upstream import Upstream
from resources.mlflow import Tracking
from resources.store import ArtifactStore
from tests.pipeline.test_interruptions import Run

pytestmark = pytest.mark.campaign

SEED, KILLS = 16, 12
WAYS = ("process", "group", "step", "write")
WRITES = 30
"""A process that dies at a write does so at its n-th, n at most this."""
PLACES = ("ALIGN_HOME", "DAGSTER_HOME")


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def killed(run: Run, way: str, after: float, rng: random.Random) -> bool:
    """Kills some of a run after some seconds, and waits for the rest of it; False where it was over before."""
    try:
        run.process.wait(after)
    except subprocess.TimeoutExpired:
        if way == "process":
            os.kill(run.process.pid, signal.SIGKILL)
        elif way == "group":
            os.killpg(run.process.pid, signal.SIGKILL)
        elif way == "step" and (below := children(run.process)):
            rng.choice(below).kill()
        run.end()
        return way != "write" or run.process.returncode != 0
    return False


def home_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("ALIGN_HOME", "")
    except psutil.Error:
        return ""


def digests(store: Store) -> dict[tuple[str, str], str]:
    kinds = [place.name for place in Path(store.root).iterdir() if place.name not in ("refs", "work", "cache", "locks")]
    return {(kind, commit.key): commit.digest for kind in kinds for commit in store.commits(kind)}


def test_runs_that_are_killed_again_and_again_end_where_undisturbed_ones_do(
    small_recipe: dict[str, Any],
    tmp_path: Path,
    bring_up_to_date: Callable[[Recipe], Upstream],
    monkeypatch: pytest.MonkeyPatch,
    align_command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, rng = tmp_path / "recipe.yaml", random.Random(SEED)
    small_recipe["dpo"] |= {"save_steps": 2}

    def write(number: int) -> Path:
        small_recipe["dpo"]["beta"] = 0.1 + number / 10
        path.write_text(yaml.safe_dump(small_recipe), encoding="utf-8")
        return path

    hooks = str(Path(__file__).with_name("killed_at_a_write"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [hooks, os.environ.get("PYTHONPATH")])))
    before = {name: os.environ[name] for name in PLACES}
    for name in PLACES:
        monkeypatch.setenv(name, str(tmp_path / "killed" / name))
    began = time.monotonic()
    first = Run(align_command, write(0))
    assert first.end() == 0, "".join(first.lines)
    whole = time.monotonic() - began  # of a run on this machine, as busy as it is

    counts: Counter[str] = Counter()
    number = 1
    for turn in range(KILLS):
        way = WAYS[turn % len(WAYS)]
        with monkeypatch.context() as patch:
            if way == "write":
                patch.setenv("KILLED_AT", str(rng.randint(1, WRITES)))
                patch.setenv("KILLED_ONCE", str(tmp_path / f"killed-{turn}"))
            run = Run(align_command, write(number))
        if killed(run, way, whole * rng.random(), rng):
            counts[way] += 1
        elif run.process.returncode == 0:
            number += 1  # it is whole: the next policy is next
    last = Run(align_command, write(number))
    assert last.end() == 0, "".join(last.lines)

    store = ArtifactStore().open()
    found = digests(store)
    with dg.DagsterInstance.get() as instance:
        unfinished = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
        assert instance.get_runs(unfinished) == []
        assert instance.event_log_storage.get_concurrency_info("local").active_slot_count == 0
    client = Tracking().client()
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert max(Counter(run.data.tags["align.request"] for run in runs).values()) == 1
    parts = [pq.read_table(part) for part in Path(store.path("cache", "reference_logprobs")).rglob("part-*.parquet")]
    keys = pa.concat_tables(parts)["key"].to_pylist()
    scored = sum(commit.summary["scored"] for commit in store.commits("reference_logprobs"))
    assert len(keys) == len(set(keys)) >= scored, "no sequence was scored twice"
    home = os.environ["ALIGN_HOME"]
    assert [process.pid for process in psutil.process_iter() if home_of(process) == home] == [os.getpid()] or not [
        process.pid for process in psutil.process_iter() if process.pid != os.getpid() and home_of(process) == home
    ]
    for leftover in leftovers(store, now=time.time() + 30 * 24 * 3600):
        remove(store, leftover)
    attempts = {place.name for kind, key in found for place in Path(store.path(kind, key)).iterdir() if place.is_dir()}
    assert attempts == {commit.attempt for kind, _ in found for commit in store.commits(kind)}, "gc sees what is left"
    assert not list(Path(store.root).rglob("*.json.????????"))

    for name in PLACES:
        monkeypatch.setenv(name, before[name])
    for each in range(number + 1):
        undisturbed = bring_up_to_date(load_recipe(write(each)))
    expected = digests(undisturbed.store)
    assert {place: found.get(place) for place in expected} == expected
    with capsys.disabled():
        done = f"{sum(counts.values())} kills in {KILLS} turns {dict(counts)}"
        print(f"\n{done}, over {number + 1} policies; a run takes {whole:.0f} s")
