"""The plan of `align gc`: what is removed, what stays, and why."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from alignment.store import Commit, Store
from alignment.store.store import ERASED


@dataclass(frozen=True)
class ToErase:
    """Files of a committed artifact to erase; its commit record stays."""

    commit: Commit
    files: tuple[str, ...]
    why: str

    @property
    def kind(self) -> str:
        """The artifact's kind."""
        return self.commit.kind

    @property
    def key(self) -> str:
        """The artifact's key."""
        return self.commit.key

    @property
    def bytes(self) -> int:
        """Size of the files."""
        return sum(self.commit.files[name].size for name in self.files)

    def plain(self) -> dict[str, Any]:
        """The files with the artifact and the reason, as plain JSON."""
        about = {"kind": self.kind, "key": self.key, "digest": self.commit.digest}
        return {**about, "files": list(self.files), "bytes": self.bytes, "why": self.why}


@dataclass(frozen=True)
class Kept:
    """An artifact that would be erased if it were not still in use; `name` is what the output calls it, by default its
    kind and key."""

    kind: str
    key: str
    why: str
    name: str = ""


@dataclass(frozen=True)
class Leftover:
    """A folder or file that is no longer needed, in the store or (`local`) on this machine.

    `attempt`: a store's attempt.
    """

    path: str
    kind: str
    key: str
    bytes: int
    why: str
    local: bool = False
    attempt: bool = False


@dataclass
class Plan:
    """Everything that one `align gc` would do."""

    to_erase: list[ToErase] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    tokenised: set[str] = field(default_factory=set)
    """Ids of rows whose token ids are erased everywhere."""

    @property
    def bytes(self) -> int:
        """Bytes that the plan frees."""
        return sum(item.bytes for item in self.to_erase) + sum(item.bytes for item in self.leftovers)


# Leftovers of interrupted builds: attempts without a marker, work folders of finished builds, half-written small files.

DAY = 24 * 3600.0
ABANDONED = 7 * DAY
"""Work that no build continued for this long is removed."""
ATTEMPT = re.compile(r"[0-9a-f]{12}")
PARTIAL = re.compile(r".+\.json\.[0-9a-f]{8}")
"""What `Place` calls a small file until it is whole."""


def leftovers(
    store: Store, now: float | None = None, resumable: Collection[str] = (), withdrawn_at: float | None = None
) -> Iterator[Leftover]:
    """Attempts without a commit and half-written files that were not written to for a day, and work folders that are no
    longer needed.

    The last are of finished builds; or they are not of a key in `resumable`, which the next run continues, and were
    not written to for a week or begun before `withdrawn_at`: the rows that a training maps into memory may hold some
    that were withdrawn since. A folder that a builder holds is never a leftover, however long the builder writes
    nothing.
    """
    now = time.time() if now is None else now
    for leftover in (*_attempts(store, now), *_partials(store, now), *_work(store, now, resumable, withdrawn_at)):
        with store.unless_building(leftover.kind, leftover.key) as free:
            if free:
                yield leftover


def remove(store: Store, leftover: Leftover) -> None:
    """Removes a leftover, unless it was committed since it was found. The caller holds the lock of its key."""
    attempt = PurePosixPath(leftover.path).name
    if leftover.attempt and _committed(store, leftover.kind, leftover.key, attempt):
        return
    if leftover.local and Path(leftover.path).is_file():
        Path(leftover.path).unlink(missing_ok=True)
    elif leftover.local:
        shutil.rmtree(leftover.path, ignore_errors=True)
    else:
        store.remove_folder(leftover.path)


def _attempts(store: Store, now: float) -> Iterator[Leftover]:
    why = "an attempt that was never committed"
    for folder in store.matching(store.root, "*/*/*"):
        kind, key, name = folder.removeprefix(store.root).strip("/").split("/")
        if ATTEMPT.fullmatch(name) is None or kind in ("refs", "work", "cache", "withdrawn"):
            continue
        if not _committed(store, kind, key, name):
            files = store.fs.find(folder, detail=True).values()
            newest = max([_written(file) for file in files], default=0.0)
            if now - newest > DAY:
                size = sum(int(file.get("size") or 0) for file in files)
                yield Leftover(folder, kind, key, size, why, attempt=True)
    if store.is_local:
        return
    for path in (store.cache / "attempts").glob("*/*/*"):
        if now - _touched(path) > DAY:
            kind, key = path.parts[-3], path.parts[-2]
            yield Leftover(str(path), kind, key, _size(path), why, local=True)


def _partials(store: Store, now: float) -> Iterator[Leftover]:
    """Refs, markers and records whose writer was killed before it renamed them; a remote store has none."""
    if not store.is_local:
        return
    for depth in ("*", "*/*", "*/*/*"):
        for path in Path(store.root).glob(f"{depth}/*.json.????????"):
            if PARTIAL.fullmatch(path.name) and path.is_file() and now - path.stat().st_mtime > DAY:
                kind, *rest = path.relative_to(store.root).parts
                why = "a file that its writer never finished"
                yield Leftover(str(path), kind, rest[0], path.stat().st_size, why, local=True)


def _committed(store: Store, kind: str, key: str, attempt: str) -> bool:
    """Whether an attempt was committed, even if files of it were erased later."""
    commit = store.find(kind, key)
    if commit is not None and commit.attempt == attempt:
        return True
    return bool(store.fs.exists(store.path(kind, key, f"{ERASED}{attempt}.json")))


def _work(store: Store, now: float, resumable: Collection[str], withdrawn_at: float | None) -> Iterator[Leftover]:
    root = Path(store.path("work")) if store.is_local else store.cache / "work"
    for path in (path for path in sorted(root.glob("*/*")) if path.is_dir()):
        kind, key = path.parts[-2:]
        written = [_touched(path), _begun(path)]
        if (why := _why_not(store, kind, key, written, now, resumable, withdrawn_at)) is not None:
            yield Leftover(str(path), kind, key, _size(path), why, local=True)
    if store.is_local:
        return
    for folder in store.matching(store.path("work"), "*/*"):  # copies of the checkpoints of any machine
        kind, key = folder.split("/")[-2:]
        files = list(store.fs.find(folder, detail=True).values())
        written = [_written(file) for file in files]
        ends = [max(written, default=now), min(written, default=now)]
        why = _why_not(store, kind, key, ends, now, resumable, withdrawn_at)
        if files and why is not None:
            yield Leftover(folder, kind, key, sum(int(file.get("size") or 0) for file in files), why)


def _why_not(
    store: Store,
    kind: str,
    key: str,
    written: list[float],
    now: float,
    resumable: Collection[str],
    withdrawn_at: float | None,
) -> str | None:
    """Why a work folder is not needed; None for one that is. `written` are when it was last and first written to."""
    last, first = written
    if store.find(kind, key) is not None:
        return "the work folder of a finished build"
    if key in resumable:
        return None
    if now - last > ABANDONED:
        return "work that nobody went on with for a week"
    if withdrawn_at is not None and first < withdrawn_at + 1:  # of whole seconds
        return "work that was begun before rows were withdrawn"
    return None


def _touched(folder: Path) -> float:
    """When anything in a folder was last written."""
    return max([path.stat().st_mtime for path in [folder, *folder.rglob("*")]])


def _begun(folder: Path) -> float:
    """When the first of a folder's files was written."""
    return min([path.stat().st_mtime for path in folder.rglob("*") if path.is_file()], default=math.inf)


def _written(file: dict[str, Any]) -> float:
    """When a file was last written, under any of the names for it; an unknown time counts as now."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        when = file.get(name)
        if isinstance(when, int | float):
            return float(when)
        if isinstance(when, datetime):
            return when.timestamp()
    return time.time()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
