"""MLflow's own database in the project's home, where there is no tracking server."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from functools import cache
from itertools import product
from pathlib import Path
from urllib.parse import unquote

from filelock import FileLock

from alignment.errors import one_line
from resources.databases import PATIENCE, prepare_libraries, told_in_a_line
from resources.home import align_home, database_uri

log = logging.getLogger(__name__)

FILES = "mlartifacts"
"""Folder of the home that holds the files of MLflow's runs and models, by experiment."""
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("tags", "value"),
    ("logged_model_tags", "tag_value"),
    ("model_version_tags", "value"),
)
"""Tables and columns in which MLflow keeps absolute addresses of files, its own and those of our artifacts."""


@cache
def prepare(uri: str) -> None:
    """Creates the tables of a local database, and lets its addresses follow a home that was moved or copied.

    By one process at a time: of two processes that create tables at once, one fails. Raises `DatabaseUnusable`.
    """
    from mlflow import MlflowClient

    prepare_libraries()
    logging.getLogger("mlflow.store.db.utils").addFilter(_is_told_here)
    home = align_home()
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "mlflow.lock"), told_in_a_line(home / "mlflow.db"):
        if is_ours := uri == database_uri(home):
            _read(home / "mlflow.db")
        MlflowClient(uri).search_experiments(max_results=1)
        if is_ours:
            follow(home)


def _is_told_here(record: logging.LogRecord) -> bool:
    """MLflow logs an error of its database with a traceback, and raises it: whoever called tells it. What it only warns
    of becomes a line, and that it makes tables is nobody's concern."""
    record.msg, record.args = one_line(record.getMessage()), ()
    return record.exc_info is None and record.levelno >= logging.WARNING


def _read(database: Path) -> None:
    """Reads from the file, as MLflow would first try one that cannot be opened for two minutes."""
    with closing(sqlite3.connect(database, timeout=PATIENCE)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def follow(home: Path) -> None:
    """Rewrites addresses below an earlier place of this home, so that no file goes on to be written there.

    An experiment's files lie in `mlartifacts/<its name>`: all before that is where the home was when it was made.
    """
    with closing(sqlite3.connect(home / "mlflow.db", timeout=PATIENCE)) as database, database:
        known = database.execute("SELECT name, artifact_location FROM experiments").fetchall()
        here = home.as_uri()
        for name, place in known:
            before, found, rest = str(place).rpartition(f"/{FILES}/")
            if not found or before == here or rest != name or not (home / FILES / name).is_dir():
                continue
            starts = {before: here, unquote(before): unquote(here)}  # addresses of artifacts are not percent-encoded
            for (table, column), (old, new) in product(PLACES, starts.items()):
                moved = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
                database.execute(moved, (new, len(old) + 1, len(old) + 1, f"{old}/"))
            log.warning("MLflow's files are in %s now, and were in %s", here, before)
