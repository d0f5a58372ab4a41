"""Judgments appended as they come, so that an interruption loses none and nothing is asked twice."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from alignment.errors import BadInput
from eval.judge.budget import Charges, Usage
from eval.judge.files import game_fields, game_record, parse_judgments, single_record
from eval.judge.judgment import Judgment
from eval.suites.rows import parse_rows

START = b'{"question_id": '
"""How every line begins."""


@dataclass(frozen=True)
class Entry:
    """A judgment, under the digest of what was asked, with the tokens it took."""

    asked: str
    judgment: Judgment
    usage: Usage


class Journal:
    """A file of judgments in FastChat's forms, each with the digest of what was asked and its tokens beside it.

    Every line is on the disk before the next question takes its place. One process writes at a time: the lock
    on the file dies with it. Safe to share between threads. Use it as a context manager.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._stream: IO[str] | None = None
        self._entries: dict[str, Entry] = {}
        self._charges = Charges(path)

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise BadInput(f"cannot be written: {error.strerror}", file=str(self.path)) from error
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
            self._charges.read()
        except BlockingIOError:
            self._stream.close()
            raise BadInput("another process is writing judgments into it", file=str(self.path)) from None
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    @property
    def usage(self) -> Usage:
        """What all judgments in the file took, and all calls that gave none."""
        return sum((entry.usage for entry in self._entries.values()), self._charges.total)

    def find(self, asked: str) -> Entry | None:
        return self._entries.get(asked)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> int:
        """Writes it down; returns how many there are now."""
        judgment = entry.judgment
        record = game_record(judgment) if judgment.game else single_record(judgment)
        line = json.dumps(record | _marks(entry), ensure_ascii=False) + "\n"
        with self._lock:
            assert self._stream is not None
            self._stream.write(line)
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._entries[entry.asked] = entry
            return len(self._entries)

    def charge(self, asked: str, used: Usage) -> None:
        """Writes down, in a file beside, what a call may have cost that gave no judgment."""
        with self._lock:
            self._charges.add(asked, used)

    def refuse_others(self, asked: Collection[str]) -> None:
        """Raises `BadInput` when a judgment in the file is of anything else than what is asked now."""
        others = [entry.judgment for entry in self._entries.values() if entry.asked not in asked]
        if others:
            problem = (
                f"holds {len(others)} judgments of other answers, by other prompts or another judge "
                f"(first: question {others[0].question_id} turn {others[0].turn}); judge into a new file"
            )
            raise BadInput(problem, file=str(self.path), row=others[0].row)

    def tidy(self, order: Sequence[str]) -> None:
        """Writes the file anew: in this order (of digests, all of them), with both games of a pair on one line.

        Nothing can be added after it.
        """
        lines: dict[tuple[str, int, bool], dict[str, Any]] = {}
        for entry in (self._entries[asked] for asked in order if asked in self._entries):
            judgment = entry.judgment
            place = judgment.question_id, judgment.turn, judgment.game > 0
            if not judgment.game:
                lines[place] = single_record(judgment) | _marks(entry)
            elif place in lines:
                lines[place] |= game_fields(judgment) | _marks(entry)
            else:
                lines[place] = game_record(judgment) | _marks(entry)
        whole = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with whole.open("w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values())
            stream.flush()
            os.fsync(stream.fileno())
        whole.replace(self.path)
        self._close()  # on the file that is no more: what came now would be lost

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _read(self) -> None:
        """Takes in what is there; a last line of ours that was cut off while it was written is taken away."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        rest = data[len(whole) :]
        if not (rest.startswith(START) or START.startswith(rest)):
            raise BadInput("not a file of judgments; judge into a new file", file=str(self.path))
        if complete := _is_json(rest):  # only its line break is missing
            whole, rest = data, b""
        for row, record in parse_rows(whole, str(self.path)):
            for judgment in parse_judgments(record, str(self.path), row):
                entry = _entry(record, judgment, str(self.path), row)
                self._entries[entry.asked] = entry
        if rest:
            os.truncate(self.path, len(whole))
        elif complete and self._stream is not None:
            self._stream.write("\n")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _mark(game: int) -> str:
    return f"g{game}_" if game else ""


def _marks(entry: Entry) -> dict[str, Any]:
    mark = _mark(entry.judgment.game)
    return {f"{mark}asked": entry.asked, f"{mark}tokens": [entry.usage.input_tokens, entry.usage.output_tokens]}


def _entry(record: dict[str, Any], judgment: Judgment, file: str, row: int) -> Entry:
    mark = _mark(judgment.game)
    asked, tokens = record.get(f"{mark}asked"), record.get(f"{mark}tokens")
    if not isinstance(asked, str) or not isinstance(tokens, list) or [type(t) for t in tokens] != [int, int]:
        problem = "a judgment that was not written here; judge into a new file"
        raise BadInput(problem, file=file, row=row, field=f"{mark}asked")
    return Entry(asked, judgment, Usage(*tokens))
