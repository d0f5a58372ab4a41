"""A build goes on where another machine stopped: with a remote store its checkpoints are copied there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from alignment.stages import Context, Request, Result, Stage, execute
from alignment.store import Store
from alignment.store.work import MARKER, WorkCopies
from alignment.training import resume
from alignment_dags.retention.items import DAY, leftovers, remove

KIND, KEY = "policy_checkpoint", "k"


@pytest.fixture
def machines(s3: str, tmp_path: Path) -> tuple[Store, Store]:
    """Two machines with a store in common."""
    url = f"{s3}/{tmp_path.parent.name}"
    return Store(url, tmp_path / "one"), Store(url, tmp_path / "two")


def write_checkpoint(folder: Path, step: int, text: str = "weights") -> Path:
    checkpoint = folder / "trainer" / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "training.json").write_text(text)
    resume.mark_complete(checkpoint)
    return checkpoint


def test_a_checkpoint_that_one_machine_saved_is_the_last_of_another(machines: tuple[Store, Store]) -> None:
    first, second = (WorkCopies(store, KIND, KEY) for store in machines)
    resume.keep_only(write_checkpoint(first.folder, 10))
    first.save()
    resume.keep_only(write_checkpoint(first.folder, 20))
    (first.folder / "rows").mkdir()
    (first.folder / "rows" / "text").write_text("a row")
    first.save()
    second.fetch()
    found = resume.last_complete(second.folder / "trainer")
    assert found is not None and found.name == "checkpoint-20"
    assert [path.name for path in (second.folder / "trainer").iterdir()] == ["checkpoint-20"]
    assert not (second.folder / "rows").exists()  # rows are no checkpoint


def test_a_copy_that_was_cut_off_is_not_resumed_from_and_harms_no_whole_one(machines: tuple[Store, Store]) -> None:
    first, second = (WorkCopies(store, KIND, KEY) for store in machines)
    write_checkpoint(first.folder, 10)
    first.save()
    remote = str(first.remote / "trainer/checkpoint-10/training.json")
    machines[0].fs.pipe_file(remote, b"wei")
    second.fetch()
    assert resume.last_complete(second.folder / "trainer") is None
    first.fetch()
    assert resume.last_complete(first.folder / "trainer") is not None


def test_files_of_several_machines_make_one_checkpoint(machines: tuple[Store, Store], tmp_path: Path) -> None:
    """Each node of a sharded training writes its own rows; the marker is the first node's."""
    first, second = (WorkCopies(store, KIND, KEY) for store in machines)
    for copies, name in ((first, "rank-0"), (second, "rank-1")):
        folder = copies.folder / "trainer" / "checkpoint-5"
        folder.mkdir(parents=True)
        (folder / name).write_text(name)
    resume.mark_complete(first.folder / "trainer" / "checkpoint-5")
    first.save()
    second.save()
    third = WorkCopies(Store(machines[0].url, tmp_path / "three"), KIND, KEY)
    third.fetch()
    assert {path.name for path in (third.folder / "trainer" / "checkpoint-5").iterdir()} == {"rank-0", "rank-1", MARKER}


class Asked(Request):
    """Nothing."""


def test_a_build_that_died_goes_on_elsewhere_and_its_copies_are_cleared_at_the_end(
    machines: tuple[Store, Store],
) -> None:
    def run(request: Asked, context: Context) -> Result:
        found = resume.last_complete(context.work / "trainer")
        if found is None:
            write_checkpoint(context.work, 7)
            raise ConnectionError("the node was lost")
        return Result(digest=found.name)

    stage = Stage(KIND, 1, Asked, run)
    with pytest.raises(ConnectionError):
        execute(stage, Asked(), machines[0])
    assert execute(stage, Asked(), machines[1]).digest == "checkpoint-7"
    assert machines[0].matching(machines[0].path("work"), "**") == []


def test_copies_that_nobody_needs_are_leftovers(machines: tuple[Store, Store]) -> None:
    here, elsewhere = machines
    copies = WorkCopies(elsewhere, KIND, "abandoned")
    write_checkpoint(copies.folder, 3)
    copies.save()
    assert list(leftovers(here)) == []
    assert list(leftovers(here, time.time() + 8 * DAY, resumable=["abandoned"])) == []
    assert [found.why for found in leftovers(here, withdrawn_at=time.time())] == [
        "work that was begun before rows were withdrawn"
    ]
    (found,) = leftovers(here, time.time() + 8 * DAY)
    assert (found.key, found.local) == ("abandoned", False) and found.bytes > 0
    remove(here, found)
    assert list(leftovers(here, time.time() + 8 * DAY)) == []
