"""The folders and addresses of a project's results; an environment variable moves each of them.

| what | variable | default |
|---|---|---|
| Dagster's storage | DAGSTER_HOME | .dagster/ |
| everything else | ALIGN_HOME | .align/ |
| artifact store | ALIGN_STORE | $ALIGN_HOME/store |
| MLflow | MLFLOW_TRACKING_URI | sqlite in $ALIGN_HOME |
| MLflow's pages | ALIGN_MLFLOW_UI | http://127.0.0.1:$ALIGN_MLFLOW_PORT, which is 5000 |
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from alignment.address import shown
from alignment.errors import BadInput

PROJECT = Path(__file__).resolve().parents[1]
UNHEARD = ("ignore::FutureWarning", "ignore:Function `PipesMessageReader")
"""Warnings that no user can act on: of libraries to each other, and of a name in Dagster that may still change."""


def align_home() -> Path:
    """The folder for everything except Dagster's storage; raises `BadInput` for a link that leads to itself."""
    return _folder("ALIGN_HOME", PROJECT / ".align")


def dagster_home() -> Path:
    """The folder of Dagster's storage and settings; raises as `align_home`."""
    return _folder("DAGSTER_HOME", PROJECT / ".dagster")


def _folder(variable: str, default: Path) -> Path:
    given = os.environ.get(variable)
    try:
        return Path(given or default).expanduser().resolve()  # as Dagster reads it; a quoted ~ reaches us as it is
    except (OSError, RuntimeError) as error:  # a link that leads to itself, or a user that is not known
        raise BadInput(f"not a folder: {error}", file=given, field=variable) from error


def store_url() -> str:
    """The artifact store: a local folder or an fsspec URL."""
    return os.environ.get("ALIGN_STORE") or str(align_home() / "store")


def tracking_uri() -> str:
    """MLflow's tracking URI; it may contain a password."""
    return os.environ.get("MLFLOW_TRACKING_URI") or database_uri(align_home())


def database_uri(home: Path) -> str:
    """The tracking URI of MLflow's database in a home; MLflow decodes it."""
    return f"sqlite:///{str(home / 'mlflow.db').replace('%', '%25')}"


def mlflow_ui() -> str:
    """The address at which a person opens MLflow: the tracking server itself, or the UI that `make ui` starts."""
    uri = shown(tracking_uri())
    port = os.environ.get("ALIGN_MLFLOW_PORT") or 5000  # of `make ui`, which refuses what is no port
    return uri if uri.startswith("http") else os.environ.get("ALIGN_MLFLOW_UI", f"http://127.0.0.1:{port}")


def mlflow_page(page: str) -> str:
    """The address of a page of MLflow, such as `experiments/1`, with the menu for training and models: without the
    parameter MLflow opens the pages for traces of agents."""
    return f"{mlflow_ui()}/#/{page}?workflowType=machine_learning"


def ensure_home() -> None:
    """Makes both homes, and sets them and the addresses in them in this process's environment.

    Dagster reads its settings from DAGSTER_HOME, so the top-level dagster.yaml is linked there. Raises `BadInput` that
    names the variable of a home that cannot be created or written to.
    """
    home, dagster = align_home(), dagster_home()
    with _naming(home, "ALIGN_HOME"):
        _make(home)
    with _naming(dagster, "DAGSTER_HOME"):
        _make(dagster)
        _link_settings(dagster / "dagster.yaml")
    os.environ.update(
        ALIGN_HOME=str(home),
        DAGSTER_HOME=str(dagster),
        ALIGN_STORE=store_url(),
        MLFLOW_TRACKING_URI=tracking_uri(),
    )
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # log lines report progress, as bars are unreadable in files
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("PYTHONWARNINGS", ",".join(UNHEARD))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def _naming(home: Path, variable: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(f"cannot be used: {error.strerror or error}", file=str(home), field=variable) from error


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        read_only = os.statvfs(folder).f_flag & os.ST_RDONLY if hasattr(os, "statvfs") else 0
        code = errno.EROFS if read_only else errno.EACCES
        raise OSError(code, os.strerror(code))


def _link_settings(settings: Path) -> None:
    if settings.exists():
        return
    settings.unlink(missing_ok=True)  # a link whose target moved
    with suppress(FileExistsError):  # another process was faster
        settings.symlink_to(PROJECT / "dagster.yaml")
