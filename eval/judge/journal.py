"""Judgments appended as they come, so that an interruption loses none and nothing is asked twice."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from alignment.digest import json_digest
from eval.judge.judgment import Judgment, judgment_record, parse_judgment


class Journal:
    """A JSON-lines file of judgments, each under the digest of what was asked. Safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._known: dict[str, Judgment] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        whole = b""
        for row, line in enumerate(self.path.read_bytes().splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):  # cut off while it was written
                break
            record = json.loads(line)
            self._known[record.pop("asked")] = parse_judgment(record, str(self.path), row)
            whole += line
        self.path.write_bytes(whole)

    def find(self, asked: str) -> Judgment | None:
        return self._known.get(asked)

    def add(self, asked: str, judgment: Judgment) -> None:
        line = json.dumps(judgment_record(judgment) | {"asked": asked}, ensure_ascii=False) + "\n"
        with self._lock, self.path.open("a", encoding="utf-8") as stream:
            stream.write(line)
            stream.flush()
            self._known[asked] = judgment


def asked_digest(model: str, messages: list[dict[str, str]]) -> str:
    """What names a question to a judge: model and messages, to the letter."""
    return json_digest([model, messages])[:32]
