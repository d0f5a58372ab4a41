"""An empty store, local and remote."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from alignment.artifacts import Store


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return Store(url, cache=tmp_path / "cache")
