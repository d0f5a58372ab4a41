"""Resumable work beyond one machine: trainer checkpoints of a build are kept in a remote store as well.

A local store's work folder is the store's own. With a remote store it lies on the machine that works, and this file
copies what a build can be resumed from to `work/<kind>/<key>/` of the store, so that a launch goes on elsewhere. A
reader finds a checkpoint complete only when every file has the size that its marker names, so a copy that was cut off
is none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from filelock import FileLock

from alignment.errors import one_line
from alignment.store.store import Store

RESUMABLE = ("trainer", "best")
"""Folders of a work folder that are copied. Others hold rows, which are read again from their artifacts."""
MARKER = "COMPLETE.json"
"""Name of the file that is written last into a checkpoint, with the size of every other."""
PERIOD = 20.0  # seconds between two looks at what has changed

log = logging.getLogger(__name__)


class WorkCopies:
    """Copies of one build's checkpoints in a remote store, made by one process on each machine while it works."""

    def __init__(self, store: Store, kind: str, key: str) -> None:
        self.store = store
        self.folder = store.work_path(kind, key)
        self.remote = PurePosixPath(store.path("work", kind, key))
        self._saved: dict[str, tuple[int, int]] = {}  # file to its size and time when it was copied
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_saving, daemon=True)

    def fetch(self) -> None:
        """Brings what another machine has saved, and this one lacks. Every rank may call it; one does the work."""
        with FileLock(f"{self.folder}.lock"):
            complete = {path.parent for path in self.folder.rglob(MARKER)}  # what is whole here stays as it is
            for path, size in sorted(self._remote_files().items(), key=lambda file: file[0].endswith(MARKER)):
                local = self.folder / path
                if local.parent in complete or (local.is_file() and local.stat().st_size == size):
                    continue
                local.parent.mkdir(parents=True, exist_ok=True)
                self.store.fs.get_file(str(self.remote / path), str(local))
                self._saved[path] = _state(local)

    def save(self) -> None:
        """Copies what is new, markers last, then removes copies of what this machine has removed since."""
        here = dict(self._local_files())  # a marker in it was written after all files of its checkpoint
        for path in sorted(here, key=lambda path: path.endswith(MARKER)):
            if self._saved.get(path) != here[path] and (self.folder / path).exists():
                self.store.fs.put_file(str(self.folder / path), str(self.remote / path))
                self._saved[path] = here[path]
        for path in sorted(set(self._saved) - set(here), key=lambda path: not path.endswith(MARKER)):
            self.store.fs.rm_file(str(self.remote / path))
            del self._saved[path]

    def __enter__(self) -> WorkCopies:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if error is not None:  # else the build is done, and its work is cleared
            self._try_to_save()

    def _keep_saving(self) -> None:
        while not self._over.wait(PERIOD):
            self._try_to_save()

    def _try_to_save(self) -> None:
        try:
            self.save()
        except Exception as error:  # the build does not depend on it, and the next look tries again
            log.warning("work was not copied to %s: %s", self.store.shown, one_line(error))

    def _local_files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for path in (path for name in RESUMABLE for path in sorted((self.folder / name).rglob("*"))):
            if path.is_file():
                with suppress(FileNotFoundError):  # of an older checkpoint that is just being removed
                    yield path.relative_to(self.folder).as_posix(), _state(path)

    def _remote_files(self) -> dict[str, int]:
        try:
            found: dict[str, Any] = self.store.fs.find(str(self.remote), detail=True)
        except FileNotFoundError:
            return {}
        return {PurePosixPath(path).relative_to(self.remote).as_posix(): file["size"] for path, file in found.items()}


def _state(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns


@contextmanager
def kept_work(store: Store, kind: str, key: str, saves: bool) -> Iterator[Path]:
    """The work folder of a build, as far as any machine has come; meanwhile what is new in it is saved, where this
    process is the one that `saves` for its machine."""
    if store.is_local:
        yield store.work_path(kind, key)
        return
    copies = WorkCopies(store, kind, key)
    copies.fetch()
    with copies if saves else nullcontext():
        yield copies.folder
