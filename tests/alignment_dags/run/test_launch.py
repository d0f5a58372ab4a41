"""Stretches of shards: what is behind is covered, and nothing else. What steps share with their server. What a person
reads of Dagster's own errors."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from dagster._utils.error import SerializableErrorInfo
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from alignment.progress import MOVING
from alignment_dags.definitions import PRELOADED
from alignment_dags.run.launch import Progress, first_reason, stretches, why
from resources.alerts import Alert


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 7))
def test_stretches_cover_exactly_the_wanted_shards_in_order(behind: list[bool], most: int) -> None:
    order = [f"shard-{index}" for index in range(len(behind))]
    wanted = {shard for shard, is_behind in zip(order, behind, strict=True) if is_behind}
    covered: list[str] = []
    for first, last in stretches(order, wanted, most):
        stretch = order[order.index(first) : order.index(last) + 1]
        assert 1 <= len(stretch) <= most
        covered += stretch
    assert covered == [shard for shard in order if shard in wanted]


FORKED = f"""
import gc, multiprocessing
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["json.tool", "{PRELOADED[-1]}"])
with context.Pool(1) as pool:
    print(pool.apply(gc.get_freeze_count))
"""


def test_a_step_collects_no_garbage_among_what_its_server_has_imported() -> None:
    told = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=False)
    assert told.returncode == 0 and int(told.stdout) > 1000, told.stderr


def test_where_work_goes_on_is_told_however_soon_after_another_line() -> None:
    told: list[str] = []
    nothing: Any = None
    progress = Progress(nothing, "train", told.append)
    for message, at in (("curves while it trains", 9.0), ("logits: plain head", 9.1), ("resuming from step 20", 9.2)):
        entry: Any = SimpleNamespace(user_message=message, level=20, timestamp=at)
        progress._tell_message(entry, "policy")
    assert told == ["    policy: curves while it trains", "    policy: resuming from step 20"]


def test_a_storage_that_does_not_answer_is_looked_at_again() -> None:
    looks: list[int] = []

    def get_runs(*_: object, **__: object) -> list[Any]:
        looks.append(1)
        if len(looks) == 1:
            raise OperationalError("SELECT", (), Exception("database is locked"))
        return []

    instance: Any = SimpleNamespace(get_runs=get_runs)
    with Progress(instance, "train", lambda _: None) as progress:
        while len(looks) < 2:
            progress._thread.join(0.1)
            assert progress._thread.is_alive()


def test_the_lines_of_a_stage_are_for_who_waits_for_it() -> None:
    """An alert in plain words, how long it takes before how it goes, and nothing of what only a log needs."""
    told: list[str] = []
    nothing: Any = None
    progress = Progress(nothing, "train", told.append)
    alert = Alert("small", "guard_failed", "the guard odd of policy is red\n  it saw: 3").line
    lines = ((30, alert), (20, "step 1/9, loss 1"), (20, "step 2/9, loss 1"), (20, "made (key 0a)"), (20, "logits: x"))
    lines += ((30, "[pipes] did not receive any messages"), *[(20, "nothing to make: the rounds ended")] * 2)
    for at, (level, message) in enumerate(lines):
        entry: Any = SimpleNamespace(user_message=message, level=level, timestamp=10.0 * at)
        progress._tell_message(entry, "policy")
    assert told == [
        "    policy: the guard odd of policy is red\n      it saw: 3",
        f"{MOVING}    policy: step 1/9, loss 1",
        f"{MOVING}    policy (70 s left): step 2/9, loss 1",
        "    policy: nothing to make: the rounds ended",
    ]


def error(message: str, kind: str, cause: SerializableErrorInfo | None = None) -> SerializableErrorInfo:
    return SerializableErrorInfo(message=message, stack=[], cls_name=kind, cause=cause)


def test_a_step_whose_process_died_is_said_in_words() -> None:
    crash = "dagster._core.executor.child_process_executor.ChildProcessCrashException\n"
    assert "killed, or crashed" in why(error(crash, "ChildProcessCrashException"))
    cause = error("OSError: the disk is on fire\n", "OSError")
    assert why(error("dagster.DagsterExecutionStepExecutionError: …", "Other", cause)) == "OSError: the disk is on fire"
    assert why(error("E: full\n[SQL: …]\n", "E")) == "E: full [SQL: …]", "in one line"


def test_a_run_that_failed_before_any_step_says_why_in_a_line() -> None:
    text = (
        "dagster._core.errors.DagsterSubprocessError: During multiprocess execution errors occurred:\n"
        "In process 7: dagster._core.errors.DagsterInvariantViolationError: Could not find job 'small_base'. Found: …\n"
        "Stack Trace:\n  File …\n"
    )
    told = first_reason(error(text, "DagsterSubprocessError"))
    assert told == "Could not find job 'small_base'. Found: …"
    assert first_reason(error("sqlalchemy.exc.OperationalError: disk full\nmore", "E")) == "disk full"
    assert len(first_reason(error("x" * 5000, "E"))) == 300


def test_the_reasons_of_the_gate_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    from alignment_dags.cli.outcome import show_outcome

    reasons = ["IFEval is worse", "GSM8K is worse"]
    told = {"recipe": "small", "stopped": None, "dagster_runs": ["one"], "comparisons": {}, "notes": [], "alias": None}
    told |= {"registered": None, "verdict": "fail", "report": None, "policy": None, "store": None, "seconds": 1.0}
    failure = "small__registered_model: not registered, the gate says fail: IFEval is worse; GSM8K is worse"
    show_outcome({**told, "reasons": reasons, "failure": failure})
    out = capsys.readouterr().out
    assert out.count("IFEval is worse") == 1
    assert out.endswith("failed: small__registered_model: not registered, the gate says fail (why: above)\n")
    show_outcome({**told, "verdict": None, "reasons": [], "failure": "the disk is full"})
    assert capsys.readouterr().out == "\nfailed: the disk is full\n"
