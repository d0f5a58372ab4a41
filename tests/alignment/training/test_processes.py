"""Two processes under torchrun: each does its share, and the result is that of one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignment.data.validate import halves
from alignment.errors import BadInput
from alignment.logprobs.effort import Ranks
from alignment.methods import METHODS
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE, seen_by_all
from alignment.stages.ranks import verdict
from alignment.store import Commit, Store
from alignment.training.held_out_pairs import HELD_OUT_FILE, parse_held_out
from tests.alignment.training.conftest import interrupted_at
from tests.alignment.training.two_processes import TwoProcesses


def printed(store: Store, request: Any, folder: Path, *more: str) -> Any:
    """What the first of two processes prints."""
    path = folder / "request.json"
    path.write_text(request.model_dump_json(), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    stage = ["-m", "alignment.stages", "policy_checkpoint", "--request", str(path), "--store", store.url, *more]
    done = subprocess.run([*launch, *stage], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def assert_same_losses(found: Commit, expected: Commit) -> None:
    """Of every step, the uneven last one included: each row counts once. Sums in another order round otherwise."""
    ours, theirs = (commit.summary["history"] for commit in (found, expected))
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    assert [record["loss"] for record in ours] == pytest.approx([record["loss"] for record in theirs], abs=2e-4)


@pytest.mark.parametrize("loss", ["sigmoid", "simpo", "kto", "ld_dpo"])
def test_two_processes_share_the_rows_and_learn_what_one_learns(
    loss: str, lab: Any, tmp_path: Path, two_processes: TwoProcesses
) -> None:
    checkpoint = lab.checkpoint()
    method = METHODS[loss]
    if method.coupled or method.first_tokens:
        rows = [half for row in lab.rows(22) for half in halves(row)] if method.coupled else lab.rows(36)
        manifest = lab.scored_manifest(checkpoint, rows, method, held_out_fraction=0.2)
    else:
        manifest = lab.manifest(checkpoint, lab.rows(36), held_out_fraction=0.2, referenced=method.needs_reference)
    one, two = (lab.dpo_request(checkpoint, manifest, loss=loss, batch_size=8, world_size=size) for size in (1, 2))
    assert STAGE.key(one) == STAGE.key(two)
    twin = lab.twin(tmp_path / "one")
    together, single = two_processes.execute(STAGE, two, lab.store), execute(STAGE, one, twin)
    trained = single.summary["rows_trained"]
    assert trained % 8, "the last step is uneven"
    rows = together.summary["rows_per_rank"]
    assert len(rows) == 2 and sum(rows) == trained == together.summary["rows_trained"]
    assert min(rows) >= 0.4 * trained
    assert together.summary["tokens"] == single.summary["tokens"]
    assert_same_losses(together, single)
    assert together.summary["rows_held_out"] == single.summary["rows_held_out"] > 1
    if method.coupled:  # z₀ is that of all rows of the step, whatever the rank they are on
        divergences = [[record["kl"] for record in commit.summary["history"]] for commit in (together, single)]
        assert divergences[0][0] == divergences[1][0] == 0.0 and max(divergences[1]) > 0.0
        assert divergences[0] == pytest.approx(divergences[1], abs=2e-3)
    assert together.summary["held_out"]["loss"] == pytest.approx(single.summary["held_out"]["loss"], abs=5e-3)
    ours = parse_held_out(lab.store.read(together.artifact, HELD_OUT_FILE))
    theirs = parse_held_out(twin.read(single.artifact, HELD_OUT_FILE))
    assert [row.keys for row in ours] == [row.keys for row in theirs]


def test_two_processes_make_a_policy_again_into_a_folder(lab: Any, tmp_path: Path) -> None:
    """Each has a work folder of its own then, and the rows are in the first one's."""
    checkpoint = lab.checkpoint()
    request = lab.dpo_request(checkpoint, lab.manifest(checkpoint, lab.rows(8)), world_size=2)
    again = printed(lab.store, request, tmp_path, "--out", str(tmp_path / "again"))
    assert again["recorded"] is None and (tmp_path / "again" / "model.safetensors").is_file()


def test_a_run_that_one_process_began_is_gone_on_with_by_two(
    lab: Any, tmp_path: Path, two_processes: TwoProcesses
) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(19))
    one, two = (
        lab.dpo_request(checkpoint, manifest, epochs=2.0, save_steps=2, batch_size=8, world_size=size)
        for size in (1, 2)
    )
    undisturbed = execute(STAGE, one, lab.twin(tmp_path / "undisturbed"))
    with interrupted_at(3):
        execute(STAGE, one, lab.store)
    resumed = two_processes.execute(STAGE, two, lab.store)
    assert resumed.summary["resumed_from_step"] == 2
    assert sum(resumed.summary["rows_per_rank"]) == 38 - 2 * 8, "19 rows stay 19"
    assert_same_losses(resumed, undisturbed)


def test_a_node_that_does_not_see_where_a_sharded_policy_is_saved_is_named_before_it_is_trained(tmp_path: Path) -> None:
    class Two(Ranks):
        """The second rank's machine has other folders."""

        def gather(self, mine: Any) -> list[Any]:
            return [mine, mine if isinstance(mine, str) else False]

    with pytest.raises(BadInput, match=r"^field 'sharded': process 2 of 2 does not see .*one folder for the store"):
        seen_by_all(tmp_path, Two(0, 2))
    assert seen_by_all(tmp_path, Ranks()) == tmp_path


def test_a_damaged_checkpoint_is_refused_by_every_process_in_one_line(lab: Any, tmp_path: Path) -> None:
    """The one that hashed it says so, and so does the other, which took its word; no training begins."""
    checkpoint = lab.checkpoint()
    request = lab.dpo_request(checkpoint, lab.manifest(checkpoint, lab.rows(8)), world_size=2)
    weights = Path(lab.store.fetch(checkpoint)) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    path = tmp_path / "request.json"
    path.write_text(request.model_dump_json(), encoding="utf-8")
    launch = [sys.executable, "-m", "alignment.stages.ranks", "--nproc-per-node", "2", "--standalone"]
    stage = ["-m", "alignment.stages", "policy_checkpoint", "--request", str(path), "--store", lab.store.url]
    done = subprocess.run([*launch, *stage], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    *told, last = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert told and len(told) <= 2 and len(set(told)) == 1
    assert told[0].startswith(f"error: {weights}: sha256 ") and "restore it from a backup" in told[0]
    assert "failed, see above" in last
    assert lab.store.find(STAGE.kind, STAGE.key(request)) is None


@pytest.mark.parametrize(
    ("codes", "code", "says"),
    [
        (
            {0: -signal.SIGTERM, 1: -signal.SIGKILL},
            137,
            "process 2 was lost: SIGKILL ended it, perhaps as the machine's",
        ),
        ({0: 1, 1: -signal.SIGSEGV}, 139, "process 2 was lost: SIGSEGV ended it; "),
        ({0: -signal.SIGTERM}, 143, "process 1 was lost: SIGTERM"),
        ({0: -signal.SIGTERM, 1: 2}, 2, "bad input"),
        ({0: -signal.SIGTERM, 3: 1}, 1, "process 4 failed"),
    ],
)
def test_torchruns_end_is_told_by_what_became_of_its_processes(codes: dict[int, int], code: int, says: str) -> None:
    """It sends SIGTERM to the others once one ends."""
    found, told = verdict(codes)
    assert found == code and told.startswith(says)
