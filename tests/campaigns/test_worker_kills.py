"""Forty kills of workers, of their launcher and of whole runs, while two workers score and answer by torchrun.

Which process dies and when is drawn by a seed. WORKER_KILLS sets another number of kills.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from alignment.errors import counted
from alignment.recipe import Recipe, load_recipe
from assets.building.upstream import Upstream
from resources.store import ArtifactStore
from tests.campaigns.test_kills import digests
from tests.campaigns.warm import Warm, WarmRun

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(7200)]

SEED, KILLS = 21, int(os.environ.get("WORKER_KILLS", "40"))
WAYS = ("worker", "worker", "launcher", "driver")
KILLS_A_POLICY = 8
LINES, DELAY = 8, 1.0
"""Once there are workers, a process is killed behind the run's n-th line from then, n below LINES, and at most DELAY
seconds later: while workers import, while they load the model, while they score or answer, just when they are done."""
LOOK = 0.1
"""Seconds between two looks for workers."""
MOMENT = 1.0
"""Seconds between two looks for a second job: by the next one what ends with its starter is gone."""
AT_ONCE = {"launcher": 1, "worker": 2}
TWO = {"slots": 1, "launcher": "torchrun", "processes": 2}


def programs(home: str) -> Iterator[tuple[psutil.Process, str, str]]:
    """Stages at work: the process, `launcher` or `worker`, and the request that it was given."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "alignment.stages" in words and process.environ().get("ALIGN_HOME") == home:
                kind = "launcher" if "alignment.stages.ranks" in words else "worker"
                yield process, kind, words[words.index("--request") + 1]


@contextmanager
def no_second_job(home: str) -> Iterator[None]:
    """Meanwhile no two launchers that live longer than a moment work for one request, nor the workers of two."""
    over, twice = threading.Event(), set[tuple[str, str]]()

    def watch() -> None:
        before: set[tuple[str, str]] = set()
        while not over.wait(MOMENT):
            jobs = Counter((kind, request) for _, kind, request in programs(home))
            now = {job for job, count in jobs.items() if count > AT_ONCE[job[0]]}
            twice.update(before & now)
            before = now

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
    assert not twice


def strike(run: WarmRun, way: str, home: str, rng: random.Random) -> str | None:
    """Kills one process of a run that has workers, at a moment of its work; returns the line that the run had said
    last, None where the run or the process ended before."""
    while not (found := [one for one in programs(home) if one[1] == "worker"]):
        if run.over.wait(LOOK):
            return None
    lines = len(run.lines()) + rng.randrange(LINES)
    if not run.wait_for_lines(lines) or run.over.wait(DELAY * rng.random()):
        return None
    behind = run.lines()[-1].strip()
    if way == "driver":
        os.kill(run.pid, signal.SIGKILL)
        run.over.wait()
        return behind
    victims = [process for process, kind, _ in programs(home) if kind == way] or [process for process, *_ in found]
    with contextlib.suppress(psutil.Error):
        rng.choice(victims).kill()
        return behind
    return None


def test_forty_kills_lose_nothing_and_start_no_second_job(
    small_recipe: dict[str, Any],
    tmp_path: Path,
    tables: None,
    bring_up_to_date: Callable[[Recipe], Upstream],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rng, home = random.Random(SEED), os.environ["ALIGN_HOME"]
    pools = tmp_path / "pools.yaml"
    pools.write_text(yaml.safe_dump({"pools": {"local": {"slots": 1}, "two": TWO}}), encoding="utf-8")
    monkeypatch.setenv("ALIGN_POOLS", str(pools))
    small_recipe["evals"] |= {"batch_tokens": 512}
    path = tmp_path / "recipe.yaml"

    def write(number: int, pool: str) -> Path:
        """The recipe with other rows to score and another policy for each number."""
        small_recipe["dpo"]["beta"] = 0.1 + number / 10
        small_recipe["tokens"] = {"max_length": 256 - number}
        named = {"pools": {"reference": pool, "responses": pool}}
        path.write_text(yaml.safe_dump(small_recipe | named), encoding="utf-8")
        return path

    kills: Counter[str] = Counter()
    moments: Counter[str] = Counter()
    number = 0
    with no_second_job(home), Warm(tmp_path) as warm:
        while kills.total() < KILLS:
            run, before = warm.start("run", str(write(number, "two"))), kills.total()
            while kills.total() < min(KILLS, KILLS_A_POLICY * (number + 1)) and not run.over.is_set():
                way = WAYS[kills.total() % len(WAYS)]
                if behind := strike(run, way, home, rng):
                    kills[way] += 1
                    moments[behind[:60]] += 1
            assert run.end() == 0 or kills.total() > before, run.tail()
            number += run.code == 0
        last = warm.start("run", str(write(number, "two")))
        assert last.end() == 0, last.tail()

    store = ArtifactStore().open()
    parts = [pq.read_table(part) for part in Path(store.path("cache", "reference_logprobs")).rglob("part-*.parquet")]
    keys = pa.concat_tables(parts)["key"].to_pylist()
    assert len(keys) == len(set(keys)), "no sequence was scored twice"
    found = digests(store)
    monkeypatch.setenv("ALIGN_STORE", str(tmp_path / "undisturbed"))
    for each in range(number + 1):
        undisturbed = bring_up_to_date(load_recipe(write(each, "local")))
    expected = digests(undisturbed.store)
    assert {place: found.get(place) for place in expected} == expected
    with capsys.disabled():
        print(f"\n{dict(kills)} killed, over {counted(number + 1, 'policy', 'policies')}, behind these lines:")
        print(*(f"{count:>4}  {line}" for line, count in moments.most_common()), sep="\n")
