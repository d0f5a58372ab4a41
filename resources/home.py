"""Where a project keeps what it makes; every place can be moved by its environment variable.

| what | variable | default |
|---|---|---|
| Dagster's storage | DAGSTER_HOME | .dagster/ |
| everything else | ALIGN_HOME | .align/ |
| artifact store | ALIGN_STORE | $ALIGN_HOME/store |
| MLflow | MLFLOW_TRACKING_URI | sqlite in $ALIGN_HOME |
| MLflow's pages | ALIGN_MLFLOW_UI | http://127.0.0.1:5000 |
"""

from __future__ import annotations

import os
import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def align_home() -> Path:
    return Path(os.environ.get("ALIGN_HOME") or PROJECT / ".align").resolve()


def dagster_home() -> Path:
    return Path(os.environ.get("DAGSTER_HOME") or PROJECT / ".dagster").resolve()


def store_url() -> str:
    return os.environ.get("ALIGN_STORE") or str(align_home() / "store")


def tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{align_home() / 'mlflow.db'}"


def without_userinfo(text: str) -> str:
    """A text in which no URL names a user or a password."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def mlflow_ui() -> str:
    """Where a person opens MLflow: the tracking server itself, or the pages that `make ui` serves."""
    uri = without_userinfo(tracking_uri())
    return uri if uri.startswith("http") else os.environ.get("ALIGN_MLFLOW_UI", "http://127.0.0.1:5000")


def ensure_home() -> None:
    """Makes both homes and puts them, and what follows from them, into this process's environment.

    Dagster reads its settings from DAGSTER_HOME, so the top-level dagster.yaml is linked there.
    """
    home, dagster = align_home(), dagster_home()
    home.mkdir(parents=True, exist_ok=True)
    dagster.mkdir(parents=True, exist_ok=True)
    settings = dagster / "dagster.yaml"
    if not settings.exists():
        settings.unlink(missing_ok=True)  # a link whose target moved
        settings.symlink_to(PROJECT / "dagster.yaml")
    os.environ.update(
        ALIGN_HOME=str(home),
        DAGSTER_HOME=str(dagster),
        ALIGN_STORE=store_url(),
        MLFLOW_TRACKING_URI=tracking_uri(),
    )
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress is told by log lines, which event logs and files can hold
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # of libraries among themselves
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
