"""A flipped byte in any file of any artifact ends in an error that names the file, or changes nothing that is made."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.errors import BadInput, CorruptArtifact
from alignment.recipe import load_recipe
from alignment.stages import execute
from alignment.stages.__main__ import load_stage
from alignment.stages.execute import REQUEST_FILE
from alignment.store import Commit, Store
from alignment.store.store import COMMIT_FILE
from assets.building.upstream import Upstream

pytestmark = pytest.mark.soak

SEED = 16
REGISTRATION = "registered_model"
"""Its stage asks MLflow and the gate, which hash what they read by themselves (tests/pipeline/test_promotion.py)."""


def flip(path: Path, rng: random.Random) -> bytes:
    """Flips a bit of a file, size and place kept; returns what was in it."""
    whole = path.read_bytes()
    data = bytearray(whole)
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))
    return whole


def made_again(store: Store, commit: Commit) -> str:
    """The digest of an artifact that is made once more from its own request and its inputs, and then as it was."""
    stage = load_stage(commit.stage)
    folder = Path(store.path(commit.kind, commit.key))
    request = stage.request.model_validate_json((folder / commit.attempt / REQUEST_FILE).read_bytes())
    aside = folder.with_name(f"{folder.name}-aside")
    folder.rename(aside)
    try:
        return execute(stage, request, store).digest
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)


def test_a_flipped_byte_in_any_file_of_an_artifact_makes_no_other_result(
    finished: Callable[..., Upstream], small_recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_recipe), encoding="utf-8")
    store, rng = finished(load_recipe(path)).store, random.Random(SEED)
    kinds = sorted(place.name for place in Path(store.root).iterdir() if any(place.glob(f"*/{COMMIT_FILE}")))
    commits = [commit for kind in kinds for commit in sorted(store.commits(kind), key=lambda commit: commit.key)]
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for commit in commits:
        readers = [
            reader
            for reader in commits
            if reader.kind != REGISTRATION and commit.key in {artifact.key for artifact in reader.inputs.values()}
        ]
        for name in sorted(commit.files):
            file = Path(store.path(commit.kind, commit.key, commit.attempt, name))
            if not commit.files[name].size:
                continue
            for reader in readers:
                told = f"{commit.kind}/{name} read by {reader.kind}"
                whole = flip(file, rng)
                try:
                    outcome = "the same result" if made_again(store, reader) == reader.digest else "ANOTHER RESULT"
                except CorruptArtifact as error:
                    outcome = "an error that names the file" if name in str(error) else f"AN ERROR WITHOUT IT: {error}"
                except BadInput as error:
                    outcome = f"THE INPUT IS BLAMED: {error}"
                except Exception as error:
                    outcome = f"TRACEBACK {type(error).__name__}: {error}"
                finally:
                    file.write_bytes(whole)
                counts[outcome] += 1
                if outcome[0].isupper():
                    wrong.append(f"{told}: {outcome}")
    with capsys.disabled():
        print(f"\n{sum(counts.values())} flipped bytes in {len(commits)} artifacts: {dict(counts)}")
    assert not wrong, "\n".join(wrong)
