"""The trainer's numbers in the work folder, from which MLflow's live curves are made."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from alignment.progress import CURVES
from alignment.training.arguments import history
from alignment.training.trainer import Progress


def test_every_log_record_is_a_line_of_the_history_that_the_checkpoint_gets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    arguments = SimpleNamespace(output_dir=str(tmp_path / CURVES.parent))
    logs = [{"loss": 0.693147, "rewards/margins": 0.1, "epoch": 0.5}, {"eval_loss": 0.6}, {"train_runtime": 3.0}]
    seen = []
    for step, numbers in enumerate(logs, start=1):
        state = SimpleNamespace(is_world_process_zero=True, global_step=step, max_steps=9)
        Progress().on_log(arguments, state, None, numbers)
        Progress().on_log(arguments, SimpleNamespace(is_world_process_zero=False), None, numbers)  # another rank
        seen.append({"step": step, **numbers})
    lines = [json.loads(line) for line in (tmp_path / CURVES).read_text().splitlines()]
    assert lines == history(seen) and [line["step"] for line in lines] == [1, 2]
    assert lines[0]["loss"] == 0.693147
    assert caplog.messages == ["step 1/9, loss 0.6931, margin 0.1", "step 2/9, held-out loss 0.6000"]
