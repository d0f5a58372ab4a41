"""GPUs of this machine: a launch takes its own, and nobody else takes them while any of its processes lives.

Each GPU has a lock file named by its UUID, which pools and homes of a machine share. The launcher locks the files of
the GPUs it takes, and hands their names on to the processes it starts, which lock them too. The kernel releases the
locks of a process that ends, however it ends. So a killed launcher frees nothing that its ranks still use, and killed
ranks leave nothing taken.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from alignment.errors import BadInput

GPUS = "ALIGN_GPUS"
"""Environment variable: the UUIDs of the GPUs to use, comma-separated; without it, all that nvidia-smi lists."""
LOCKS = "ALIGN_GPU_LOCKS"
"""Environment variable: the folder of the lock files; every project on a machine must name the same."""
HELD = "ALIGN_HELD_GPUS"
"""Environment variable: the lock files that a launcher holds, for the processes it starts."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
PERIOD = 0.5  # seconds between two looks for free GPUs

log = logging.getLogger(__name__)


@dataclass
class Gpus:
    """GPUs that this process holds until `release`, or until it ends."""

    uuids: list[str]
    files: dict[Path, int] = field(default_factory=dict)
    """Lock file to its open descriptor."""

    @property
    def environment(self) -> dict[str, str]:
        """What the processes of the launch are started with; nothing for a launch without GPUs."""
        if not self.uuids:
            return {}
        return {VISIBLE: ",".join(self.uuids), HELD: os.pathsep.join(map(str, self.files))}

    def release(self) -> None:
        """Gives the GPUs back, as far as no other process of the launch holds them. Safe to repeat."""
        for descriptor in self.files.values():
            os.close(descriptor)
        self.files.clear()

    def __enter__(self) -> Gpus:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def gpus_here() -> list[str]:
    """UUIDs of this machine's GPUs, in nvidia-smi's order; of those in CUDA_VISIBLE_DEVICES where that is set."""
    if (named := os.environ.get(GPUS)) is not None:
        return [uuid.strip() for uuid in named.split(",") if uuid.strip()]
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    uuids = told.split()
    visible = os.environ.get(VISIBLE)
    if visible is None:
        return uuids
    chosen = [one.strip() for one in visible.split(",") if one.strip()]
    return [uuids[int(one)] if one.isdigit() and int(one) < len(uuids) else one for one in chosen if one != "-1"]


def take(count: int, pool: str) -> Gpus:
    """Waits until `count` GPUs are free, and takes them all at once.

    Who came first is served first, so that one GPU after the other cannot be taken from under a launch that waits for
    eight. Raises `BadInput` where the machine has fewer.
    """
    if not count:
        return Gpus([])
    here = gpus_here()
    if len(here) < count:
        raise BadInput(
            f"a slot takes {count} GPUs and this machine has {len(here)}: run the step where they are, or change the"
            " pool's launcher or gpus_per_slot",
            field=f"pools.{pool}",
        )
    folder = _locks()
    queue = _open(folder / "queue")
    try:
        fcntl.flock(queue, fcntl.LOCK_EX)
        waits = False
        while (gpus := _try_to_take(count, here, folder)) is None:
            if not waits:
                log.info("waits for %d free GPUs of %d", count, len(here))
            waits = True
            time.sleep(PERIOD)
        return gpus
    finally:
        os.close(queue)


def _try_to_take(count: int, here: list[str], folder: Path) -> Gpus | None:
    gpus = Gpus([])
    for uuid in here:
        path = folder / f"{uuid}.lock"
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while any process shares it
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # shared with the ranks; nobody is between, as takers queue
        except BlockingIOError:
            os.close(descriptor)
            continue
        gpus.uuids.append(uuid)
        gpus.files[path] = descriptor
        if len(gpus.uuids) == count:
            return gpus
    gpus.release()
    return None


_own: list[Gpus] = []


def take_for_this_process(count: int, pool: str) -> None:
    """Takes the GPUs of a stage that runs in this process, until the process ends, as CUDA keeps a device that long.

    A process that held as many before goes on with them.
    """
    if _own and len(_own[0].uuids) >= count:
        return
    for gpus in _own:
        gpus.release()
    _own[:] = [take(count, pool)]
    os.environ.update(_own[0].environment)


def share_launchers_gpus() -> None:
    """Locks what the launcher of this process has locked, until this process ends."""
    for path in filter(None, os.environ.get(HELD, "").split(os.pathsep)):
        fcntl.flock(_open(Path(path)), fcntl.LOCK_SH)


def main(arguments: list[str]) -> None:
    """`python -m alignment.devices COUNT POOL COMMAND…`: takes GPUs and becomes the command, which holds them."""
    gpus = take(int(arguments[0]), arguments[1])
    for descriptor in gpus.files.values():
        os.set_inheritable(descriptor, True)
    os.execvpe(arguments[2], arguments[2:], os.environ | gpus.environment)


def _locks() -> Path:
    folder = Path(os.environ.get(LOCKS) or Path(tempfile.gettempdir(), "alignment-dags-gpus"))
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):  # another user made it, and has opened it to all
        folder.chmod(0o1777)
    return folder


def _open(path: Path) -> int:
    """An open lock file, which every user of the machine may lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY)
    with contextlib.suppress(PermissionError):
        os.fchmod(descriptor, 0o666)
    return descriptor


if __name__ == "__main__":
    main(sys.argv[1:])
