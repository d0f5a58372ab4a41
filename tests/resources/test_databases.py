"""SQLite files of Dagster and MLflow that are locked, full, damaged or gone: waited for, or told in one line."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from alignment.errors import BadInput
from resources import databases
from resources.databases import PATIENCE, dagster_instance, problem_of
from resources.home import PROJECT, ensure_home
from resources.mlflow import Tracking, TrackingUnreachable
from resources.mlflow_live import live_curves
from tests.resources.test_mlflow_live import OPENING, write

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""
FLOORS = ("alignment", "eval", "resources", "assets", "alignment_dags")


@contextmanager
def held(database: Path) -> Iterator[int]:
    """Meanwhile another process has locked a database; gives its pid."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(database)], text=True, **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout.readline() == "locked\n"
        try:
            yield holder.pid
        finally:
            holder.communicate()


@pytest.fixture
def runs(tables: None, home: Path) -> Path:
    """The database of Dagster's runs in a home that has its tables."""
    ensure_home()
    return home / "dagster" / "history" / "runs.db"


def test_every_database_of_dagster_waits_for_a_lock_longer_than_the_libraries_do(runs: Path) -> None:
    with dagster_instance() as instance:
        storages = (instance.run_storage.connect, instance.schedule_storage.connect)  # type: ignore[union-attr, attr-defined]
        for connect in (*storages, instance.event_log_storage.index_connection):  # type: ignore[attr-defined]
            with connect() as connection:
                assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == PATIENCE * 1000


def test_a_lock_that_stays_is_told_with_the_process_that_holds_it_and_the_work_goes_on_after_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "PATIENCE", 0.1)

    def work() -> None:
        with dagster_instance() as instance:
            instance.run_storage.set_cursor_values({"a": "b"})

    with held(runs) as pid, pytest.raises(BadInput) as refused:
        work()
    told = str(refused.value)
    assert told.startswith(f"{runs}: database is locked") and told.endswith("run it again") and "\n" not in told
    if Path("/proc/locks").exists():
        assert f"by process {pid} (" in told
    work()


def full(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("PRAGMA max_page_count = 1")
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")


def read_only(file: Path) -> None:
    sqlite3.connect(file).close()
    with closing(sqlite3.connect(f"file:{file.name}?mode=ro", uri=True)) as connection:
        connection.execute("CREATE TABLE t (x)")


def damaged(file: Path) -> None:
    file.write_bytes(b"no database " * 100)
    asked(file)


def gone(file: Path) -> None:
    asked(file.parent / "no folder" / file.name)


def asked(file: Path, sql: str = "SELECT * FROM runs") -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(sql)


@pytest.mark.parametrize(
    ("weather", "told"),
    [
        (full, "no space left on the device"),
        (read_only, "it cannot be written"),
        (damaged, "it is damaged"),
        (gone, "it cannot be opened"),
        (asked, "no such table: runs; it was emptied or removed"),
    ],
)
def test_what_sqlite_says_is_told_with_what_to_do(
    weather: Callable[[Path], None], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sqlite3.Error) as raised:
        weather(tmp_path / "some.db")
    assert str(problem_of(raised.value, tmp_path / "some.db")).startswith(told)


def test_a_mistake_in_the_sql_is_no_matter_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.Error) as raised:
        asked(tmp_path / "some.db", "SELEKT")
    assert problem_of(raised.value, tmp_path / "some.db") is None


@pytest.mark.parametrize("trouble", ["damaged", "a folder"])
def test_every_command_tells_of_a_storage_that_cannot_be_used_in_one_line(
    trouble: str, runs: Path, align: Callable[..., tuple[int, dict[str, Any], str]]
) -> None:
    runs.unlink()
    if trouble == "damaged":
        runs.write_bytes(b"no database " * 1000)
    else:
        runs.mkdir()
    why = f"{runs}: " + ("it is damaged" if trouble == "damaged" else "it cannot be opened")
    code, _, error = align("pools", "apply")
    assert code == 2 and error.startswith(f"error: {why}") and error.count("\n") == 1
    code, told, _ = align("status")
    assert code == 0 and told["problem"].startswith(why) and {pool["taken"] for pool in told["pools"]} == {None}
    code, told, _ = align("doctor")
    bad = [one for one in told["findings"] if one["state"] == "bad"]
    assert code == 1 and [one["what"] for one in bad] == ["dagster"] and bad[0]["told"].startswith(why)


def test_nothing_opens_dagsters_storage_past_what_waits_and_tells() -> None:
    files = [file for floor in FLOORS for file in (PROJECT / floor).rglob("*.py")]
    opening = [str(file) for file in files if "DagsterInstance.get(" in file.read_text(encoding="utf-8")]
    assert opening == [str(PROJECT / "resources" / "databases.py")]


def test_an_mlflow_database_that_is_damaged_is_told_at_once(
    home: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    ensure_home()
    (home / "align" / "mlflow.db").write_bytes(b"no database " * 1000)
    with pytest.raises(TrackingUnreachable) as refused, Tracking().translated_errors():
        Tracking().client()
    assert str(refused.value).endswith(f"/align/mlflow.db: {databases.DAMAGED}")
    assert not caplog.records and capsys.readouterr().err == "", "MLflow did not try it for two minutes"


def test_a_disk_that_fills_under_mlflow_while_it_trains_is_one_warning_of_one_line(
    tables: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure_home()
    tracking = Tracking(attempts=1)
    tracking.client()

    def no_more_pages(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    path = tmp_path / "curves.jsonl"
    event.listen(Engine, "checkout", no_more_pages)
    try:
        with pytest.raises(ValueError), live_curves(tracking, OPENING, path, lambda _: None):
            write(path, *range(1, 3000))
            raise ValueError
    finally:
        event.remove(Engine, "checkout", no_more_pages)
    (warning,) = caplog.messages
    assert warning.startswith("no curves while it trains: MLflow at sqlite:///") and "\n" not in warning
    assert f"mlflow.db: {databases.FULL}" in warning
    assert capsys.readouterr().err == "", "no traceback of MLflow's own"
