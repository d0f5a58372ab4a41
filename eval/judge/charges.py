"""What an endpoint may have charged for without giving a judgment, so that a budget holds over resumptions."""

from __future__ import annotations

import json
import os
from pathlib import Path

from alignment.errors import BadInput
from eval.jsonl import parse_rows
from eval.judge.usage import Usage


class Charges:
    """Tokens, a line a call, in a file of their own: that of the judgments is for other tools too.

    There is no such file until something was charged for nothing. The lock on the judgments' file guards it.
    """

    def __init__(self, judgments: Path) -> None:
        self.path = judgments.with_name(f"{judgments.name}.charges")
        self.total = Usage()

    def read(self) -> None:
        """Takes in what is there; a last line that was cut off while it was written is taken away.

        Raises `BadInput` naming a row that was not written here.
        """
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        self.total = Usage()
        for row, record in parse_rows(whole, str(self.path)):
            tokens = record.get("tokens")
            if not isinstance(tokens, list) or [type(number) for number in tokens] != [int, int]:
                raise BadInput("not a charge that was written here", file=str(self.path), row=row, field="tokens")
            self.total += Usage(*tokens)
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))

    def add(self, asked: str, used: Usage) -> None:
        """Writes down what a call took; `asked` is the digest of its question."""
        line = json.dumps({"asked": asked, "tokens": [used.input_tokens, used.output_tokens]})
        with self.path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.total += used
