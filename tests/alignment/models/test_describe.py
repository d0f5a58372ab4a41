from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from alignment.errors import BadInput
from alignment.models.checkpoint import (
    checkpoint_summary,
    digest_checkpoint,
    load_model,
    load_tokenizer,
    max_positions,
    save_checkpoint,
)
from alignment.models.weights import tensors

Make = Callable[..., Path]


def test_a_padding_id_beyond_the_embeddings_loads_as_none(checkpoint: Make) -> None:
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    ids = torch.tensor([[2, 3, 4]])
    before = load_model(folder, "float32", "cpu")(ids).logits
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": config["vocab_size"]}))
    assert torch.equal(load_model(folder, "float32", "cpu")(ids).logits, before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_digest_does_not_depend_on_how_tensors_are_split_over_files(checkpoint: Make, dtype: str) -> None:
    whole, split = checkpoint("whole", dtype=dtype), checkpoint("split", dtype=dtype, max_shard_size="4KB")
    assert (split / "model.safetensors.index.json").is_file()
    assert not (split / "model.safetensors").exists()
    assert digest_checkpoint(whole) == digest_checkpoint(split)


def test_every_tensor_counts_with_its_name_and_its_bytes(checkpoint: Make) -> None:
    folder = checkpoint()
    before = digest_checkpoint(folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[3]
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, path, {"format": "pt"})
    changed = digest_checkpoint(folder)
    assert changed.weights != before.weights
    weights[f"{name}_renamed"] = weights.pop(name)
    save_file(weights, path, {"format": "pt"})
    assert digest_checkpoint(folder).weights != changed.weights
    assert (changed.config, changed.tokenizer) == (before.config, before.tokenizer)


def test_the_bytes_read_are_the_tensors_that_safetensors_reads(checkpoint: Make) -> None:
    folder = checkpoint(dtype="bfloat16")
    expected = load_file(folder / "model.safetensors")
    found = {tensor.name: tensor for tensor in tensors(folder)}
    assert list(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape)
        assert b"".join(found[name].blocks()) == tensor.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("change", "counts"),
    [({"rms_norm_eps": 1e-3}, True), ({"use_cache": False, "transformers_version": "1", "dtype": "x"}, False)],
)
def test_the_config_digest_covers_what_changes_a_forward_pass(
    checkpoint: Make, change: dict[str, object], counts: bool
) -> None:
    folder = checkpoint()
    before = digest_checkpoint(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    after = digest_checkpoint(folder)
    assert (after.config != before.config) is counts
    assert (after.digest != before.digest) is counts


def test_a_chat_template_changes_the_tokenizer_digest_alone(checkpoint: Make) -> None:
    folder = checkpoint()
    before = digest_checkpoint(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    after = digest_checkpoint(folder)
    assert after.tokenizer != before.tokenizer
    assert (after.weights, after.config) == (before.weights, before.config)


def test_the_summary_agrees_with_the_loaded_model(checkpoint: Make) -> None:
    folder = checkpoint()
    summary = checkpoint_summary(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert summary["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert summary["architecture"] == type(model).__name__
    assert summary["vocab_size"] == model.config.vocab_size
    assert summary["max_positions"] == max_positions(folder) == 64
    assert summary["has_chat_template"] is False


def test_a_saved_checkpoint_reads_back_the_same(checkpoint: Make, tmp_path: Path) -> None:
    folder = checkpoint()
    model, tokenizer = load_model(folder, "float32"), load_tokenizer(folder)
    assert not model.training
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    save_checkpoint(model, tokenizer, tmp_path / "copy")
    assert digest_checkpoint(tmp_path / "copy").weights == digest_checkpoint(folder).weights
    assert load_tokenizer(tmp_path / "copy").chat_template == tokenizer.chat_template
    assert load_model(tmp_path / "copy", "bfloat16").dtype == torch.bfloat16


def test_a_cut_off_weights_file_is_named(checkpoint: Make) -> None:
    path = checkpoint() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadInput, match=r"model\.safetensors: cut short"):
        digest_checkpoint(path.parent)


def test_a_folder_without_a_tokenizer_is_refused(checkpoint: Make) -> None:
    folder = checkpoint()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="no tokenizer"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_hidden_layers": 9}, r"the weights lack model\.layers\.\d+\."),
        ({"vocab_size": 7}, r"the weights have another shape for .*embed_tokens"),
        ({"vocab_size": 10**12}, r"config\.json, field 'vocab_size': says 10+, and no tensor of the weights has more"),
        ({"num_hidden_layers": 10**9}, r"config\.json, field 'num_hidden_layers': says 10+; 10000 are the most"),
        ({"num_attention_heads": 0}, r"config\.json: cannot be read|the model cannot be loaded"),
    ],
)
def test_weights_that_do_not_fill_the_model_are_refused_and_never_made_up(
    checkpoint: Make, changed: dict[str, int], told: str
) -> None:
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(BadInput, match=told):
        load_model(folder, "float32", "cpu")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("tokenizer.json", "", r"tokenizer\.json: not JSON"),
        ("tokenizer_config.json", "[" * 9000, r"tokenizer_config\.json: not JSON"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json: a tokenizer's configuration is a JSON object"),
        ("model.safetensors.index.json", '{"weight_map": {}}', r"index\.json: names no file with weights"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 1, "b": "c"}}', r"index\.json: not a safetensors index"),
    ],
)
def test_a_small_file_that_says_nothing_is_named(checkpoint: Make, name: str, text: str, told: str) -> None:
    folder = checkpoint()
    if "index" in name:
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(text)
    with pytest.raises(BadInput, match=told):
        checkpoint_summary(folder)
