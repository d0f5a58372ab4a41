"""Weathers that a pipeline of months meets: whatever a run says in them, the next one ends where a calm one does."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.campaigns.planted import CLOCK_OFF
from tests.campaigns.test_kills import PATIENCE, children, digests, finished_runs, home_at, live_at
from tests.campaigns.warm import LOOK, Warm, WarmRun
from tests.loopback import free_port

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(7200)]

MONTH = 30 * 24 * 3600
DISK = 256 << 20
"""Bytes of the disk that is filled."""
LOCKED = 8.0
"""Seconds for which a database stays locked after a run has opened it: more than the 5 s that the libraries wait."""
TRAINS = "policy_checkpoint …"
"""What a run says when its training begins."""
SHOWN = 110
"""Characters of how a run ended in the table."""
CALM = 4
"""Every n-th policy is made in a calm home as well."""
NO_SPACE = "no space left on the device"
DECIDED = ("evaluation_report", "registered_model")
"""What depends on which policy was champion before."""


@contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """A small disk at a folder; False, and the folder as it is, where this user may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def has_open(run: WarmRun, file: Path) -> bool:
    """Whether a process of a run has a file open now."""
    for pid in (run.pid, *(process.pid for process in children(run.pid))):
        with contextlib.suppress(psutil.Error):
            if str(file) in {opened.path for opened in psutil.Process(pid).open_files()}:
                return True
    return False


def fill(folder: Path) -> Path:
    """A file that takes all that is free."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * (1 << 20))
        except OSError:
            pass
        try:
            while True:
                file.write(b"\0")
        except OSError:
            return filler


class Campaign:
    """One home through all weathers; every weather asks for another policy."""

    def __init__(self, warm: Warm, recipe: dict[str, Any], folder: Path, home: dict[str, str]) -> None:
        self.warm = warm
        self.recipe = recipe
        self.folder = folder
        self.home = home
        self.policies = 0
        self.table: list[tuple[str, str, str]] = []
        self.wrong: list[str] = []

    def write(self, policy: int, name: str = "small") -> str:
        path = self.folder / f"{name}.yaml"
        recipe = self.recipe | {"name": name, "dpo": self.recipe["dpo"] | {"beta": 0.1 + policy / 100}}
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return str(path)

    def run(self, name: str = "small", **environment: str) -> WarmRun:
        return self.warm.start("run", str(self.folder / f"{name}.yaml"), **{**self.home, **environment})

    def next_policy(self) -> None:
        self.policies += 1
        self.write(self.policies)

    def end(self, run: WarmRun) -> str:
        """How a run ended, in a line: `exit 0`, or why not; in capitals what no weather excuses."""
        said = 0
        while not run.over.wait(PATIENCE):
            if len(run.lines()) == said:
                run.kill()
                return f"HANGS: {run.tail()}"
            said = len(run.lines())
        if run.code not in (0, 1, 2) or "Traceback" in "\n".join(run.lines()):
            return f"EXIT {run.code}: {run.tail()}"
        if run.code == 0:
            return "exit 0"
        reasons = [line for line in run.lines() if line.startswith(("failed: ", "error: "))] or run.lines()[-1:]
        return f"exit {run.code}: {reasons[-1].replace(str(self.folder), '…')}"

    def weather(
        self, name: str, stormy: Callable[[], WarmRun], *, must_fail: bool | None = None, says: str = ""
    ) -> None:
        """A run for the next policy in a weather; then a calm one, which must be whole. One that fails `says` why."""
        self.next_policy()
        told = self.end(stormy())
        then = self.end(self.run())
        self.table.append((name, told[:SHOWN], "whole" if then == "exit 0" else then))
        failed = told.startswith("exit") and told != "exit 0"
        if (
            told[0].isupper()
            or (failed and says not in told)
            or then != "exit 0"
            or (must_fail is not None and must_fail != failed)
        ):
            self.wrong.append(f"{name}: {told}; then {then}")


def test_whatever_the_weather_the_next_run_ends_where_a_calm_one_does(
    small_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    homes, dagster = tmp_path / "stormy", tmp_path / "dagster"
    small_recipe["dpo"] |= {"save_steps": 1}
    del small_recipe["evals"]  # trainings are what weathers meet: measuring would double the time
    small_recipe["gate"] = "none"
    with disk(homes) as is_disk, disk(dagster) as is_another, Warm(tmp_path) as warm:
        home = home_at(homes) | {"DAGSTER_HOME": str(dagster)}
        campaign = Campaign(warm, small_recipe, tmp_path, home)
        store = Path(home["ALIGN_HOME"], "store")
        campaign.write(0)
        first = campaign.run()
        assert campaign.end(first) == "exit 0", first.tail()

        def full(place: Path, *, in_training: bool) -> Callable[[], WarmRun]:
            def stormy() -> WarmRun:
                if in_training:
                    run = campaign.run()
                    run.wait_for(TRAINS)
                    filler = fill(place)
                else:
                    filler = fill(place)
                    run = campaign.run()
                campaign.end(run)
                filler.unlink()
                return run

            return stormy

        def read_only(place: Path) -> Callable[[], WarmRun]:
            def stormy() -> WarmRun:
                remount(place, "ro")
                run = campaign.run()
                campaign.end(run)
                remount(place, "rw")
                return run

            return stormy

        for place, what in ((homes, "the disk"), (dagster, "Dagster's disk")):
            if not (is_disk and is_another):
                campaign.table.append((f"{what} full, read-only", "not tried: no right to mount a disk", "-"))
                continue
            for in_training, when in ((True, "fills in training"), (False, "is full")):
                stormy = full(place, in_training=in_training)
                must_fail = None if in_training else True
                campaign.weather(f"{what} {when}, and is freed", stormy, must_fail=must_fail, says=NO_SPACE)
            told = f"{what} is read-only, and is not"
            campaign.weather(told, read_only(place), must_fail=True, says="Read-only file system")

        def no_mlflow() -> WarmRun:
            return campaign.run(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")

        campaign.weather("MLflow is down, and up", no_mlflow, must_fail=True, says="MLflow at http")

        def locked(database: Path) -> Callable[[], WarmRun]:
            def stormy() -> WarmRun:
                run = campaign.run()
                run.wait_for(TRAINS)
                with closing(sqlite3.connect(database, timeout=PATIENCE)) as connection:
                    connection.execute("BEGIN EXCLUSIVE")
                    while not (run.over.wait(LOOK) or has_open(run, database)):
                        pass
                    run.over.wait(LOCKED)
                campaign.end(run)
                return run

            return stormy

        for whose, database in (
            ("MLflow's", Path(home["ALIGN_HOME"], "mlflow.db")),
            ("Dagster's", Path(home["DAGSTER_HOME"], "history", "runs.db")),
        ):
            told = f"{whose} SQLite is locked for {LOCKED:.0f} s"
            campaign.weather(told, locked(database), must_fail=False)

        for ahead, told in ((2 * MONTH, "the clock is two months ahead"), (-2 * MONTH, "it is two months behind")):
            campaign.weather(told, lambda ahead=ahead: campaign.run(**{CLOCK_OFF: str(ahead)}), must_fail=False)

        def edited() -> WarmRun:
            run = campaign.run()
            run.wait_for(TRAINS)
            campaign.next_policy()
            return run

        campaign.weather("the recipe is edited in mid-run", edited)

        def renamed() -> WarmRun:
            run = campaign.run()
            run.wait_for(TRAINS)
            other = campaign.write(campaign.policies, "other")
            shutil.copy(other, tmp_path / "small.yaml")
            campaign.end(run)
            campaign.write(campaign.policies)
            return run

        campaign.weather("the recipe is renamed in mid-run, and back", renamed)

        def store_gone() -> WarmRun:
            run = campaign.run()
            run.wait_for(TRAINS)
            store.rename(store.with_name("aside"))
            campaign.end(run)
            shutil.rmtree(store, ignore_errors=True)
            store.with_name("aside").rename(store)
            return run

        campaign.weather("the store is away in mid-run, and back", store_gone, must_fail=True, says="artifact store")

        campaign.next_policy()
        campaign.write(campaign.policies, "other")
        together = [campaign.run(), campaign.run(), campaign.run("other")]
        collected: list[str] = []
        while not all(run.over.is_set() for run in together):
            collected.append(campaign.end(warm.start("gc", "--keep", "1000", **home)))
        ends = [campaign.end(run) for run in together]
        if {*ends, *collected} != {"exit 0"}:
            campaign.wrong.append(f"three runs and gc: {ends} {collected}")
        told = f"exit 0 three times, beside {len(collected)} `align gc`"
        campaign.table.append(("two runs of one recipe, one of another", told, "whole"))

        found = digests(live_at(home, monkeypatch))
        finished_runs()
        calm_home = home_at(tmp_path / "calm")
        campaign.home = calm_home
        for policy in range(0, campaign.policies + 1, CALM):
            campaign.write(policy)
            run = campaign.run()
            assert campaign.end(run) == "exit 0", run.tail()
        calm_store = live_at(calm_home, monkeypatch)
        expected = {place: digest for place, digest in digests(calm_store).items() if place[0] not in DECIDED}
    with capsys.disabled():
        width = max(len(name) for name, *_ in campaign.table)
        print("\n" + "\n".join(f"{name:{width}}  {told}; next run {then}" for name, told, then in campaign.table))
        print(f"{len(expected)} artifacts, equal to those of calm runs")
    assert not campaign.wrong, "\n".join(campaign.wrong)
    assert len([kind for kind, _ in expected if kind == "policy_checkpoint"]) > campaign.policies // CALM
    assert {place: found.get(place) for place in expected} == expected
