"""Stages: a key names a request, a hit runs nothing, a failure leaves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from alignment.errors import BadInput
from alignment.stages import Context, Request, Result, SourceFile, Stage, execute
from alignment.store import Artifact, CorruptArtifact, Store


class CopyRequest(Request):
    speed_only: ClassVar[frozenset[str]] = frozenset({"threads"})

    text: str
    threads: int = 1
    source: SourceFile | None = None
    above: dict[str, Artifact] = Field(default={})


RUNS: list[str] = []


def copy(request: CopyRequest, context: Context) -> Result:
    RUNS.append(request.text)
    (context.work / "state").write_text("resumable")
    if request.text == "fails":
        raise RuntimeError("on purpose")
    (context.out / "copy.txt").write_text(request.text)
    return Result(digest=request.text, summary={"rows": len(request.text)})


STAGE = Stage(name="copy", code_version=1, request=CopyRequest, run=copy)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    RUNS.clear()
    return Store(str(tmp_path / "store"))


def artifact(**changed: str) -> Artifact:
    return Artifact(**({"kind": "thing", "key": "k", "attempt": "a", "digest": "d"} | changed))


def test_asking_twice_builds_once(store: Store) -> None:
    first = execute(STAGE, CopyRequest(text="x"), store)
    second = execute(STAGE, CopyRequest(text="x"), store)
    assert first == second
    assert RUNS == ["x"]


def test_the_request_is_kept_and_runs_again_to_the_same_key(store: Store) -> None:
    made = execute(STAGE, CopyRequest(text="x", above={"in": artifact()}), store)
    text = (store.fetch(made.artifact) / "request.json").read_text()
    assert STAGE.key(CopyRequest.model_validate_json(text)) == made.key
    assert made.inputs == {"above.in": artifact()}


def test_a_failure_commits_nothing_and_keeps_the_resumable_state(store: Store) -> None:
    request = CopyRequest(text="fails")
    with pytest.raises(RuntimeError, match="on purpose"):
        execute(STAGE, request, store)
    assert store.find("copy", STAGE.key(request)) is None
    assert (store.work_path("copy", STAGE.key(request)) / "state").read_text() == "resumable"
    assert not list(Path(store.path("copy", STAGE.key(request))).glob("*/"))


@pytest.mark.parametrize("of_a_gpu", [True, False])
def test_memory_that_runs_out_is_one_line_and_the_next_run_goes_on(of_a_gpu: bool, store: Store) -> None:
    import torch

    full: list[int] = [1 << 62]

    def greedy(request: CopyRequest, context: Context) -> Result:
        result = copy(request, context)
        for size in full:
            if of_a_gpu:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4096 PiB.\nOf the allocated …")
            torch.empty(size, dtype=torch.uint8)
        return result

    stage = Stage(name="copy", code_version=1, request=CopyRequest, run=greedy)
    with pytest.raises(BadInput, match=r"^copy ran out of memory on cpu .*`align plan` says what it takes") as told:
        execute(stage, CopyRequest(text="x"), store)
    assert "\n" not in str(told.value)
    assert (store.work_path("copy", stage.key(CopyRequest(text="x"))) / "state").read_text() == "resumable"
    full.clear()
    assert execute(stage, CopyRequest(text="x"), store).digest == "x"


def test_more_processes_than_gpus_are_refused_before_they_share_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    stage = Stage(name="copy", code_version=1, request=CopyRequest, run=copy, device="gpu")
    with pytest.raises(BadInput, match="4 processes on a machine of which 2 GPUs are seen"):
        execute(stage, CopyRequest(text="x"), store)
    assert not RUNS
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert execute(stage, CopyRequest(text="x"), store).digest == "x"


def test_an_attempt_that_was_removed_meanwhile_is_not_committed(store: Store) -> None:
    def removed(request: CopyRequest, context: Context) -> Result:
        (context.out / "request.json").unlink()
        return copy(request, context)

    stage = Stage(name="copy", code_version=1, request=CopyRequest, run=removed)
    with pytest.raises(CorruptArtifact, match="removed while it was built"):
        execute(stage, CopyRequest(text="x"), store)
    assert store.find("copy", stage.key(CopyRequest(text="x"))) is None


def test_the_work_folder_is_cleared_after_the_commit(store: Store) -> None:
    made = execute(STAGE, CopyRequest(text="x"), store)
    assert not (Path(store.path("work", "copy", made.key)) / "state").exists()


def test_a_key_depends_on_content_and_not_on_where_it_lies() -> None:
    def key(request: CopyRequest) -> str:
        return STAGE.key(request)

    plain = CopyRequest(text="x", above={"in": artifact()})
    assert key(plain) == key(CopyRequest(text="x", above={"in": artifact(key="other", attempt="b")}))
    assert key(plain) != key(CopyRequest(text="x", above={"in": artifact(digest="e")}))
    here = SourceFile(url="here/a.jsonl", sha256="s", size=1)
    assert key(CopyRequest(text="x", source=here)) == key(
        CopyRequest(text="x", source=SourceFile(url="there/b.jsonl", sha256="s", size=1))
    )
    assert key(CopyRequest(text="x", source=here)) != key(
        CopyRequest(text="x", source=SourceFile(url="here/a.csv", sha256="s", size=1))
    )


def test_what_only_changes_speed_is_not_in_the_key_but_the_code_version_is() -> None:
    request = CopyRequest(text="x")
    assert STAGE.key(request) == STAGE.key(CopyRequest(text="x", threads=8))
    raised = Stage(name="copy", code_version=2, request=CopyRequest, run=copy)
    assert STAGE.key(request) != raised.key(request)
