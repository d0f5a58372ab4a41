"""Curves in MLflow while a stage trains: the step reads the numbers that the trainer appends to its work folder.

The stage itself knows no MLflow. The run is the one that the finished artifact is reported to, so a training that is
interrupted and goes on has one run with one curve. An error of MLflow never stops a training.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.mlflow import Tracking, TrackingUnreachable
from resources.mlflow_runs import BATCH, LIVE_TAG, Opening, live_steps, open_run, run_page

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)
PERIOD = 5.0
"""Seconds between two looks at the trainer's numbers."""


@dataclass
class Curves:
    """The numbers of one training, from its file to its run. `logged` is the last step of each metric in MLflow."""

    tracking: Tracking
    opening: Opening
    path: Path
    say: Callable[[str], None]
    client: MlflowClient | None = None
    run_id: str = ""
    logged: dict[str, int] = field(default_factory=dict)
    _read: int = 0

    def update(self) -> None:
        """Logs what the trainer has written since the last call; makes the run when there is a first number."""
        records = list(self._records())
        if not records:
            return
        with self.tracking.translated_errors():
            if self.client is None:
                client = self.tracking.client()
                run = open_run(client, self.opening)
                self.run_id, self.logged, self.client = str(run.info.run_id), live_steps(run.data.tags), client
                self.say(f"curves while it trains: {run_page(run)}")
            self._log(self.client, records)

    def _log(self, client: MlflowClient, records: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric, RunTag

        now, new = round(time.time() * 1000), dict(self.logged)
        metrics = []
        for record in records:
            step = int(record["step"])
            for name, value in record.items():
                if name != "step" and step > new.get(name, -1):  # a resumed training repeats its last steps
                    metrics.append(Metric(name, float(value), now, step))
                    new[name] = step
        for start in range(0, len(metrics), BATCH):
            client.log_batch(self.run_id, metrics=metrics[start : start + BATCH])
        if metrics:
            client.log_batch(self.run_id, tags=[RunTag(LIVE_TAG, json.dumps(new, sort_keys=True))])
            self.logged = new

    def _records(self) -> Iterator[dict[str, Any]]:
        """The whole lines that were written since the last call; a line that is still being written waits."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._read)
                data = stream.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # a line that a killed training cut
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record

    def end(self, status: str) -> None:
        """Ends the run of a training that did not end well; the next try opens it again."""
        if self.client is not None:
            with self.tracking.translated_errors():
                self.client.set_terminated(self.run_id, status)


@contextmanager
def live_curves(tracking: Tracking, opening: Opening, path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile the numbers in the trainer's file `path` go to the MLflow run of `opening`.

    `say` is told once where the curves are. Where MLflow cannot be reached, one warning says so, and the finished
    artifact reports all numbers as ever.
    """
    curves, ended, failed = Curves(tracking, opening, path, say), threading.Event(), threading.Event()

    def attempt(work: Callable[[], None]) -> None:
        try:
            work()
        except TrackingUnreachable as error:
            if not failed.is_set():
                log.warning("no curves while it trains: %s", error)
            failed.set()

    def follow() -> None:
        while not ended.wait(PERIOD) and not failed.is_set():
            attempt(curves.update)

    thread = threading.Thread(target=follow, name="live-curves", daemon=True)
    thread.start()
    status = "FAILED"
    try:
        yield
        status = ""
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        ended.set()
        thread.join()
        if status:
            attempt(curves.update)
            attempt(lambda: curves.end(status))
