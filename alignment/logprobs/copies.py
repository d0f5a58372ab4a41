"""Local copies of the parts of a remote store: a part never changes, so its name says that a copy is the right one."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path, PurePosixPath

from alignment.store import Store
from alignment.store.place import OUT_OF_SPACE, explain_no_space

MOST_BYTES = 16 << 30
"""Bytes of all copies on this machine; those that were used longest ago go first."""


class Copies:
    """Copies of the parts of one folder, under the store's local cache."""

    def __init__(self, store: Store, folder: str) -> None:
        self.fs = store.fs
        self.root = store.cache / "parts"
        self.folder = self.root / hashlib.sha256(store.url.encode()).hexdigest()[:16] / folder

    def bring(self, path: str, size: int, *, fresh: bool = False) -> Path:
        """The local copy of a part; brought where there is none of its size, or where a `fresh` one is asked for.

        Raises `FileNotFoundError` where the part is not there any more.
        """
        copy = self.folder / PurePosixPath(path).name
        if not fresh and self._size(copy) == size:
            with suppress(OSError):
                os.utime(copy)
            return copy
        arriving = self._arriving(copy)
        try:
            with explain_no_space(str(self.folder)):
                self.fs.get_file(path, str(arriving))
            if self._size(arriving) != size:
                raise ConnectionError(f"{path}: {self._size(arriving)} of {size} bytes arrived")
            arriving.replace(copy)
        finally:
            arriving.unlink(missing_ok=True)
        self._bound()
        return copy

    def put(self, name: str, data: bytes) -> None:
        """Keeps what was just written to the store, which is likely to be read next; a full disk is no error."""
        copy = self.folder / name
        arriving = self._arriving(copy)
        try:
            arriving.write_bytes(data)
            arriving.replace(copy)
        except OSError as error:
            if error.errno not in OUT_OF_SPACE:
                raise
        finally:
            arriving.unlink(missing_ok=True)
        self._bound()

    def keep_only(self, names: Collection[str]) -> None:
        """Removes copies of parts that the store has no more: merged, set aside or erased, here or elsewhere."""
        for copy in self.folder.glob("part-*"):
            if copy.name not in names:
                copy.unlink(missing_ok=True)
        remove_abandoned(self.folder)

    def forget(self, name: str) -> None:
        """Removes the copy of a file, if there is one."""
        (self.folder / name).unlink(missing_ok=True)

    def _arriving(self, copy: Path) -> Path:
        copy.parent.mkdir(parents=True, exist_ok=True)
        return copy.with_name(f".{copy.name}.{uuid.uuid4().hex[:8]}")

    def _size(self, path: Path) -> int | None:
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return None

    def _bound(self) -> None:
        copies = []
        for path in self.root.rglob("*part-*"):
            with suppress(FileNotFoundError):
                about = path.stat()
                copies.append((about.st_mtime, about.st_size, path))
        excess = sum(size for _, size, _ in copies) - MOST_BYTES
        for _, size, path in sorted(copies, key=lambda copy: copy[0]):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size


ABANDONED = 3600.0


def remove_abandoned(folder: Path) -> None:
    """Removes files of a folder that never arrived: those of writers that died an hour ago or earlier."""
    for path in folder.glob(".part-*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()
