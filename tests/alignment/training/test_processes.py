"""Two processes under torchrun: each does its share, and the result is that of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.store import Artifact
from alignment.training.held_out_pairs import HELD_OUT_FILE, parse_held_out


def test_two_processes_share_the_rows_and_learn_what_one_learns(lab: Any, tmp_path: Path) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(36), held_out_fraction=0.2)
    one, two = (
        lab.dpo_request(checkpoint, manifest, micro_batch_size=2, batch_size=8, world_size=size) for size in (1, 2)
    )
    path = tmp_path / "request.json"
    path.write_text(two.model_dump_json(), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    stage = ["-m", "alignment.stages", "policy_checkpoint", "--request", str(path), "--store", lab.store.url]
    done = subprocess.run([*launch, *stage], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    commits = (
        lab.store.commit_of(Artifact.model_validate(json.loads(done.stdout.strip().splitlines()[-1]))),
        execute(STAGE, one, lab.store),
    )
    together, single = (commit.summary for commit in commits)
    rows = together["rows_per_rank"]
    assert len(rows) == 2 and min(rows) >= 0.4 * single["rows_trained"]
    assert sum(rows) >= single["rows_trained"] == together["rows_trained"]
    assert together["steps"] == single["steps"]
    # all steps but the last, in which the processes are given equally many rows by repeating some
    for ours, theirs in list(zip(together["history"], single["history"], strict=True))[:-1]:
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    assert together["held_out"]["pairs"] == single["held_out"]["pairs"] > 1
    assert together["held_out"]["loss"] == pytest.approx(single["held_out"]["loss"], abs=5e-3)
    ours, theirs = (parse_held_out(lab.store.read(commit.artifact, HELD_OUT_FILE)) for commit in commits)
    assert [pair.keys for pair in ours] == [pair.keys for pair in theirs], "each pair once, whoever measured it"
