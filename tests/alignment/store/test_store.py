"""The store: what is committed is seen whole, what is not is not seen at all."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any, NoReturn

import pytest

from alignment.errors import BadInput
from alignment.store import Artifact, Commit, CorruptArtifact, MissingArtifact, Store, files
from alignment.store.place import explain_no_space
from alignment.store.store import COMMIT_FILE, Attempt


def commit(store: Store, attempt: Attempt, digest: str = "d") -> Commit:
    return store.commit(
        attempt,
        digest=digest,
        stage="thing",
        code_version=1,
        inputs={},
        summary={},
        environment={},
        started_at="2026-01-01T00:00:00+00:00",
        seconds=0.0,
    )


def build(store: Store, key: str = "k", text: str = "hello", digest: str = "d") -> Commit:
    attempt = store.begin("thing", key)
    (attempt.path / "sub").mkdir()
    (attempt.path / "sub" / "file.txt").write_text(text)
    return commit(store, attempt, digest)


def test_a_committed_artifact_is_found_and_read_back(store: Store) -> None:
    made = build(store)
    assert store.find("thing", "k") == made
    assert (store.fetch(made.artifact, deep=True) / "sub" / "file.txt").read_text() == "hello"
    assert [one.key for one in store.commits("thing")] == ["k"]


def test_what_another_process_commits_is_listed_at_once(store: Store, tmp_path: Path) -> None:
    build(store, "first")
    assert [one.key for one in store.commits("thing")] == ["first"]
    other = multiprocessing.get_context("spawn").Process(
        target=build, args=(Store(store.url, tmp_path / "other"), "second")
    )
    other.start()
    other.join()
    assert sorted(one.key for one in store.commits("thing")) == ["first", "second"]


def test_a_file_is_read_whole_or_as_a_stream_that_can_seek(store: Store) -> None:
    made = build(store).artifact
    assert store.read(made, "sub/file.txt") == b"hello"
    with store.open(made, "sub/file.txt") as stream:
        stream.seek(3)
        assert stream.read() == b"lo"
    for look in (store.read, store.open):
        with pytest.raises(MissingArtifact, match="no such file"):
            look(made, "other.txt")


def test_an_attempt_without_a_marker_is_not_seen(store: Store) -> None:
    attempt = store.begin("thing", "k")
    (attempt.path / "file.txt").write_text("half")
    assert store.find("thing", "k") is None
    assert list(store.commits("thing")) == []
    with pytest.raises(MissingArtifact):
        store.fetch(Artifact(kind="thing", key="k", attempt=attempt.name, digest="d"))


def test_the_first_commit_of_a_key_wins_and_the_second_leaves_nothing(store: Store) -> None:
    first, second = store.begin("thing", "k"), store.begin("thing", "k")
    (first.path / "a").write_text("first")
    (second.path / "a").write_text("second")
    won = commit(store, first, "one")
    told = commit(store, second, "two")
    assert told == won
    assert (store.fetch(told.artifact) / "a").read_text() == "first"
    assert not second.path.exists()


def test_a_missing_or_shortened_file_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    made = build(store)
    file = store.fetch(made.artifact) / "sub" / "file.txt"
    file.write_text("hell")
    with pytest.raises(CorruptArtifact, match="4 bytes, committed with 5"):
        store.fetch(made.artifact)
    file.unlink()
    with pytest.raises(CorruptArtifact, match="missing"):
        store.fetch(made.artifact)


def test_an_edit_of_the_same_size_is_found_when_asked_for(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    made = build(store)
    (store.fetch(made.artifact) / "sub" / "file.txt").write_text("jello")
    store.fetch(made.artifact)
    with pytest.raises(CorruptArtifact, match="sha256"):
        store.fetch(made.artifact, deep=True)


def test_a_pointer_with_another_digest_is_refused(store: Store) -> None:
    made = build(store)
    with pytest.raises(MissingArtifact):
        store.fetch(made.artifact.model_copy(update={"digest": "other"}))


def test_a_damaged_marker_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    build(store)
    Path(store.path("thing", "k", COMMIT_FILE)).write_text("{")
    with pytest.raises(CorruptArtifact, match=r"_COMMIT\.json"):
        store.find("thing", "k")


def test_pickled_weights_are_not_committed(store: Store) -> None:
    attempt = store.begin("thing", "k")
    (attempt.path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(CorruptArtifact, match="safetensors"):
        commit(store, attempt)
    assert store.find("thing", "k") is None


def test_a_full_store_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Store(str(tmp_path))
    attempt = store.begin("thing", "k")
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(BadInput, match="no space left on the device of the artifact store"):
        commit(store, attempt)
    assert store.find("thing", "k") is None


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_said_in_one_line_whoever_writes(error: Exception) -> None:
    said = r"^/store: no space left on the device of the artifact store$"
    with pytest.raises(BadInput, match=said), explain_no_space("/store"):
        raise error


def test_what_others_may_read_of_a_new_file_they_may_read_of_an_artifact(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    attempt = store.begin("thing", "k")
    inner = attempt.path / "inner"
    inner.mkdir(mode=0o700)
    (inner / "model.safetensors").touch(0o600)
    (attempt.path / "script").touch(0o700)
    before = os.umask(0o027)
    try:
        folder = store.fetch(commit(store, attempt).artifact)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.name != "_COMMIT.json"}
    assert (modes["model.safetensors"], modes["inner"], modes["script"]) == (0o640, 0o750, 0o740)


def test_a_store_that_is_gone_is_named_and_not_its_artifact(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    made = build(store)
    shutil.rmtree(store.root)
    with pytest.raises(MissingArtifact, match=r"store: the artifact store is gone"):
        store.commit_of(made.artifact)


def _build_once(url: str, place: str) -> None:
    store = Store(url)
    with store.building("thing", "k"):
        if store.find("thing", "k") is None:
            Path(place, uuid.uuid4().hex).touch()
            build(store)


def test_two_processes_that_ask_at_once_build_once(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    context = multiprocessing.get_context("spawn")
    url = str(tmp_path / "store")
    processes = [context.Process(target=_build_once, args=(url, str(built))) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(built.iterdir())) == 1


def test_what_a_dead_builder_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    left = store.begin("thing", "k")
    (left.path / "half").write_text("half")
    with store.building("thing", "k"):
        assert not left.path.exists()
        build(store)
    assert store.find("thing", "k") is not None


def test_a_file_that_was_altered_is_never_read_as_what_was_committed(store: Store) -> None:
    made = build(store)
    path = store.path(made.kind, made.key, made.attempt, "sub", "file.txt")
    copy = store.fetch(made.artifact, deep="once") / "sub" / "file.txt"
    store.fs.pipe_file(path, b"hallo")
    copy.write_text("hallo")  # of a remote store, the copy that is on this machine
    for read in (
        lambda: store.read(made.artifact, "sub/file.txt"),
        lambda: store.open(made.artifact, "sub/file.txt"),
        lambda: store.fetch(made.artifact, deep=True),
        lambda: store.fetch(made.artifact, deep="once"),
    ):
        with pytest.raises(CorruptArtifact, match=r"file\.txt: sha256 .* it was changed or damaged since"):
            read()
    assert store.open(made.artifact, "sub/file.txt", verified=False).read() == b"hallo"


RANK = """
import json, sys
from pathlib import Path
from alignment.errors import CorruptArtifact
from alignment.store import Artifact, Store, files

read, stream_sha256 = [], files.stream_sha256
files.stream_sha256 = lambda stream: (read.append(found := stream_sha256(stream)), found)[1]
artifact = Artifact.model_validate_json(sys.argv[3])
told = ""
for _ in range(2):  # a stage asks for its inputs more than once
    try:
        Store(sys.argv[1], Path(sys.argv[2])).fetch(artifact, deep="once")
    except CorruptArtifact as error:
        told = str(error)
print(json.dumps([sum(size for _, size in read), told]))
"""


def ranks(store: Store, artifact: Artifact, tmp_path: Path, launch: str, count: int = 2) -> list[tuple[int, str]]:
    """Bytes that each rank of a launch on one machine hashes, and what it is told of the artifact."""
    given = [store.url, str(store.cache), artifact.model_dump_json()]
    told = {"WORLD_SIZE": f"{count}", "LOCAL_WORLD_SIZE": f"{count}", "TORCHELASTIC_RUN_ID": launch}
    temporary = tmp_path / "temporary"
    temporary.mkdir(exist_ok=True)
    environment = os.environ | told | {"TMPDIR": str(temporary)}
    started = [
        subprocess.Popen([sys.executable, "-c", RANK, *given], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    answers = [json.loads(process.communicate()[0]) for process in started]
    return [(int(size), str(text)) for size, text in answers]


def test_the_ranks_of_a_machine_hash_an_artifact_once_and_all_refuse_a_damaged_one(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), cache=tmp_path / "cache")
    made = build(store, text="x" * 100_000)
    size = sum(entry.size for entry in made.files.values())
    assert ranks(store, made.artifact, tmp_path, "alone", count=1) == [(size, "")]
    for launch in ("first", "second"):  # another launch takes nobody's word
        assert sorted(ranks(store, made.artifact, tmp_path, launch)) == [(0, ""), (size, "")]
    path = Path(store.path("thing", "k", made.attempt, "sub", "file.txt"))
    path.write_text("y" * 100_000)
    found = sorted(ranks(store, made.artifact, tmp_path, "second"))
    assert [read for read, _ in found] == [0, size], "a changed file is hashed again in the same launch"
    for _, told in found:
        assert told.startswith(f"{path}: sha256 ") and "it was changed or damaged since" in told and "\n" not in told


def test_nobody_elses_word_is_taken_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for the ranks' words that another user has made is not used: each rank hashes for itself."""
    store = Store(str(tmp_path / "store"), cache=tmp_path / "cache")
    made = build(store)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    place = tmp_path / f"alignment-dags-{os.getuid()}"
    (tmp_path / "another").mkdir()
    place.symlink_to(tmp_path / "another")
    assert store.fetch(made.artifact, deep="once").is_dir()
    assert not list((tmp_path / "another").iterdir())
    place.unlink()
    files._hashed.clear()  # as in a process that did not build it
    assert store.fetch(made.artifact, deep="once").is_dir()
    assert place.stat().st_mode & 0o777 == 0o700 and len(list(place.iterdir())) == 1


@pytest.mark.parametrize("call", ["flock", "write"])
def test_ranks_that_cannot_tell_each_other_hash_for_themselves(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary folder without locks, or a full one, is no fault of the store's."""
    store = Store(str(tmp_path / "store"), cache=tmp_path / "cache")
    made = build(store)
    files._hashed.clear()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))

    def refuse(*_: Any) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.fcntl if call == "flock" else files.os, call, refuse)
    assert store.fetch(made.artifact, deep="once").is_dir()
