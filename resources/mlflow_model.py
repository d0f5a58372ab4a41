"""A registered checkpoint as an MLflow model, which `mlflow.transformers` and `mlflow.pyfunc` load by its name.

The files lie where MLflow keeps the files of the version's logged model, so users of MLflow need no access to our
store. On one file system the weights are hard links to the store's files and take no space; otherwise they are copied.
`MLmodel` is written last. A copy without it was interrupted and is made again.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import yaml

from alignment.data.templates import ChatTemplate
from alignment.models.checkpoint import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    TOKENIZER_FILES,
    has_chat_template,
    load_tokenizer,
    max_positions,
    read_config,
)
from alignment.models.pin import checkpoint_files
from alignment.stages.stage import CheckpointSummary
from alignment.store import Commit

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import Model

MLMODEL = "MLmodel"
WEIGHTS, TOKENIZER = "model", Path("components", "tokenizer")  # where mlflow.transformers looks
EXTERNAL_TAG = "mlflow.model.isExternal"
PACKAGES = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "accelerate")
UPLOAD_SECONDS = 1800
MAX_NEW_TOKENS = 256
"""Most new tokens of an answer, unless `predict` gets `params={"max_new_tokens": …}`."""


def is_published(client: MlflowClient, model_id: str) -> bool:
    """Whether the logged model has all its files."""
    return any(file.path == MLMODEL for file in client.list_logged_model_artifacts(model_id))


def publish(client: MlflowClient, model_id: str, checkpoint: Path, policy: Commit) -> None:
    """Adds the checkpoint's files, and the files that MLflow needs to load them, to the logged model.

    `checkpoint` is a local folder with the files of `policy`. Safe to repeat.
    """
    logged = client.get_logged_model(model_id)
    target = local_folder(logged.artifact_location)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "files")
        (folder / TOKENIZER).mkdir(parents=True)
        (folder / WEIGHTS).mkdir()
        for path in checkpoint_files(checkpoint, CheckpointSummary.of(policy).may_run_code):
            if target is None:
                (folder / WEIGHTS / path.name).symlink_to(path)  # an upload follows it
            else:
                link(path, target / WEIGHTS / path.name)
        for name in (CONFIG_FILE, *TOKENIZER_FILES):
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, folder / TOKENIZER / name)
        model = describe(logged, checkpoint, policy)
        _write_environment(folder)
        model.save(str(Path(made, MLMODEL)))
        with _time_to_upload():
            client.log_model_artifacts(model_id, str(folder))
            client.log_model_artifact(model_id, str(Path(made, MLMODEL)))
    if EXTERNAL_TAG in logged.tags:
        client.delete_logged_model_tag(model_id, EXTERNAL_TAG)


@contextmanager
def _time_to_upload() -> Iterator[None]:
    """Raises MLflow's request timeout meanwhile: a server may store a file of many GiB before it answers."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name)
    os.environ[name] = str(max(UPLOAD_SECONDS, int(before or 0)))
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def unpublish(client: MlflowClient, model_id: str) -> None:
    """Removes the files; the version and its record stay."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if not client.list_logged_model_artifacts(model_id):
        return
    location = client.get_logged_model(model_id).artifact_location
    get_artifact_repository(location, tracking_uri=client.tracking_uri).delete_artifacts()  # type: ignore[no-untyped-call]


def local_folder(location: str) -> Path | None:
    """The local folder of an artifact location; None if the location is not on this machine's file system."""
    parts = urlsplit(location)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path) if parts.scheme else location)


def link(source: Path, target: Path) -> None:
    """Makes `target` a hard link to `source`; where links are impossible, a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    arriving = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        try:
            os.link(source, arriving)
        except OSError:
            shutil.copyfile(source, arriving)
        arriving.replace(target)
    finally:
        arriving.unlink(
            missing_ok=True
        )  # if both names are links to one file, `replace` does nothing and leaves this name


def describe(logged: LoggedModel, checkpoint: Path, policy: Commit) -> Model:
    """The content of `MLmodel`: a text generation pipeline; pyfunc takes a text and returns the answer as text."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec("string")])
    room, generation = max_positions(checkpoint), _generation(checkpoint)
    params = ParamSchema(
        [
            ParamSpec("max_new_tokens", "long", MAX_NEW_TOKENS if room is None else min(MAX_NEW_TOKENS, room // 2)),
            # without a setting the pipeline would sample at 0.7; evaluations are greedy, so this is greedy too
            ParamSpec("do_sample", "boolean", bool(generation.get("do_sample"))),
            ParamSpec("temperature", "double", float(generation.get("temperature") or 1.0)),
        ]
    )
    template = prompt_template(checkpoint, CheckpointSummary.of(policy).may_run_code)
    model = Model(
        artifact_path=logged.artifact_location,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
        run_id=logged.source_run_id,
        signature=ModelSignature(inputs=text, outputs=text, params=params),
        metadata={"align.policy_digest": policy.digest} | ({} if template is None else {"prompt_template": template}),
    )
    model.add_flavor(
        "transformers",
        transformers_version=version("transformers"),
        code=None,
        task="text-generation",
        instance_type="TextGenerationPipeline",
        pipeline_model_type="AutoModelForCausalLM",  # as evaluations load it
        source_model_name=f"{policy.environment.get('recipe', policy.kind)}-{policy.digest[:12]}",
        model_binary=WEIGHTS,
        torch_dtype=f"torch.{_dtype(checkpoint)}",
        components=["tokenizer"],
        tokenizer_type="AutoTokenizer",
    )
    pyfunc.add_to_model(
        model,
        loader_module="mlflow.transformers",
        conda_env="conda.yaml",
        python_env="python_env.yaml",
        model_config={"return_full_text": False},
    )
    model.model_size_bytes = sum(
        path.stat().st_size for path in checkpoint_files(checkpoint, CheckpointSummary.of(policy).may_run_code)
    )
    return model


def prompt_template(checkpoint: Path, runs_code: bool = False) -> str | None:
    """The chat template around one user message, in MLflow's form: `{prompt}` stands for the message.

    The template's BOS is left out if the tokenizer adds a BOS by itself. None if the model has no chat template, or if
    the template changes the message.
    """
    if not has_chat_template(checkpoint):
        return None
    tokenizer = load_tokenizer(checkpoint, runs_code)
    mark = "MESSAGE"
    message = [{"role": "user", "content": mark}]
    dated = ChatTemplate(tokenizer).text  # with the day of training, where it asks for the day
    text = str(tokenizer.apply_chat_template(message, chat_template=dated, tokenize=False, add_generation_prompt=True))
    bos = tokenizer.bos_token
    if isinstance(bos, str) and text.startswith(bos) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(bos)
    if text.count(mark) != 1:
        return None
    return text.replace("{", "{{").replace("}", "}}").replace(mark, "{prompt}")


def _generation(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / GENERATION_CONFIG_FILE
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return settings


def _dtype(checkpoint: Path) -> str:
    config: dict[str, Any] = read_config(checkpoint)
    return str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")


def _write_environment(folder: Path) -> None:
    """The packages that are needed to load the model, in the three forms that MLflow's servers read."""
    packages = [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]
    python = platform.python_version()
    plain = {"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    depends = [f"python={python}", "pip", {"pip": packages}]
    conda = {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": depends}
    (folder / "requirements.txt").write_text("\n".join(packages) + "\n", encoding="utf-8")
    (folder / "python_env.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    (folder / "conda.yaml").write_text(yaml.safe_dump(conda), encoding="utf-8")
