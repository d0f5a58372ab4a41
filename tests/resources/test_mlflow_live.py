"""Curves in MLflow while a stage trains: one run, whole lines only, each point once, and no training is disturbed."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from resources import mlflow_live
from resources.mlflow import Tracking
from resources.mlflow_live import Curves, live_curves
from resources.mlflow_runs import Opening
from tests.resources.test_mlflow import report, runs

OPENING = Opening(
    "recipe", "policy_checkpoint", "policy_checkpoint", "", "policy_checkpoint", "dagster-1", {"beta": 0.1}
)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    """In a folder of its own, where MLflow leaves the files of experiments that name no other place."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Tracking(uri=f"sqlite:///{folder / 'mlflow.db'}", attempts=1)


def write(path: Path, *steps: int, end: str = "\n") -> None:
    with path.open("a") as stream:
        stream.write("\n".join(json.dumps({"step": step, "loss": 1 / step}) for step in steps) + end)


def points(client: MlflowClient, run_id: str) -> list[tuple[int, float]]:
    return sorted((one.step, one.value) for one in client.get_metric_history(run_id, "loss"))


def test_numbers_are_in_mlflow_while_it_trains_and_the_report_adds_the_rest_to_the_same_run(
    tracking: Tracking, tmp_path: Path
) -> None:
    path, said = tmp_path / "curves.jsonl", []
    curves = Curves(tracking, replace(OPENING, key="a" * 40), path, said.append)
    curves.update()
    assert said == [] and tracking.client().get_experiment_by_name("recipe") is None, "nothing was trained yet"
    write(path, 1, 2)
    write(path, 3, end="")  # still being written
    curves.update()
    client = tracking.client()
    run = client.get_run(curves.run_id)
    assert (run.info.status, run.data.params["beta"]) == ("RUNNING", "0.1")
    assert points(client, curves.run_id) == [(1, 1.0), (2, 0.5)] and len(said) == 1 and curves.run_id in said[0]
    write(path, end="\n")
    curves.update()
    history = [{"step": step, "loss": 1 / step} for step in (1, 2, 3, 4)]
    reported = tracking.report(report("a" * 40, history=history))
    assert reported.run_id == curves.run_id
    run = client.get_run(reported.run_id)
    assert (run.info.status, run.data.tags["align.digest"]) == ("FINISHED", "d" * 64)
    assert points(client, reported.run_id) == [(step, 1 / step) for step in (1, 2, 3, 4)]
    assert len(runs(client, "a" * 40)) == 1


def test_an_interrupted_training_goes_on_with_its_curve_in_the_same_run(tracking: Tracking, tmp_path: Path) -> None:
    path, opening = tmp_path / "curves.jsonl", replace(OPENING, key="b" * 40)
    with pytest.raises(KeyboardInterrupt), live_curves(tracking, opening, path, lambda _: None):
        write(path, 1, 2, 3)
        raise KeyboardInterrupt
    client = tracking.client()
    (run,) = runs(client, "b" * 40)
    assert run.info.status == "KILLED"
    write(path, 3, 4)  # it goes on from a checkpoint before step 3
    curves = Curves(tracking, opening, path, lambda _: None)
    curves.update()
    assert curves.run_id == run.info.run_id and client.get_run(curves.run_id).info.status == "RUNNING"
    assert points(client, curves.run_id) == [(step, 1 / step) for step in (1, 2, 3, 4)]
    with pytest.raises(ValueError), live_curves(tracking, opening, path, lambda _: None):
        write(path, 5)
        raise ValueError
    assert client.get_run(curves.run_id).info.status == "FAILED"


def test_the_thread_logs_while_the_stage_works(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_live, "PERIOD", 0.01)
    path, seen = tmp_path / "curves.jsonl", threading.Event()
    with live_curves(tracking, replace(OPENING, key="c" * 40), path, lambda _: seen.set()):
        write(path, 1)
        assert seen.wait(60)
    (run,) = runs(tracking.client(), "c" * 40)
    assert run.info.status == "RUNNING", "the report ends it"


def test_a_tracking_server_that_does_not_answer_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mlflow_live, "PERIOD", 0.01)
    caplog.set_level(logging.WARNING, "resources.mlflow_live")
    gone = Tracking(uri="http://127.0.0.1:9", attempts=1)
    path, warned = tmp_path / "curves.jsonl", threading.Event()

    class Warned(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warned.set()

    handler = Warned()
    logging.getLogger("resources.mlflow_live").addHandler(handler)
    try:
        with live_curves(gone, OPENING, path, lambda _: None):
            write(path, 1)
            assert warned.wait(120)
    finally:
        logging.getLogger("resources.mlflow_live").removeHandler(handler)
    (one,) = [record.getMessage() for record in caplog.records if record.name == "resources.mlflow_live"]
    assert one.startswith("no curves while it trains: MLflow at http://127.0.0.1:9")
