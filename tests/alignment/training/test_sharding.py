"""Two processes with half of each weight learn what one learns with the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.store import Artifact, Commit, Store
from tests.alignment.training.test_processes import torchrun


def weights_of(store: Store, artifact: Artifact) -> dict[str, Any]:
    return load_file(store.fetch(artifact) / "model.safetensors")


def apart(store: Store, found: Commit, twin: Store, expected: Commit, start: Artifact) -> float:
    """‖found − expected‖ / ‖expected − start‖ over all weights; they have the same names and dtypes."""
    ours, theirs, before = (
        weights_of(place, artifact)
        for place, artifact in ((store, found.artifact), (twin, expected.artifact), (store, start))
    )
    assert {name: (each.dtype, each.shape) for name, each in ours.items()} == {
        name: (each.dtype, each.shape) for name, each in theirs.items()
    }
    between = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in ours)
    moved = sum(float((theirs[name].double() - before[name].double()).square().sum()) for name in ours)
    return (between / moved) ** 0.5


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_two_processes_with_half_of_each_weight_learn_what_one_learns(kind: str, lab: Any, tmp_path: Path) -> None:
    checkpoint = lab.checkpoint(kind=kind)
    manifest = lab.manifest(checkpoint, lab.rows(36))
    one, two = (
        lab.dpo_request(
            checkpoint,
            manifest,
            batch_size=8,
            epochs=20 * 8 / 36,
            learning_rate=1e-4,
            world_size=size,
            sharded=True,
        )
        for size in (1, 2)
    )
    assert STAGE.key(one) == STAGE.key(two)
    twin = lab.twin(tmp_path / "one")
    together, single = torchrun(lab.store, two, tmp_path), execute(STAGE, one, twin)
    assert together.summary["steps"] == single.summary["steps"] == 20
    far = apart(lab.store, together, twin, single, checkpoint)
    print(far)
    assert far <= 1e-3
