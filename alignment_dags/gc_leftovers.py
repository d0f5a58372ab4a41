"""What interrupted builds leave behind: attempts without a marker, and work folders of what is finished."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from alignment.artifacts import Store
from alignment.artifacts.store import ERASED
from alignment_dags.gc_items import Leftover

DAY = 24 * 3600.0
ATTEMPT = re.compile(r"[0-9a-f]{12}")


def leftovers(store: Store, now: float | None = None) -> Iterator[Leftover]:
    """Attempts that nobody committed and nothing was written to for a day, and finished work folders."""
    yield from _attempts(store, time.time() if now is None else now)
    yield from _work(store)


def _attempts(store: Store, now: float) -> Iterator[Leftover]:
    store.fs.invalidate_cache()
    for folder in store.fs.glob(store.path("*", "*", "*")):
        kind, key, name = str(folder).removeprefix(store.root).strip("/").split("/")
        if ATTEMPT.fullmatch(name) is None or kind in ("refs", "work", "cache", "withdrawn"):
            continue
        commit = store.find(kind, key)
        if (commit is None or commit.attempt != name) and not store.fs.exists(
            store.path(kind, key, f"{ERASED}{name}.json")
        ):
            files = store.fs.find(str(folder), detail=True).values()
            newest = max([_written(file) for file in files], default=0.0)
            if now - newest > DAY:
                size = sum(int(file.get("size") or 0) for file in files)
                yield Leftover(str(folder), kind, key, size, "an attempt that was never committed")
    if store.is_local:
        return
    for path in (store.cache / "attempts").glob("*/*/*"):
        newest = max([one.stat().st_mtime for one in [path, *path.rglob("*")]])
        if now - newest > DAY:
            kind, key = path.parts[-3], path.parts[-2]
            yield Leftover(str(path), kind, key, _size(path), "an attempt that was never committed", local=True)


def _work(store: Store) -> Iterator[Leftover]:
    root = Path(store.path("work")) if store.is_local else store.cache / "work"
    for path in sorted(root.glob("*/*")):
        kind, key = path.parts[-2:]
        if store.find(kind, key) is not None:
            yield Leftover(str(path), kind, key, _size(path), "the work folder of a finished build", local=True)


def _written(file: dict[str, Any]) -> float:
    """When a file was last written, by what the file system calls that; unknown counts as just now."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        when = file.get(name)
        if isinstance(when, int | float):
            return float(when)
        if isinstance(when, datetime):
            return when.timestamp()
    return time.time()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
