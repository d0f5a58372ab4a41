"""Databases of Dagster and MLflow: a lock is waited for, and what is wrong with one is told in one line.

Without a server each keeps SQLite files in the project's home. A backup, another command or a page may lock one for
seconds. The libraries wait 5 s for some of them, and their errors have many lines, with the SQL and its parameters.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from sqlalchemy import event
from sqlalchemy.engine import Engine, ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from alignment.errors import BadInput, causes, first_few, one_line
from resources.home import dagster_home

PATIENCE = 45.0
"""Seconds to wait for a lock: less than the 60 s after which Dagster gives a sensor's tick up."""
SPARE = 1 << 20
"""Bytes of free space below which a disk counts as full, whatever SQLite says of a file on it."""
FULL = "no space left on the device; free some (`align gc --dry-run` says what may go), and run it again"
DAMAGED = "it is damaged; put a backup in its place, or move it away to begin a new one, and run it again"
PROBLEMS = {
    "FULL": FULL,
    "READONLY": "it cannot be written; its file, its folder and their disk have to be writable",
    "CANTOPEN": "it cannot be opened; its folder has to be there, to be readable and to be writable",
    "IOERR": "its disk, or the network to it, failed",
    "CORRUPT": DAMAGED,
    "NOTADB": DAMAGED,
}
"""What SQLite's error codes mean for a person; a code's name is SQLITE_ and this, and may go on."""


class DatabaseUnusable(OperationalError):
    """A database file that cannot be used: `problem` says why and what to do, in one line.

    It is of SQLAlchemy's kind, so that Dagster and MLflow try again, or roll back, as for any other.
    """

    def __init__(self, file: Path, problem: str, original: sqlite3.Error) -> None:
        super().__init__(None, None, original)
        self.file = file
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}"


def problem_of(error: sqlite3.Error, file: Path) -> str | None:
    """What an error of SQLite means for a person; None for one that is no matter of the file or its disk."""
    code = getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_").split("_")[0]
    if code == "BUSY":
        held = f" by {first_few(holders)}" if (holders := holders_of(file)) else ""
        return f"database is locked{held}; wait until that is over, or end it, and run it again"
    if code == "ERROR" and "no such table" in str(error):
        return f"{error}; it was emptied or removed while it was in use: put it back, or run it again on a new one"
    if code in ("CANTOPEN", "IOERR") and _is_full(file):
        return FULL
    return PROBLEMS.get(code)


def _is_full(file: Path) -> bool:
    with suppress(OSError):
        return shutil.disk_usage(file.parent).free < SPARE
    return False


def holders_of(file: Path) -> list[str]:
    """The processes of this machine that have locked a database to write to it; empty where the system does not say.

    In SQLite's mode for many readers the lock is on the file's `-shm`.
    """
    with suppress(OSError):
        paths = [path for path in (file, file.with_name(f"{file.name}-shm")) if path.exists()]
        files = {_as_locked(path.stat()) for path in paths}
        locks = [line.split() for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines()]
        pids = {int(lock[4]) for lock in locks if lock[3] == "WRITE" and lock[5] in files}
        return [_process(pid) for pid in sorted(pids) if pid > 0]
    return []


def _as_locked(status: os.stat_result) -> str:
    """How the kernel names a file in its list of locks."""
    return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"


def _process(pid: int) -> str:
    words: list[str] = []
    with suppress(psutil.Error):
        words = [Path(word).name for word in psutil.Process(pid).cmdline()[:3]]
    return f"process {pid}" + (f" ({' '.join(words)})" if words else "")


@contextmanager
def told_in_a_line(file: Path) -> Iterator[None]:
    """Turns errors of Python's own `sqlite3` into `DatabaseUnusable`."""
    try:
        yield
    except sqlite3.Error as error:
        problem = problem_of(error, file)
        if problem is None:
            raise
        raise DatabaseUnusable(file, problem, error) from error


def words_of(error: BaseException) -> str:
    """What an error of MLflow or SQLAlchemy says, in one line and without the SQL."""
    told = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error  # MLflow's repeats its cause
    if isinstance(told, DatabaseUnusable):
        return told.problem
    return one_line(told.orig if isinstance(told, DBAPIError) and told.orig is not None else told)


def prepare_libraries() -> None:
    """Every connection of this process to SQLite waits `PATIENCE` for a lock, and errors are `DatabaseUnusable`."""
    if not event.contains(Engine, "connect", _wait):
        event.listen(Engine, "connect", _wait)
        event.listen(Engine, "handle_error", _tell)


def _wait(connection: Any, _: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute(f"PRAGMA busy_timeout = {PATIENCE * 1000:.0f}").close()


def _tell(context: ExceptionContext) -> DatabaseUnusable | None:
    error, file = context.original_exception, context.engine and context.engine.url.database
    if not isinstance(error, sqlite3.Error) or not file or file.startswith((":memory:", "file:")):
        return None
    problem = problem_of(error, Path(file))
    return None if problem is None else DatabaseUnusable(Path(file), problem, error)


@contextmanager
def dagster_instance() -> Iterator[dg.DagsterInstance]:
    """The Dagster of the project's home; raises `BadInput` while its storage cannot be used."""
    prepare_libraries()
    try:
        with dg.DagsterInstance.get() as instance:
            yield instance
    except Exception as error:
        behind = next((one for one in causes(error) if isinstance(one, (OperationalError, InterfaceError))), None)
        if behind is None:
            raise
        if isinstance(behind, DatabaseUnusable):
            raise BadInput(behind.problem, file=str(behind.file)) from error
        problem = f"Dagster's storage does not answer: {words_of(behind)}"
        raise BadInput(problem, file=str(dagster_home() / "dagster.yaml"), field="storage") from error
