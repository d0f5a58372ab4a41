"""Progress of a Dagster run on the terminal, read from its event log while it runs."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from types import TracebackType

import dagster as dg

TAG = "align/launch"
PERIOD = 0.5  # seconds between two looks at the event log
PAUSE = 3.0  # seconds between two lines that a step's stage logs


class Progress:
    """Tells `say` when steps start and end, and what stages log; finds its run by the tag in `tags`."""

    def __init__(self, instance: dg.DagsterInstance, phase: str, say: Callable[[str], None]) -> None:
        self.instance = instance
        self.phase = phase
        self.say = say
        self.tags = {TAG: uuid.uuid4().hex}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._run_id: str | None = None
        self._cursor: str | None = None
        self._began: dict[str, float] = {}
        self._spoke: dict[str, float] = {}

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _follow(self) -> None:
        while not self._done.wait(PERIOD):
            self._look()

    def _look(self) -> None:
        if self._run_id is None:
            runs = self.instance.get_runs(dg.RunsFilter(tags=self.tags), limit=1)
            if not runs:
                return
            self._run_id = runs[0].run_id
        seen = self.instance.get_records_for_run(self._run_id, cursor=self._cursor)
        self._cursor = seen.cursor
        for record in seen.records:
            self._tell(record.event_log_entry)

    def _tell_message(self, entry: dg.EventLogEntry, step: str) -> None:
        """Warnings always; of a stage's own lines as many as a person can follow."""
        message, warning = entry.user_message, int(entry.level) >= logging.WARNING
        if not message or message.startswith("Dependencies for step"):
            return
        if warning or entry.timestamp - self._spoke.get(step, 0.0) >= PAUSE:
            self._spoke[step] = entry.timestamp
            self.say(f"    {step}: {message}")

    def _tell(self, entry: dg.EventLogEntry) -> None:
        event = entry.dagster_event
        step = (entry.step_key or "").split("__", 1)[-1].replace("__", "/")
        if event is None:
            self._tell_message(entry, step)
            return
        if event.event_type == dg.DagsterEventType.STEP_START:
            self._began[step] = entry.timestamp
            self.say(f"  {self.phase} · {step} …")
        elif event.event_type == dg.DagsterEventType.STEP_SUCCESS:
            self.say(f"  {self.phase} · {step} done in {entry.timestamp - self._began.get(step, time.time()):.1f} s")
        elif event.event_type == dg.DagsterEventType.STEP_FAILURE:
            self.say(f"  {self.phase} · {step} FAILED")
