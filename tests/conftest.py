"""Fixtures that many tests share, and the one rule about real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DEFAULT_REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def real_data_folder() -> Path:
    return Path(os.environ.get("ALIGN_TEST_DATA") or DEFAULT_REAL_DATA)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without the real data its tests are deselected, and pytest's last line counts them."""
    if real_data_folder().is_dir():
        return
    needing = [item for item in items if item.get_closest_marker("real_data")]
    config.hook.pytest_deselected(items=needing)
    items[:] = [item for item in items if item not in needing]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data, as `shared/data/README.md` lays it out."""
    return real_data_folder()


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for every test: no test sees the project's, or another's."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("ALIGN_STORE", "MLFLOW_TRACKING_URI", "ALIGN_RECIPES", "ALIGN_POOLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALIGN_HOME", str(folder / "align"))
    monkeypatch.setenv("DAGSTER_HOME", str(folder / "dagster"))
    return folder
