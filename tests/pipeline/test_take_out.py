"""A registered model is of use outside: MLflow loads and downloads it, and `align export` and `align path` give it."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from alignment.digest import file_sha256
from alignment.errors import BadInput, CorruptArtifact, ErasedArtifact
from alignment.models.pin import checkpoint_files
from alignment.recipe import Recipe, load_recipe
from alignment.store import Commit, Store
from alignment_dags.registry.export import export, local_path
from alignment_dags.registry.promote import Promotion, promote
from alignment_dags.retention.collect import collect
from assets.building.factory import asset_key, asset_resources, build_asset
from assets.building.upstream import Upstream
from assets.graph import nodes_of
from resources.mlflow import Tracking
from resources.pools import load_pools

CHAMPION = "models:/small@champion"
PASSES = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}}
Write = Callable[[float], Path]


@pytest.fixture
def write(small_recipe: dict[str, Any], tmp_path: Path) -> Write:
    """Writes the small recipe with a gate that passes; another `beta` gives another policy."""

    def write(beta: float) -> Path:
        path = tmp_path / "recipe.yaml"
        data = small_recipe | {"dpo": small_recipe["dpo"] | {"beta": beta}, "gate": PASSES}
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return path

    return write


def registered_model_alone(recipe: Recipe) -> str:
    assets = [build_asset(node, recipe, load_pools()) for node in nodes_of(recipe, load_pools())]
    with dg.DagsterInstance.get() as instance:
        return dg.materialize(
            assets,
            instance=instance,
            resources=asset_resources(),
            selection=[asset_key("small", "registered_model")],
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        ).run_id


def downloaded(folder: Path) -> dict[str, str]:
    """What MLflow downloads of the champion: the checkpoint's files and their sha256."""
    import mlflow

    Tracking().client()
    folder.mkdir()
    mlflow.artifacts.download_artifacts(CHAMPION, dst_path=str(folder))
    return {path.name: file_sha256(path)[0] for path in (folder / "model").iterdir()}


def committed(policy: Commit, folder: Path) -> dict[str, str]:
    """The checkpoint's files in the store, by its commit record."""
    return {path.name: policy.files[path.name].sha256 for path in checkpoint_files(folder)}


def policy_of(made: Upstream) -> Commit:
    return made.store.commit_of(made("policy_checkpoint"))


def files_of(version: str) -> Path:
    """Where MLflow keeps a version's files."""
    client = Tracking().client()
    model_id = client.get_model_version("small", version).source.removeprefix("models:/")
    return Path(client.get_logged_model(model_id).artifact_location.removeprefix("file://"))


@pytest.fixture(params=["local", "s3"])
def champion(write: Write, request: pytest.FixtureRequest) -> Upstream:
    """The first policy, registered, in a store of either kind."""
    recipe = load_recipe(write(0.1))
    if request.param == "local":
        made: Upstream = request.getfixturevalue("finished")(recipe)
        return made
    place = f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    request.getfixturevalue("monkeypatch").setenv("ALIGN_STORE", place)
    made = request.getfixturevalue("bring_up_to_date")(recipe)
    return made


def test_mlflow_loads_answers_with_and_downloads_the_champion(champion: Upstream, tmp_path: Path) -> None:
    import mlflow
    import torch

    from alignment.models.checkpoint import load_model, load_tokenizer

    made = champion
    policy = policy_of(made)
    folder = made.store.fetch(policy.artifact)

    assert downloaded(tmp_path / "downloaded") == committed(policy, folder)
    assert (folder / "model.safetensors").samefile(files_of("1") / "model" / "model.safetensors"), "no second copy"
    model, tokenizer = load_model(folder, "float32"), load_tokenizer(folder)
    loaded = mlflow.transformers.load_model(CHAMPION, return_type="components")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded["model"].state_dict()[name], tensor), name
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name {1}"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**chat, max_new_tokens=8, do_sample=False)[0, chat["input_ids"].shape[1] :]
    answered = mlflow.pyfunc.load_model(CHAMPION).predict("Name {1}", params={"max_new_tokens": 8})
    assert answered == [tokenizer.decode(ids, skip_special_tokens=True)], "through the chat template, greedily"
    pipeline = mlflow.transformers.load_model(CHAMPION)
    assert pipeline([{"role": "user", "content": "Name 1"}], max_new_tokens=1)
    assert policy_of(made) == policy, "the artifact is as it was"
    assert made.store.fetch(policy.artifact, deep=True)


@pytest.mark.parametrize("left", ["nothing", "a copy that was cut short"])
def test_a_version_that_was_registered_without_files_is_repaired(
    left: str, write: Write, finished: Callable[..., Upstream], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = "alignment_dags.registry.promote._carry_out"
    monkeypatch.setattr(alone, lambda workspace, *_: registered_model_alone(workspace.recipe))
    path = write(0.1)
    made = finished(load_recipe(path))
    wanted = committed(policy_of(made), made.store.fetch(made("policy_checkpoint")))

    def lose() -> None:
        if left == "nothing":
            shutil.rmtree(files_of("1"))
        else:
            (files_of("1") / "MLmodel").unlink()
            (files_of("1") / "model" / "config.json").unlink()

    lose()
    registered_model_alone(load_recipe(path))
    assert downloaded(tmp_path / "materialized") == wanted
    lose()
    promote(Promotion("small", to="1", recipe=path), print)
    assert downloaded(tmp_path / "promoted") == wanted
    assert len(Tracking().client().search_model_versions("name = 'small'")) == 1


def test_where_mlflow_keeps_its_files_on_s3_they_are_copied_there_and_erased_with_the_weights(
    write: Write, bring_up_to_date: Callable[..., Upstream], s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.core import url_to_fs
    from fsspec.utils import get_protocol

    fs, root = url_to_fs(f"{s3}/mlflow")
    assert get_protocol(s3) == "s3"
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", fs.endpoint_url or fs.client_kwargs["endpoint_url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    Tracking().client().create_experiment("small", artifact_location=f"{s3}/mlflow")
    first = policy_of(bring_up_to_date(load_recipe(write(0.1))))
    made = bring_up_to_date(load_recipe(write(0.9)))
    policy = policy_of(made)
    wanted = committed(policy, made.store.fetch(policy.artifact))

    def weights() -> list[str]:
        return [path for path in fs.find(root) if path.endswith("model.safetensors")]

    assert downloaded(tmp_path / "downloaded") == wanted
    assert len(weights()) == 2
    collect([], keep=0)
    assert len(weights()) == 1
    assert downloaded(tmp_path / "kept") == wanted
    tags = Tracking().client().get_model_version("small", "1").tags
    assert tags["align.policy_digest"] == first.digest
    assert tags["align.erased"].startswith("erased on ")
    assert collect([], keep=0)["kept"] == []


def test_an_erased_policy_that_is_made_again_is_there_again(
    write: Write, finished: Callable[..., Upstream], bring_up_to_date: Callable[..., Upstream], tmp_path: Path
) -> None:
    made = finished(load_recipe(write(0.1)))
    wanted = committed(policy_of(made), made.store.fetch(made("policy_checkpoint")))
    bring_up_to_date(load_recipe(write(0.9)))
    collect([], keep=0)
    assert not files_of("1").exists()
    with pytest.raises(ErasedArtifact, match=r"erased on .*: not among the last 0 policies of small"):
        export("small@1", tmp_path / "gone", print)
    again = bring_up_to_date(load_recipe(write(0.1)))
    assert again("policy_checkpoint").digest == made("policy_checkpoint").digest
    assert downloaded(tmp_path / "again") == wanted
    assert "align.erased" not in Tracking().client().get_model_version("small", "1").tags


def test_export_copies_what_was_committed_or_nothing(
    champion: Upstream,
    align: Callable[..., tuple[int, dict[str, Any], str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = champion
    policy, store = policy_of(made), made.store
    wanted = committed(policy, store.fetch(policy.artifact))
    places = tmp_path / "places"

    to = places / "empty"
    to.mkdir(parents=True)
    code, told, error = align("export", "small@champion", "--to", str(to))
    assert code == 0, error
    assert {path.name: file_sha256(path)[0] for path in to.iterdir() if path.name != "README.md"} == wanted
    assert told["card"] == "README.md" and (to / "README.md").read_text(encoding="utf-8").startswith("---\nlicense: ")
    assert (told["version"], told["path"]) == ("1", str(to))
    assert {name: file["sha256"] for name, file in told["files"].items()} == wanted
    assert json.loads((to / "config.json").read_text())["model_type"] == "llama"
    for used, why in ((to, "is not empty"), (to / "config.json", "is a file")):
        with pytest.raises(BadInput, match=why):
            export("small", used, print)
    for model, why in (("small@2", "no version '2'; versions: 1"), ("large", "no registered model 'large'")):
        with pytest.raises(BadInput, match=why):
            export(model, places / "none", print)

    shutil.rmtree(store.cache, ignore_errors=True)
    code, told, error = align("path", "small@1")
    assert code == 0, error
    assert told["path"] == str(store.fetch(policy.artifact))
    assert committed(policy, Path(local_path("small", print)["path"])) == wanted

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "open", killed)
        export("small", places / "cut", print)
    weights = f"{store.path(policy.kind, policy.key, policy.attempt)}/model.safetensors"
    data = bytearray(store.fs.cat_file(weights))
    data[-1] ^= 1
    store.fs.pipe_file(weights, bytes(data))
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors: differs from its committed sha256"):
        export("small", places / "corrupt", print)
    assert [path.name for path in places.iterdir()] == ["empty"], "nothing is left of what failed"
