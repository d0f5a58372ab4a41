from __future__ import annotations

import errno
import fcntl
import json
from pathlib import Path

import pytest

from alignment.errors import BadInput
from alignment.generation.endpoint import _Journal, _Kept
from alignment.generation.generator import Answer

KEPT = [_Kept(name, Answer(f"text \u2028 {name}", 3)) for name in "abc"]


def write(path: Path) -> bytes:
    with _Journal(path) as journal:
        assert [journal.add(one) for one in KEPT] == [1, 2, 3]
        assert path.read_bytes().count(b"\n") == 3  # on the disk before the next one
    return path.read_bytes()


def test_a_line_cut_off_anywhere_is_taken_away_and_one_without_its_break_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "kept.jsonl"
    data = write(path)
    for cut in range(data[:-1].rfind(b"\n") + 1, len(data)):
        path.write_bytes(data[:cut])
        with _Journal(path) as journal:
            whole = cut == len(data) - 1
            assert [journal.find(one.asked) for one in KEPT] == [*KEPT[:2], KEPT[2] if whole else None]
            if not whole:
                journal.add(KEPT[2])
        assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"\0\0\0", "row 2: not a JSON object; remove the line"),
        (b"[1]", "row 2: not a JSON object"),
        (b'{"asked": "b"}', "row 2: not an answer that was written here"),
        (b'{"asked": "b", "text": "t", "tokens": true}', "row 2: not an answer that was written here"),
    ],
)
def test_a_damaged_line_is_named_and_the_file_left_as_it_is(tmp_path: Path, line: bytes, told: str) -> None:
    path = tmp_path / "kept.jsonl"
    lines = write(path).splitlines(keepends=True)
    damaged = b"".join([lines[0], line + b"\n", lines[2], b'{"asked": "cut'])
    path.write_bytes(damaged)
    with pytest.raises(BadInput, match=told), _Journal(path):
        pass
    assert path.read_bytes() == damaged


def test_somebody_elses_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    path.write_text("my notes")
    with pytest.raises(BadInput, match="not a file of answers; remove the file"), _Journal(path):
        pass
    assert path.read_text() == "my notes"


def test_one_writes_at_a_time_and_a_file_system_without_locks_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.jsonl"
    with _Journal(path), pytest.raises(BadInput, match="another process is writing answers into it"), _Journal(path):
        pass

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert [json.loads(line)["asked"] for line in write(path).splitlines()] == ["a", "b", "c"]
