"""Source files are found, pinned by content, and not read twice."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import fsspec
import pytest

from alignment.data import files as sources
from alignment.data.files import expand, modified, pin_file, pin_files
from alignment.errors import BadInput


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


def test_a_file_written_just_now_is_not_remembered(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.jsonl", b"one", seconds_ago=0)
    for seconds, remembered in ((1.9, 0), (2.1, 1)):
        later = path.stat().st_mtime + seconds
        monkeypatch.setattr(sources, "time", SimpleNamespace(time=lambda now=later: now))
        pin_file(str(path))
        assert len(list(home.rglob("*.json"))) == remembered


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


def test_what_is_being_written_is_not_listed(tmp_path: Path) -> None:
    for name in (
        "a.jsonl",
        "b.jsonl.tmp",
        "c.jsonl.part",
        "_d.jsonl",
        ".e.jsonl",
        "_temporary/0/f.jsonl",
        "sub/g.jsonl",
    ):
        save(tmp_path / name, b"x")
    listed = {
        pattern: [Path(url).name for url in expand(str(tmp_path / pattern))] for pattern in ("", "*.jsonl*", "**")
    }
    assert listed == {"": ["a.jsonl"], "*.jsonl*": ["a.jsonl"], "**": ["a.jsonl", "g.jsonl"]}


def test_names_above_a_glob_are_the_persons_own(tmp_path: Path) -> None:
    save(tmp_path / "_raw" / ".deep" / "a.jsonl", b"x")
    assert [Path(url).name for url in expand(str(tmp_path / "_raw" / ".deep" / "*.jsonl"))] == ["a.jsonl"]


@pytest.mark.parametrize("name", ["[2026-11]", "a?b", "*", "100%", "a[b", "数" * 28])
def test_a_folder_with_a_globs_marks_in_its_name_is_meant_as_it_is(tmp_path: Path, name: str) -> None:
    for folder in (name, "2", "axb"):
        save(tmp_path / folder / "day-1.jsonl", b"x")
    for pattern in ("", "day-1.jsonl", "*.jsonl", "day-[0-9].jsonl", "**"):
        assert expand(str(tmp_path / name / pattern)) == [str(tmp_path / name / "day-1.jsonl")]


def test_a_listing_sees_what_another_process_put_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Remembering(fsspec.AbstractFileSystem):  # type: ignore[misc]
        """As object stores' file systems do, it answers from the last listing until told not to."""

        protocol = "remembering"
        objects: ClassVar[dict[str, bytes]] = {"box/a.jsonl": b"a"}

        def ls(self, path: str, detail: bool = True, **options: object) -> list[object]:
            if "box" not in self.dircache:
                self.dircache["box"] = [{"name": name, "size": 1, "type": "file"} for name in self.objects]
            return self.dircache["box"] if detail else [entry["name"] for entry in self.dircache["box"]]

        def invalidate_cache(self, path: str | None = None) -> None:
            self.dircache.clear()

    fsspec.register_implementation("remembering", Remembering, clobber=True)
    assert expand("remembering://box/*.jsonl") == ["remembering://box/a.jsonl"]
    Remembering.objects["box/b.jsonl"] = b"b"
    assert expand("remembering://box/*.jsonl") == ["remembering://box/a.jsonl", "remembering://box/b.jsonl"]


def test_the_time_of_writing_is_known_where_the_file_system_tells_it(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", b"x", seconds_ago=60)
    assert modified(str(path)) == path.stat().st_mtime
    before = time.time()
    fsspec.filesystem("memory").pipe_file("/timed/a.jsonl", b"x")
    written = modified("memory://timed/a.jsonl")
    assert written is not None and before - 1e-3 <= written <= time.time() + 1e-3


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ({"LastModified": datetime(2026, 1, 2, tzinfo=UTC)}, 1767312000.0),
        ({"updated": "2026-01-02T00:00:00+00:00"}, 1767312000.0),
        ({"mtime": 5}, 5.0),
        ({"updated": "yesterday"}, None),
        ({}, None),
    ],
)
def test_every_file_systems_way_to_say_when_is_read(told: dict[str, object], seconds: float | None) -> None:
    class Telling(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "telling"
        cachable = False

        def info(self, path: str, **options: object) -> dict[str, object]:
            return {"name": path, "size": 1, "type": "file", **told}

    fsspec.register_implementation("telling", Telling, clobber=True)
    assert modified("telling://a.jsonl") == seconds


def test_an_object_that_changes_while_it_is_read_is_not_remembered_under_its_old_tag(home: Path) -> None:
    class Moving(fsspec.AbstractFileSystem):  # type: ignore[misc]
        """Its one object is replaced by another of the same size as soon as it was looked at."""

        protocol = "moving"
        cachable = False
        versions: ClassVar[list[bytes]] = [b"A", b"B"]

        def info(self, path: str, **options: object) -> dict[str, object]:
            content = self.versions[0]
            if len(self.versions) > 1:
                self.versions.pop(0)
            return {"name": path, "size": 1, "type": "file", "ETag": content.decode()}

        def _open(self, path: str, mode: str = "rb", **options: object) -> io.BytesIO:
            return io.BytesIO(self.versions[0])

    fsspec.register_implementation("moving", Moving, clobber=True)
    assert pin_file("moving://a.jsonl").sha256 == sha(b"B")
    Moving.versions[:] = [b"A"]
    assert pin_file("moving://a.jsonl").sha256 == sha(b"A")


def test_a_name_that_is_not_utf8_is_refused_wherever_a_folder_or_a_glob_finds_it(tmp_path: Path) -> None:
    save(tmp_path / "day\udcff.jsonl", b"x")
    for pattern in ("", "*.jsonl"):
        with pytest.raises(BadInput, match=r"day\\udcff\.jsonl: the name is not UTF-8; rename it"):
            expand(str(tmp_path / pattern))


def test_a_pipe_or_a_device_is_named_as_such(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pairs.jsonl")
    for place in (tmp_path / "pairs.jsonl", Path(os.devnull)):
        with pytest.raises(BadInput, match="is a pipe or a device"):
            expand(str(place))
