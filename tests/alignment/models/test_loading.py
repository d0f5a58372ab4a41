"""A model of which each rank reads and keeps its rows alone computes what the whole one computes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from alignment.data.tokens import TokenSequence
from alignment.errors import BadInput
from alignment.generation.generator import GREEDY, Generator, Sampling
from alignment.logprobs.scorer import logps
from alignment.models.checkpoint import load_model, load_tokenizer, require_precision
from alignment.models.loading import load_sharded
from alignment.models.weights import weight_files
from eval.answers.answer import ContinuationScorer
from tests.alignment.models.two_ranks import read_by_this_process
from tests.tiny import letter_tokenizer, write_model

PROMPTS = ["the cat", "a dog and a horse", "why", "go home", "b"]
SEQUENCES = [((0, 5, 6, 7), (8, 9, 1)), ((0, 5, 6, 7), (10, 1)), ((0, 9, 4), (12, 13, 14, 15, 1))]


def together(folder: Path, **asked: Any) -> dict[str, Any]:
    """What two ranks say of the model in a folder."""
    ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*ranks, "-m", "tests.alignment.models.two_ranks", str(folder), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("family", "precision"), [("qwen2", "float32"), pytest.param("llama", "bfloat16", marks=pytest.mark.soak)]
)
def test_two_ranks_score_and_answer_as_one_and_read_each_byte_once(family: str, precision: str, tmp_path: Path) -> None:
    """`qwen2` has its head's weights tied, and biases; the last rows of a weight are the second rank's. Answers take
    three batches, so the second rank has one of them, and makes the first one's passes while that has its second."""
    folder = write_model(
        tmp_path, letter_tokenizer(), family, dtype=precision, initializer_range=0.3, hidden_size=64, vocab_size=35
    )
    asked = {"precision": precision, "prompts": PROMPTS, "sequences": SEQUENCES, "new_tokens": 8, "batch_tokens": 40}
    found = together(folder, **asked)

    model = load_model(folder, precision)
    sequences = [TokenSequence(*sequence) for sequence in SEQUENCES]
    assert found["logps"] == [logps(model, sequences, 40)] * 2
    generator = Generator(model, load_tokenizer(folder), 40)
    samplings = [Sampling(1.0, 1.0, f"{place}") if place % 2 else GREEDY for place in range(len(PROMPTS))]
    expected = [list(answer.ids) for answer in generator.answer(PROMPTS, 8, (), samplings)]
    assert found["answers"] == [expected] * 2
    assert found["continued"][0] == found["continued"][1]
    scorer = ContinuationScorer(model, generator.encoder, 40)
    wanted = [Instance("loglikelihood", {}, ("the ", each), place) for place, each in enumerate(PROMPTS)]
    assert found["likelihoods"] == [[list(score) for score in scorer.score(wanted)]] * 2

    weights = sum(weight.nbytes for weight in model.parameters())
    headers = sum(path.stat().st_size for path in weight_files(folder)) - weights
    assert sum(found["counted"]) == weights, "each rank reads its rows alone"
    assert sum(found["read"]) <= weights + 2 * headers + 65_536, "and the process no more than that and descriptions"
    assert max(found["kept"]) <= 0.51 * weights


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_that_each_rank_has_whole_is_mapped_and_not_read(precision: str, tmp_path: Path) -> None:
    """Ranks of a machine share the pages of a mapped file, which come from disk once."""
    folder = write_model(tmp_path, letter_tokenizer(), hidden_size=64, intermediate_size=1024, num_hidden_layers=4)
    load_model(folder, precision, "cpu")  # imports read files too
    before = read_by_this_process()
    model = load_model(folder, precision, "cpu")
    (file,) = weight_files(folder)
    assert read_by_this_process() - before < 65_536 < file.stat().st_size / 4
    mapped = str(file) in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert mapped == (precision == "float32"), "rounded weights are the rank's own"
    assert model.dtype == getattr(torch, precision)


@pytest.fixture
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("family", ["llama", "llama_tied", "gemma2", "granite", "cohere", "gpt2"])
def test_every_family_is_read_as_transformers_reads_it(family: str, tmp_path: Path) -> None:
    """Weights of another prefix, buffers that no file has, and end ids of the generation settings."""
    folder = write_model(tmp_path, letter_tokenizer(), family, initializer_range=0.3, dtype="bfloat16")
    whole = load_model(folder, "bfloat16")
    sequences = [TokenSequence(*sequence) for sequence in SEQUENCES]
    expected, state = logps(whole, sequences, 64), whole.state_dict()
    model = load_sharded(folder, "bfloat16")
    assert logps(model, sequences, 64) == expected
    assert model.generation_config.eos_token_id == whole.generation_config.eos_token_id
    found = {name: value.full_tensor() for name, value in model.state_dict().items() if hasattr(value, "full_tensor")}
    assert found and all(torch.equal(value, state[name]) for name, value in found.items())


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"num_hidden_layers": 3}, r"the weights lack model\.layers\.2\..*config\.json is another model's"),
        ({"intermediate_size": 64}, r"the weights have another shape for model\.layers\.0\.mlp"),
    ],
)
def test_weights_that_are_not_the_configurations_are_named(changed: dict[str, int], says: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, letter_tokenizer())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changed), encoding="utf-8")
    with pytest.raises(BadInput, match=says):
        load_sharded(folder, "float32")


def test_a_gpu_that_does_not_compute_in_bfloat16_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that emulates it, many times slower and without flash attention."""
    supported = {"including_emulation": True}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **asked: asked == supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100-SXM2-16GB")
    with pytest.raises(BadInput, match=r"^field 'precision': Tesla V100-SXM2-16GB does not compute in bfloat16"):
        require_precision("bfloat16", "cuda:0")
    require_precision("float32", "cuda:0")
    require_precision("bfloat16", "cpu")


@pytest.mark.usefixtures("one_rank")
def test_a_mixture_of_experts_is_refused_for_what_it_is_and_not_for_weights_that_it_lacks(tmp_path: Path) -> None:
    folder = write_model(tmp_path, letter_tokenizer(), "mixtral", num_local_experts=4)
    with pytest.raises(BadInput, match=r"^field 'sharded': .* cannot be sharded: its weights are stored in another"):
        load_sharded(folder, "float32")


@pytest.mark.usefixtures("one_rank")
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_model(tmp_path, letter_tokenizer())
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"model\.norm\.weight holds values that are not finite"):
        load_sharded(folder, "float32")
