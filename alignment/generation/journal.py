"""Answers of an endpoint, appended to a file at once: an interruption loses none, and no question is asked twice."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Generic, Protocol, Self, TypeVar

from alignment.errors import BadInput


class Entry(Protocol):
    """An entry of a journal: anything that has the digest of its question."""

    @property
    def asked(self) -> str:
        """Digest of the question."""


E = TypeVar("E", bound=Entry)


class Journal(ABC, Generic[E]):
    """A file of JSON lines with one or more entries each, by the digest of their question.

    Every line is on the disk before `add` returns. One process writes at a time, and its lock on the file ends with it.
    Safe to share between threads. Use it as a context manager.
    """

    start: ClassVar[bytes]
    """How every line begins. A file whose last line begins otherwise is not a journal, and is not changed."""
    content: ClassVar[str]
    """What the entries are, in one word for errors."""
    remedy: ClassVar[str]
    """What to do with a file that is not a journal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._stream: IO[bytes] | None = None
        self._entries: dict[str, E] = {}

    @abstractmethod
    def _record(self, entry: E) -> dict[str, Any]:
        """The line of one entry."""

    @abstractmethod
    def _parse(self, record: dict[str, Any], row: int) -> Iterable[E]:
        """The entries of one line; raises `BadInput` for a line of another form."""

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("ab")
        except OSError as error:
            raise BadInput(f"cannot be written: {error.strerror}", file=str(self.path)) from error
        try:
            self._take_lock(self._stream)
            self._read()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def find(self, asked: str) -> E | None:
        """The entry of a question by its digest, or None."""
        return self._entries.get(asked)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: E) -> int:
        """Writes an entry; returns the number of entries."""
        record = self._record(entry)
        with self._lock:
            assert self._stream is not None
            append_line(self._stream, record)
            self._entries[entry.asked] = entry
            return len(self._entries)

    def _read(self) -> None:
        lines = read_lines(self.path, self.start, f"not a file of {self.content}; {self.remedy}")
        self._entries = {entry.asked: entry for row, record in lines for entry in self._parse(record, row)}

    def _take_lock(self, stream: IO[bytes]) -> None:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"another process is writing {self.content} into it", file=str(self.path)) from None
        except OSError:  # a file system without locks, such as Lustre mounted without them: the file is not guarded
            return

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def read_lines(path: Path, start: bytes, foreign: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines with their rows; nothing where there is no file.

    A last line that was cut off while it was written is removed; one that lacks only its line break gets one.
    Both happen after all rows are read, so an earlier error leaves the file as it is. Raises `BadInput` for a row that
    is not an object, and with `foreign` when the text after the last line break does not begin with `start`.
    """
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    rest = data[len(whole) :]
    if not (rest.startswith(start) or start.startswith(rest)):
        raise BadInput(foreign, file=str(path))
    complete = _object(rest) is not None
    for row, line in enumerate((data if complete else whole).split(b"\n"), start=1):
        if line.strip():
            record = _object(line)
            if record is None:
                raise BadInput("not a JSON object; remove the line to ask its question again", file=str(path), row=row)
            yield row, record
    if complete:
        with path.open("ab") as stream:
            stream.write(b"\n")
    elif rest:
        os.truncate(path, len(whole))


def append_line(stream: IO[bytes], record: dict[str, Any]) -> None:
    """Writes a line; returns when the line is on the disk."""
    stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    stream.flush()
    os.fsync(stream.fileno())


def _object(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError):
        value = json.loads(line)
        return value if isinstance(value, dict) else None
    return None
