"""An empty store of both kinds that there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.store import Store


@pytest.fixture
def store(store_url: str, tmp_path: Path) -> Store:
    return Store(store_url, cache=tmp_path / "cache")
