"""Judgments are appended at once, so that an interruption loses none and no question is asked twice."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from alignment.generation import journal
from eval.judge.budget import Charges, Usage
from eval.judge.files import game_fields, game_record, parse_judgments, single_record
from eval.judge.judgment import Judgment


@dataclass(frozen=True)
class Entry:
    """A judgment with the digest of its question and the tokens it took."""

    asked: str
    judgment: Judgment
    usage: Usage


class Journal(journal.Journal[Entry]):
    """A file of judgments in FastChat's forms, each with the digest of its question and its tokens."""

    start = b'{"question_id": '
    content = "judgments"
    remedy = "judge into a new file"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._charges = Charges(path)

    @property
    def usage(self) -> Usage:
        """Tokens of all judgments in the file and of all calls without a judgment."""
        return sum((entry.usage for entry in self._entries.values()), self._charges.total)

    def charge(self, asked: str, used: Usage) -> None:
        """Records, in a second file, what a call without a judgment may have cost."""
        with self._lock:
            self._charges.add(asked, used)

    def refuse_others(self, asked: Collection[str]) -> None:
        """Raises `BadInput` when the file has a judgment of another question than those asked now."""
        others = [entry.judgment for entry in self._entries.values() if entry.asked not in asked]
        if others:
            problem = (
                f"holds {len(others)} judgments of other answers, by other prompts or another judge "
                f"(first: question {others[0].question_id} turn {others[0].turn}); judge into a new file"
            )
            raise BadInput(problem, file=str(self.path), row=others[0].row)

    def tidy(self, order: Sequence[str]) -> None:
        """Writes the file again, in this order (all digests), with both games of a pair on one line.

        Nothing can be added afterwards.
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
        self._close()  # the open stream is of the replaced file: a line added to it would be lost

    def _record(self, entry: Entry) -> dict[str, Any]:
        judgment = entry.judgment
        return (game_record(judgment) if judgment.game else single_record(judgment)) | _marks(entry)

    def _parse(self, record: dict[str, Any], row: int) -> Iterator[Entry]:
        for judgment in parse_judgments(record, str(self.path), row):
            yield _entry(record, judgment, str(self.path), row)

    def _read(self) -> None:
        super()._read()
        self._charges.read()


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
