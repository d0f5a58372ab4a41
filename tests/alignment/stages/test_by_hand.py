"""Stages from a plain shell: found, made again into a folder, or refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from alignment.data.files import pin_file
from alignment.errors import BadInput
from alignment.stages import execute
from alignment.stages.execute import REQUEST_FILE, STAGES, load_stage, make_again
from alignment.stages.preference_shard import STAGE, ShardRequest
from alignment.store import Commit, Store

pytestmark = pytest.mark.slow  # each starts the process that a person would
RECORDED = json.loads((Path(__file__).parents[2] / "recorded_requests.json").read_text(encoding="utf-8"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def made(store: Store, tmp_path: Path) -> Commit:
    """A shard that was committed once."""
    rows = [{"prompt": f"q{number}", "chosen": "yes", "rejected": "no"} for number in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return execute(STAGE, ShardRequest(file=pin_file(str(tmp_path / "pairs.jsonl"))), store)


def request_of(store: Store, commit: Commit) -> Path:
    return store.fetch(commit.artifact) / REQUEST_FILE


def by_hand(stage: str, request: Path, store: Store, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alignment.stages", stage, "--request", str(request), "--store", store.url, *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_result_that_the_store_holds_is_found(store: Store, made: Commit) -> None:
    done = by_hand("preference_shard", request_of(store, made), store)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == made.artifact.model_dump()


def test_a_result_is_made_again_into_a_folder_and_compared_with_the_recorded_one(
    store: Store, made: Commit, tmp_path: Path
) -> None:
    out = tmp_path / "below" / "again"
    done = by_hand("preference_shard", request_of(store, made), store, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"kind": "preference_shard", "digest": made.digest, "recorded": made.digest}
    stored = store.fetch(made.artifact)
    files = {path.name for path in stored.iterdir()} - {REQUEST_FILE}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {n: (stored / n).read_bytes() for n in files}
    assert [path.name for path in out.parent.iterdir()] == ["again"]
    assert list(store.commits("preference_shard")) == [made]


def test_another_result_than_the_recorded_one_is_exit_1(store: Store, made: Commit, tmp_path: Path) -> None:
    marker = Path(store.path(made.kind, made.key, "_COMMIT.json"))
    marker.write_text(made.model_copy(update={"digest": "other"}).model_dump_json())
    request = Path(store.path(made.kind, made.key, made.attempt, REQUEST_FILE))
    done = by_hand("preference_shard", request, store, "--out", str(tmp_path / "again"))
    assert done.returncode == 1
    assert json.loads(done.stdout)["recorded"] == "other"


def test_a_folder_that_holds_something_is_left_alone(store: Store, made: Commit, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    request = ShardRequest.model_validate_json(request_of(store, made).read_text())
    for out in (tmp_path, tmp_path / "mine"):
        with pytest.raises(BadInput, match=r"field '--out': is not an empty folder"):
            make_again(STAGE, request, store, out)
    assert (tmp_path / "mine").read_text() == "mine"


def test_inputs_that_the_store_does_not_hold_are_one_line_and_exit_1(store: Store, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps(next(iter(RECORDED["preference_manifest"].values()))))
    done = by_hand("preference_manifest", request, store)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "no committed" in done.stderr


def test_every_stage_of_a_run_can_be_named_and_registering_alone_says_what_to_do_instead(
    store: Store, tmp_path: Path
) -> None:
    assert RECORDED.keys() == {point.name for point in entry_points(group=STAGES)}
    assert all(load_stage(name).name == name for name in RECORDED)
    request = tmp_path / "request.json"
    request.write_text(json.dumps(next(iter(RECORDED["registered_model"].values()))))
    done = by_hand("registered_model", request, store, "--out", str(tmp_path / "again"))
    assert done.returncode == 2
    assert "error: registered_model is not made by hand: `align run RECIPE`" in done.stderr
    assert "`align promote MODEL`" in done.stderr
