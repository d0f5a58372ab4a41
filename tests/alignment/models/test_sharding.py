"""What cannot be sharded is refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.data.tokens import TokenSequence
from alignment.errors import BadInput
from alignment.logprobs.scorer import logps
from alignment.models.checkpoint import load_model
from alignment.models.runner import Runner
from alignment.models.sharding import shard, sharding_of
from tests.tiny import letter_tokenizer, write_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def model_of(folder: Path, family: str = "llama", precision: str = "float32") -> Any:
    return load_model(write_model(folder, letter_tokenizer(), family, initializer_range=0.3), precision)


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gemma2", "granite", "cohere", "gpt2"])
def test_a_sharded_model_scores_as_it_did(family: str, tmp_path: Path) -> None:
    sequences = [TokenSequence((0, 5, 6, 7), (8, 9, 1)), TokenSequence((0, 5, 6, 7), (10, 1))]
    expected = logps(model_of(tmp_path, family), sequences, 64)
    model = load_model(tmp_path, "float32")
    shard(model, "float32", CPU)
    assert sharding_of(model) is not None
    assert logps(model, sequences, 64) == expected


def test_a_model_that_keeps_parts_in_float32_is_refused_in_bfloat16(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    model._keep_in_fp32_modules_strict = {"norm"}
    with pytest.raises(BadInput, match="cannot be sharded: it keeps norm in float32"):
        shard(model, "bfloat16", CPU)


def test_a_model_whose_layers_share_a_weight_with_the_rest_is_refused(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    model.model.layers[0].input_layernorm.weight = model.model.norm.weight
    with pytest.raises(BadInput, match="its layers share a weight with the rest"):
        shard(model, "float32", CPU)


@pytest.mark.parametrize("kind", ["mixtral", "olmoe"])
def test_a_mixture_of_experts_is_refused(kind: str, tmp_path: Path) -> None:
    """As the plan has it (`alignment_dags.planner.loads.unshardable`)."""
    model = model_of(tmp_path, kind)
    with pytest.raises(
        BadInput, match=r"^field 'sharded': .* cannot be sharded: its weights are stored in another"
    ) as told:
        shard(model, "float32", CPU)
    assert "\n" not in str(told.value) and str(told.value).endswith("leave out sharded")


def test_a_model_without_a_list_of_layers_is_refused(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    model.model.layers = torch.nn.Sequential(*model.model.layers)
    with pytest.raises(BadInput, match="its decoder has no list of layers"):
        shard(model, "float32", CPU)


def test_a_model_whose_head_is_not_known_is_refused(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden: forward(hidden).sin()
    model.get_output_embeddings = lambda: torch.nn.Linear(32, model.config.vocab_size)
    shard(model, "float32", CPU)
    with pytest.raises(BadInput, match=r"^field 'sharded': .* cannot be sharded: no known head gives its own logits"):
        Runner.of(model, TokenSequence((0, 5, 6), (7, 1)))
