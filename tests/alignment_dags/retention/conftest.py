"""Stores with checkpoints in them, as retention finds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.store import Commit, Store


@pytest.fixture
def store(store_url: str, tmp_path: Path) -> Store:
    return Store(store_url, cache=tmp_path / "cache")


@pytest.fixture
def made(store: Store) -> Callable[..., Commit]:
    """An artifact of the store with weights, a record and its request."""

    def make(kind: str, key: str, minute: int = 0, recipe: str = "r", **rest: Any) -> Commit:
        attempt = store.begin(kind, key)
        for name in ("model.safetensors", "training_rows.parquet", "request.json"):
            (attempt.path / name).write_text(f"{name} of {key}")
        return store.commit(
            attempt,
            digest=f"digest-{key}",
            stage=kind,
            code_version=1,
            inputs=rest.get("inputs", {}),
            summary=rest.get("summary", {}),
            environment={"recipe": recipe},
            started_at=f"2026-01-01T00:{minute:02d}:00+00:00",
            seconds=0.0,
        )

    return make


@pytest.fixture
def policies(made: Callable[..., Commit]) -> Callable[..., list[Commit]]:
    """Policies, oldest first, each on an SFT checkpoint of its own."""

    def make(count: int, recipe: str = "r") -> list[Commit]:
        return [
            made(
                "policy_checkpoint",
                f"{recipe}-policy-{number}",
                number,
                recipe,
                inputs={"checkpoint": made("sft_checkpoint", f"{recipe}-sft-{number}", number, recipe).artifact},
            )
            for number in range(count)
        ]

    return make
