"""GPUs are taken by processes, and a process that ends, however it ends, leaves none taken. The devices are names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alignment import devices
from alignment.errors import BadInput

TAKER = """
import subprocess, sys
from alignment.devices import take
print("asks", flush=True)
gpus = take(int(sys.argv[1]), "h100")
print(*gpus.uuids, flush=True)
if sys.argv[2:]:
    import os
    rank = "from alignment.devices import share_launchers_gpus as share; share(); print(1, flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", rank], env=os.environ | gpus.environment, stdin=sys.stdin,
                             stdout=subprocess.PIPE)
    child.stdout.readline()
    print(child.pid, flush=True)
input()
"""


class Taker:
    """A process that takes GPUs, and holds them until it is killed."""

    def __init__(self, count: int, *, rank: bool = False) -> None:
        command = [sys.executable, "-c", TAKER, str(count), *(["rank"] if rank else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.line()  # asks

    def line(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(autouse=True)
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(devices.GPUS, "GPU-a,GPU-b")
    monkeypatch.setenv(devices.LOCKS, str(tmp_path / "locks"))


@pytest.fixture
def taker() -> Iterator[Callable[..., Taker]]:
    started: list[Taker] = []

    def start(count: int, **more: bool) -> Taker:
        started.append(Taker(count, **more))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def free() -> int:
    """GPUs that nobody holds."""
    for count in (2, 1):
        if (gpus := devices._try_to_take(count, devices.gpus_here(), devices._locks())) is not None:
            gpus.release()
            return count
    return 0


def test_two_launches_take_different_gpus_and_a_third_waits_for_the_first_that_is_killed(
    taker: Callable[..., Taker],
) -> None:
    first, second = taker(1), taker(1)
    taken = first.line() + second.line()
    assert sorted(taken) == ["GPU-a", "GPU-b"]
    third = taker(1)
    assert free() == 0
    first.kill()
    assert third.line() == taken[:1]


def test_a_launcher_that_is_killed_frees_nothing_that_its_rank_still_uses(taker: Callable[..., Taker]) -> None:
    launcher = taker(2, rank=True)
    assert launcher.line() == ["GPU-a", "GPU-b"]
    rank = int(launcher.line()[0])
    launcher.process.kill()
    launcher.process.wait()
    assert free() == 0
    waiting = taker(2)
    os.kill(rank, 9)
    assert waiting.line() == ["GPU-a", "GPU-b"]


def test_who_waits_for_two_is_not_passed_by_one_who_wants_one(taker: Callable[..., Taker]) -> None:
    first = taker(1)
    held = first.line()
    both = taker(2)
    queue = Path(os.environ[devices.LOCKS], "queue")
    while not _is_locked(queue):
        assert both.process.poll() is None
    late = taker(1)
    first.kill()
    assert both.line() == ["GPU-a", "GPU-b"]
    both.kill()
    assert held == ["GPU-a"]
    assert late.line() in (["GPU-a"], ["GPU-b"]), "whichever the kernel frees first"


def _is_locked(path: Path) -> bool:
    import fcntl

    with path.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_more_gpus_than_the_machine_has_are_bad_input() -> None:
    with pytest.raises(BadInput, match=r"'pools\.h100'.* takes 3 GPUs and this machine has 2"):
        devices.take(3, "h100")


def test_no_gpus_are_asked_for_and_none_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(devices.GPUS, "")
    assert devices.take(0, "local").environment == {}


def test_a_scheduler_that_gave_this_process_some_gpus_gave_it_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf 'GPU-0\\nGPU-1\\nGPU-2\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv(devices.GPUS)
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    assert devices.gpus_here() == ["GPU-0", "GPU-1", "GPU-2"]
    monkeypatch.setenv(devices.VISIBLE, "2,GPU-0")
    assert devices.gpus_here() == ["GPU-2", "GPU-0"]


def test_a_command_that_is_started_with_gpus_holds_them_itself() -> None:
    """As on the other nodes of a launch, where no process of this project stays beside torchrun."""
    told = f"import os; print(os.environ['{devices.VISIBLE}'], flush=True); input()"
    command = [sys.executable, "-m", "alignment.devices", "2", "h100", sys.executable, "-c", told]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "GPU-a,GPU-b\n"
        assert free() == 0
        process.kill()
        process.wait()
        assert free() == 2
