"""Weighted averages of checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alignment.errors import BadInput
from alignment.models.checkpoint import digest_checkpoint, load_model
from alignment.models.merging import write_average
from tests.tiny import letter_tokenizer, write_model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_average_is_that_of_every_tensor_rounded_once(tmp_path: Path, dtype: str) -> None:
    folders = [
        write_model(tmp_path / str(seed), letter_tokenizer(), "qwen2", seed=seed, dtype=dtype) for seed in range(3)
    ]
    weights = [0.7, 0.2, 0.1]
    parts = {f"part {place}": (folder, weights[place]) for place, folder in enumerate(folders)}
    (out := tmp_path / "out").mkdir()
    write_average(parts, "part 0", out)
    states = [load_model(folder, dtype).state_dict() for folder in (*folders, out)]
    for name, tensor in states[-1].items():
        exact = sum(weight * state[name].double() for weight, state in zip(weights, states, strict=False))
        assert torch.equal(tensor, exact.to(tensor.dtype)), name


def test_the_average_of_a_checkpoint_with_itself_is_the_checkpoint(tmp_path: Path) -> None:
    saving = {"max_shard_size": "20KB"}
    folder = write_model(tmp_path / "one", letter_tokenizer(), "llama", seed=1, dtype="bfloat16", saving=saving)
    (out := tmp_path / "out").mkdir()
    write_average({"a": (folder, 0.9), "b": (folder, 0.1)}, "a", out)
    assert digest_checkpoint(out) == digest_checkpoint(folder)
    assert len(list(out.glob("*.safetensors"))) > 1, "in as many files"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_hidden_layers": 3}, "has besides tensor model.layers.2."),
        ({"num_hidden_layers": 1}, "lacks tensor model.layers.1."),
        ({"intermediate_size": 40}, "has the shape"),
    ],
)
def test_another_architecture_is_refused_by_name(tmp_path: Path, changed: dict[str, int], told: str) -> None:
    one = write_model(tmp_path / "one", letter_tokenizer())
    other = write_model(tmp_path / "other", letter_tokenizer(), **changed)
    (out := tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match="sft is of another architecture than the policy") as error:
        write_average({"policy": (one, 0.5), "sft": (other, 0.5)}, "policy", out)
    assert told in str(error.value)
