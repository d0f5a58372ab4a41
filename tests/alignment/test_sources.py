"""Source files are found, pinned by content, and not read twice."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import fsspec
import pytest

from alignment import sources
from alignment.errors import BadInput
from alignment.sources import pin_file, pin_files


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def save(path: Path, data: bytes, seconds_ago: int = 3600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    written = path.stat().st_mtime_ns - seconds_ago * 10**9
    os.utime(path, ns=(written, written))
    return path


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_pinned_by_content_under_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.jsonl", b"one")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        pinned = pin_file("a.jsonl")
        assert (pinned.url, pinned.sha256, pinned.size) == (str(tmp_path / "a.jsonl"), sha(b"one"), 3)


def test_a_settled_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.jsonl", b"one")
    first = pin_file(str(path))

    def refuse(stream: object) -> tuple[str, int]:
        raise AssertionError("read again")

    monkeypatch.setattr(sources, "stream_sha256", refuse)
    assert pin_file(str(path)) == first


def test_a_changed_file_is_hashed_again(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", b"one")
    pin_file(str(path))
    save(path, b"two", seconds_ago=1800)
    assert pin_file(str(path)).sha256 == sha(b"two")


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_hashed_again(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", b"one")
    pin_file(str(path))
    other = save(tmp_path / "b.jsonl", b"two")
    os.utime(other, ns=(path.stat().st_mtime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    assert pin_file(str(path)).sha256 == sha(b"two")


def test_a_file_written_just_now_is_not_remembered(tmp_path: Path, home: Path) -> None:
    pin_file(str(save(tmp_path / "a.jsonl", b"one", seconds_ago=0)))
    assert not list(home.rglob("*.json"))


@pytest.mark.parametrize("damage", [b"", b"\xff\x00", b"[]", b'{"sha256": 3}', b'{"sha256": "x", "state": {}}'])
def test_a_damaged_cache_is_ignored_and_mended(tmp_path: Path, home: Path, damage: bytes) -> None:
    path = save(tmp_path / "a.jsonl", b"one")
    pin_file(str(path))
    (entry,) = home.rglob("*.json")
    entry.write_bytes(damage)
    assert pin_file(str(path)).sha256 == sha(b"one")
    assert json.loads(entry.read_bytes())["sha256"] == sha(b"one")


def test_a_home_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_HOME", str(save(tmp_path / "file", b"in the way")))
    assert pin_file(str(save(tmp_path / "a.jsonl", b"one"))).sha256 == sha(b"one")


def test_processes_side_by_side_agree(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", b"x" * 100_000)
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        pinned = list(pool.map(pin_file, [str(path)] * 8))
    assert {file.sha256 for file in pinned} == {sha(b"x" * 100_000)}


def test_paths_globs_and_folders_give_each_file_once_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "c.parquet", ".hidden.jsonl", "README.md", "sub/d.jsonl"):
        save(tmp_path / name, name.encode())
    patterns = [str(tmp_path / "c.parquet"), str(tmp_path), str(tmp_path / "**" / "*.jsonl")]
    names = [Path(file.url).relative_to(tmp_path).as_posix() for file in pin_files(patterns)]
    assert names[:3] == ["c.parquet", "a.csv", "b.jsonl"]
    assert "sub/d.jsonl" in names
    assert len(names) == len(set(names))


def test_a_name_with_glob_characters_is_a_path_when_there_is_such_a_file(tmp_path: Path) -> None:
    save(tmp_path / "a[1].jsonl", b"one")
    assert [file.size for file in pin_files([str(tmp_path / "a[1].jsonl")])] == [3]


def test_what_matches_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for pattern, words in (
        (str(tmp_path / "none.jsonl"), "no such file"),
        (str(tmp_path / "*.jsonl"), "matches no file"),
        (str(tmp_path / "empty"), "no data files"),
        ("nowhere://a", "nowhere"),
    ):
        with pytest.raises(BadInput, match=words) as error:
            pin_files([pattern])
        assert error.value.file == pattern


def test_a_folder_cannot_be_pinned_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="folder"):
        pin_file(str(tmp_path))


def test_remote_files_keep_their_url() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("a", "b"):
        memory.pipe_file(f"/pinned/{name}.jsonl", name.encode())
    files = pin_files(["memory://pinned/*.jsonl"])
    assert [(file.url, file.sha256) for file in files] == [
        ("memory:///pinned/a.jsonl", sha(b"a")),
        ("memory:///pinned/b.jsonl", sha(b"b")),
    ]
    assert pin_files(["memory://pinned"]) == files


def test_a_remote_file_systems_own_error_is_one_line_that_names_the_url() -> None:
    class Locked(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "locked"

        def info(self, path: str, **options: object) -> dict[str, object]:
            raise RuntimeError("no credentials\nin any of the usual places")

    fsspec.register_implementation("locked", Locked, clobber=True)
    for ask in (lambda: pin_file("locked://a.jsonl"), lambda: pin_files(["locked://a.jsonl"])):
        with pytest.raises(BadInput, match="no credentials") as error:
            ask()
        assert error.value.file == "locked://a.jsonl"
        assert "\n" not in str(error.value)
