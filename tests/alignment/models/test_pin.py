from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.errors import BadInput
from alignment.models.checkpoint import digest_checkpoint, load_model, load_tokenizer
from alignment.models.pin import ModelPin, materialise, pin_model
from alignment.recipe import ModelSource
from alignment.stages import execute
from alignment.stages.base_model import STAGE, BaseModelRequest
from alignment.store import Store

Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"path": "my_modle"}, "my_modle, field 'generate.weak.path': no such model folder; did you mean my_model?"),
        ({"path": "modle.gguf"}, "modle.gguf, field 'generate.weak.path': no such file; did you mean model.gguf?"),
        (
            {"embedded": "micro", "chat_template": "chta.jinja"},
            "chta.jinja, field 'generate.weak.chat_template': no such file; did you mean chat.jinja?",
        ),
    ],
)
def test_what_is_missing_of_a_model_is_told_with_its_field_and_a_similar_name(
    more: dict[str, str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_model").mkdir()
    for name in ("model.gguf", "chat.jinja"):
        Path(name).touch()
    with pytest.raises(BadInput) as refused:
        pin_model(ModelSource(**more), "generate.weak")  # type: ignore[arg-type]
    assert str(refused.value).removeprefix(f"{tmp_path}/") == told


def test_a_folder_is_pinned_by_content_and_written_out_the_same(checkpoint: Make, tmp_path: Path) -> None:
    folder = checkpoint(max_shard_size="4KB")
    (folder / "README.md").write_text("left alone")
    (folder / "optimizer.pt").write_bytes(b"left alone")
    pin = pin_model(ModelSource(path=str(folder)))
    materialise(pin, tmp_path / "out", seed=0)
    assert digest_checkpoint(tmp_path / "out") == digest_checkpoint(folder)
    assert not {"README.md", "optimizer.pt"} & {path.name for path in (tmp_path / "out").iterdir()}


def test_the_pin_of_a_moved_folder_names_the_same_content(checkpoint: Make, tmp_path: Path) -> None:
    folder = checkpoint()
    shutil.copytree(folder, tmp_path / "moved")
    requests = [
        BaseModelRequest(pin=pin_model(ModelSource(path=str(path))), seed=0) for path in (folder, tmp_path / "moved")
    ]
    assert STAGE.key(requests[0]) == STAGE.key(requests[1])


def test_the_seed_is_in_the_key_of_an_embedded_model_only(checkpoint: Make) -> None:
    pins = ModelPin(embedded="micro"), pin_model(ModelSource(path=str(checkpoint())))
    keys = [{STAGE.key(BaseModelRequest(pin=pin, seed=seed)) for seed in (1, 2)} for pin in pins]
    assert [len(both) for both in keys] == [2, 1]


def test_a_file_that_changed_after_it_was_pinned_is_named(checkpoint: Make, tmp_path: Path) -> None:
    folder = checkpoint()
    pin = pin_model(ModelSource(path=str(folder)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(BadInput, match=r"config\.json: has changed since it was pinned"):
        materialise(pin, tmp_path / "out", seed=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no such model folder"),
        (lambda folder: (folder / "config.json").unlink(), r"no config\.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickled weights only"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "adapter_model.safetensors"), "an adapter"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not JSON"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_with_the_reason(
    checkpoint: Make, spoil: Callable[[Path], object], message: str
) -> None:
    folder = checkpoint()
    spoil(folder)
    with pytest.raises(BadInput, match=message):
        pin_model(ModelSource(path=str(folder)))


def test_a_missing_shard_is_named(checkpoint: Make) -> None:
    folder = checkpoint(max_shard_size="4KB")
    victim = sorted(folder.glob("model-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(BadInput, match=victim.name):
        pin_model(ModelSource(path=str(folder)))


def test_a_chat_template_file_is_baked_into_the_artifact(checkpoint: Make, tmp_path: Path) -> None:
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (tmp_path / "plain.jinja").write_text(template)
    source = ModelSource(path=str(checkpoint()), chat_template=str(tmp_path / "plain.jinja"))
    store = Store(str(tmp_path / "store"))
    commit = execute(STAGE, BaseModelRequest(pin=pin_model(source), seed=0), store)
    assert commit.summary["has_chat_template"] is True
    assert load_tokenizer(store.fetch(commit.artifact)).chat_template == template


def test_the_template_given_replaces_the_tokenizers_own(checkpoint: Make, tmp_path: Path) -> None:
    folder = checkpoint()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "own"}))
    materialise(pin_model(ModelSource(path=str(folder), chat_template="{{ 'given' }}")), tmp_path / "out", seed=0)
    assert load_tokenizer(tmp_path / "out").chat_template == "{{ 'given' }}"


def test_the_stage_commits_a_checkpoint_that_loads_and_is_named_by_its_content(
    checkpoint: Make, tmp_path: Path
) -> None:
    folder = checkpoint()
    store = Store(str(tmp_path / "store"))
    commit = execute(STAGE, BaseModelRequest(pin=pin_model(ModelSource(path=str(folder))), seed=0), store)
    digest = digest_checkpoint(folder)
    assert commit.digest == digest.digest
    assert commit.summary["weights_digest"] == digest.weights
    assert load_model(store.fetch(commit.artifact), "float32").config.vocab_size == commit.summary["vocab_size"]


def test_the_embedded_model_is_a_function_of_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        materialise(ModelPin(embedded="micro"), tmp_path / name, seed)
    a, b, c = (digest_checkpoint(tmp_path / name) for name in "abc")
    assert a == b
    assert a.weights != c.weights


def test_a_hub_model_that_cannot_be_reached_is_bad_input() -> None:
    with pytest.raises(BadInput, match="nobody/nothing@main"):
        pin_model(ModelSource(hub="nobody/nothing"))


def test_a_commit_hash_needs_no_look_at_the_hub() -> None:
    pin = pin_model(ModelSource(hub="someone/model", revision="0123456789abcdef" * 2 + "01234567"))
    assert (pin.hub, pin.revision) == ("someone/model", "0123456789abcdef" * 2 + "01234567")


def test_code_on_the_hub_is_fetched_only_where_it_may_run(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[list[str]] = []
    folder = checkpoint()

    def download(name: str, revision: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for runs_code in (False, True):
        source = ModelSource(hub="someone/model", revision="a" * 40, run_code_of_model=runs_code)
        materialise(pin_model(source), tmp_path / str(runs_code), seed=0)
    assert ["*.py" in patterns for patterns in asked] == [False, True]


@pytest.mark.real_data
def test_a_real_checkpoint_is_pinned_and_written_out(real_data: Path, tmp_path: Path) -> None:
    materialise(pin_model(ModelSource(path=str(real_data / "stories260k"))), tmp_path / "out", seed=0)
    assert digest_checkpoint(tmp_path / "out") == digest_checkpoint(real_data / "stories260k")
