"""A store with committed checkpoints, and the sentence data that IFEval splits with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.artifacts import Artifact, Store
from alignment.stages import Context, Request, Result, Stage, execute


class _CheckpointRequest(Request):
    name: str
    folder: str


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), cache=tmp_path / "cache")


@pytest.fixture
def commit_checkpoint(store: Store) -> Callable[..., Artifact]:
    """Commits a folder (or an empty one) as a checkpoint whose digest is its name."""

    def commit(name: str, folder: Path | None = None) -> Artifact:
        def run(request: _CheckpointRequest, context: Context) -> Result:
            if request.folder:
                shutil.copytree(request.folder, context.out, dirs_exist_ok=True)
            return Result(digest=name)

        stage = Stage("checkpoint", 1, _CheckpointRequest, run)
        return execute(stage, _CheckpointRequest(name=name, folder=str(folder or "")), store).artifact

    return commit


@pytest.fixture(scope="session")
def micro_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained micro Llama with its tokenizer and chat template, context 256."""
    from alignment.quickstart.model import build_micro_model

    folder = tmp_path_factory.mktemp("micro") / "model"
    build_micro_model(folder, seed=3)
    return folder


@pytest.fixture
def sentence_data(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(real_data / "nltk_data")])
