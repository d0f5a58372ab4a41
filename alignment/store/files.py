"""The files of an artifact's folder: described when it is committed, verified when it is read.

Verifying reads every byte, which of a large checkpoint takes minutes. The ranks of a launch read the same folder at the
same time, so one of each machine hashes it, and the others wait for what it found.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Literal

from alignment.digest import json_digest, stream_sha256
from alignment.errors import CorruptArtifact
from alignment.store.commit import Commit, FileEntry

NOT_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def let_others_read(folder: Path) -> None:
    """Gives every file and folder below one the rights that a new one gets here (0666 and 0777 less the umask):
    safetensors and temporary folders ask for their owner's alone, whoever shares the store."""
    probe = folder / ".rights"
    probe.touch()
    rights = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        has = stat.S_IMODE(path.stat().st_mode)
        wanted = has | rights | ((rights & 0o444) >> 2 if path.is_dir() else 0)
        if wanted != has:
            path.chmod(wanted)


def describe(folder: Path) -> dict[str, FileEntry]:
    """sha256 and size of every file of a finished folder; pickled weights are refused."""
    files: dict[str, FileEntry] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        if path.suffix in NOT_WEIGHTS:
            raise CorruptArtifact(f"{path}: artifacts hold no pickled weights; save as safetensors")
        with path.open("rb") as stream:
            sha256, size = stream_sha256(stream)
            os.fsync(stream.fileno())  # after a power cut there must be no marker without its files
        files[name] = FileEntry(sha256=sha256, size=size)
        _hashed[_as_it_lies(path)] = sha256
    return files


Deep = bool | Literal["once"]
"""How a file is compared with its commit record: by size, by its sha256 (True), or by its sha256 unless this process,
or another rank of its launch on this machine, hashed the file since it last changed (`once`)."""
AT_A_TIME = 4
"""Files that are hashed side by side: the weights of a large model are several."""
_hashed: dict[tuple[str, int, int, int], str] = {}


def _as_it_lies(path: Path) -> tuple[str, int, int, int]:
    status = path.stat()
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns


def _sha256(path: Path, deep: Deep) -> str:
    place = _as_it_lies(path)
    if deep != "once" or place not in _hashed:
        with path.open("rb") as stream:
            _hashed[place], _ = stream_sha256(stream)
    return _hashed[place]


def verify(folder: Path, commit: Commit, *, deep: Deep) -> None:
    """Checks a folder against its commit: every size always, and every sha256 when `deep`."""
    for name, expected in commit.files.items():
        path = folder / name
        if not path.is_file():
            raise CorruptArtifact(f"{path}: named in the commit record but missing")
        if path.stat().st_size != expected.size:
            raise CorruptArtifact(f"{path}: {path.stat().st_size} bytes, committed with {expected.size}")
    if not deep:
        return
    known = deep == "once" and all(_as_it_lies(folder / name) in _hashed for name in commit.files)
    together = nullcontext() if known or deep != "once" else _hashed_once_a_machine(folder)
    with together, ThreadPoolExecutor(AT_A_TIME) as pool:
        found = pool.map(lambda name: _sha256(folder / name, deep), commit.files)
        for (name, expected), sha256 in zip(commit.files.items(), found, strict=True):
            if sha256 != expected.sha256:
                raise altered(str(folder / name), sha256, expected)


def altered(path: str, sha256: str, expected: FileEntry) -> CorruptArtifact:
    """The error for a file that is not the one that was committed."""
    return CorruptArtifact(
        f"{path}: sha256 {sha256}, committed with {expected.sha256}: it was changed or damaged since; restore it from a"
        " backup, or move the artifact's folder away and run again"
    )


# The ranks of one launch on one machine: the first that asks for a folder hashes it, and the others take its word.


@contextmanager
def _hashed_once_a_machine(folder: Path) -> Iterator[None]:
    """What another rank of this launch and machine has hashed of the folder is known inside, and what this one hashes
    there the others know afterwards, damaged files too. One rank at a time is inside; the kernel lets the next one in
    where a rank dies.
    """
    launch = _launch()
    note = None if launch is None else _note_of(folder)
    if note is None:
        yield
        return
    with note:
        with suppress(OSError, ValueError, TypeError, KeyError):  # empty, or a rank died while it wrote
            note.seek(0)
            told = json.loads(note.read())
            if told["launch"] == launch:  # another launch hashes for itself
                _hashed.update({(path, *lies): sha256 for path, *lies, sha256 in told["files"]})
        try:
            yield
        finally:
            mine = [
                [*place, sha256] for place, sha256 in list(_hashed.items()) if Path(place[0]).is_relative_to(folder)
            ]
            with suppress(OSError):  # no room for it: the others hash for themselves
                os.ftruncate(note.fileno(), 0)
                os.write(note.fileno(), json.dumps({"launch": launch, "files": mine}).encode())


def _launch() -> list[str] | None:
    """What the ranks of one launch on this machine have in common; None for a rank that is alone there."""
    if int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1) == 1:
        return None
    names = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    return [platform.node(), str(os.getppid()), *(os.environ.get(name, "") for name in names)]


def _note_of(folder: Path) -> IO[str] | None:
    """The locked file in which ranks tell each other of a folder; None where this user has no place for it of his own,
    as nobody else may vouch for a file, and where that place knows no locks."""
    place = Path(tempfile.gettempdir(), f"alignment-dags-{os.getuid()}")
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        if place.stat().st_uid != os.getuid() or place.is_symlink():
            return None
        note = (place / f"{json_digest(str(folder))[:40]}.json").open("a+", encoding="utf-8")
    except OSError:
        return None
    try:
        fcntl.flock(note, fcntl.LOCK_EX)
    except OSError:
        note.close()
        return None
    return note
