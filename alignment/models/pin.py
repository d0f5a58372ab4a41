"""Pinning a model: from where a person says it is to exactly which bytes, and from those to a folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar

import fsspec

from alignment.data.embedded import embedded
from alignment.data.hub import HubUnreachable, ask_hub, asking_hub
from alignment.errors import BadInput, named_in, no_such
from alignment.models.checkpoint import (
    CHAT_TEMPLATE_FILE,
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    json_of,
    read_config,
)
from alignment.models.code import CODE_FILES, refuse_code, refuse_kernels, require_own_code
from alignment.models.gguf import check_gguf, dequantise, is_gguf, write_tokenizer
from alignment.models.weights import INDEX_FILE, SINGLE_FILE, tensors, weight_files
from alignment.recipe.data import ModelSource
from alignment.stages.stage import Request, SourceFile

HUB_PATTERNS = ["*.safetensors", INDEX_FILE, CONFIG_FILE, GENERATION_CONFIG_FILE, *TOKENIZER_FILES]
FULL_COMMIT = 40
BLOCK = 1 << 22


class ModelPin(Request):
    """One model, pinned: a hub commit, a list of files by content, or an embedded model's name."""

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"runs_code"})

    hub: str | None = None
    revision: str | None = None
    """Commit hash on the hub."""
    files: list[SourceFile] | None = None
    """The folder's files, sorted by name."""
    embedded: str | None = None
    chat_template: str | None = None
    """The template's text, which replaces the tokenizer's own."""
    runs_code: bool = False
    """The model's own Python files come along, and may run: the recipe says so."""

    def told(self) -> dict[str, Any]:
        """Where the model came from, for records that people read."""
        if self.hub is not None:
            return {"hub": self.hub, "revision": self.revision}
        if self.embedded is not None:
            return {"embedded": self.embedded}
        files = self.files or []
        return {"path": files[0].url.rsplit("/", 1)[0], "files": len(files)} if files else {}


def pin_model(source: ModelSource, field: str = "base_model") -> ModelPin:
    """What a recipe's model source stands for now. Reads every byte of a local folder or GGUF file; downloads nothing.

    Raises `BadInput` for a folder or hub id that holds no usable model; `field` is the recipe's that names the model.
    """
    template = chat_template_text(source.chat_template, f"{field}.chat_template")
    runs_code = source.run_code_of_model
    if source.embedded is not None:
        return ModelPin(embedded=source.embedded, chat_template=template)
    if source.hub is not None:
        commit = _hub_commit(source.hub, source.revision, f"{field}.hub")
        return ModelPin(hub=source.hub, revision=commit, chat_template=template, runs_code=runs_code)
    from alignment.data.files import pin_file

    assert source.path is not None
    path, is_file = Path(source.path).expanduser().resolve(), is_gguf(source.path)
    with named_in(f"{field}.path"):
        check_gguf(path) if is_file else weight_files(path)
    # an error inside a file of the model names that file alone
    files = [pin_file(str(file)) for file in ([path] if is_file else checkpoint_files(path, runs_code))]
    return ModelPin(files=files, chat_template=template, runs_code=runs_code and not is_file)


def chat_template_text(given: str | None, field: str = "chat_template") -> str | None:
    """A template given as text, or read from a path that ends in .jinja; errors name the field that gives it."""
    if given is None or not given.endswith(".jinja"):
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(no_such("file", given), file=given, field=field) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the chat template cannot be read: {error}", file=given, field=field) from error


def checkpoint_files(folder: Path, runs_code: bool = False) -> list[Path]:
    """The files of a local folder that make up the model, sorted by name; others are left alone.

    Raises `BadInput` for a folder that holds no usable model, and for one that cannot be loaded without its own code
    unless `runs_code`; then that code is among the files.
    """
    folder = folder.expanduser().resolve()
    weights = weight_files(folder)
    tensors(folder)  # a damaged file is named here, before anything is built on a copy of it
    refuse_kernels(read_config(folder), str(folder / CONFIG_FILE))
    if runs_code:
        require_own_code(folder)
    else:
        refuse_code(folder)
    index = [folder / INDEX_FILE] if weights[0].name != SINGLE_FILE else []
    small = [folder / name for name in (CONFIG_FILE, GENERATION_CONFIG_FILE, *TOKENIZER_FILES)]
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise BadInput(f"no tokenizer here (expected one of {', '.join(VOCABULARY_FILES)})", file=str(folder))
    code = folder.glob(CODE_FILES) if runs_code else ()
    return sorted([*weights, *index, *(path for path in small if path.is_file()), *code], key=lambda path: path.name)


def checkpoint_names(names: Iterable[str]) -> list[str]:
    """Those of an artifact's files that make up the model, code of its own included where it may run: a checkpoint
    holds none else. What lies in a folder, as a kept adapter does, is not part of the model."""
    patterns = (*HUB_PATTERNS, CODE_FILES)
    return sorted(name for name in names if "/" not in name and any(fnmatch(name, pattern) for pattern in patterns))


def materialise(pin: ModelPin, out: Path, seed: int) -> None:
    """Writes the pinned model into `out` as a complete checkpoint folder; `seed` is the embedded model's.

    Raises `BadInput` when a file no longer holds what was pinned.
    """
    out.mkdir(parents=True, exist_ok=True)
    if pin.embedded is not None:
        embedded(pin.embedded).build_model(out, seed)
    elif pin.hub is not None:
        _download(pin, out)
    elif pin.files and is_gguf(pin.files[0].url):
        with tempfile.TemporaryDirectory(prefix="align-gguf-") as scratch:
            _copy(pin.files[0], copy := Path(scratch) / pin.files[0].url.rsplit("/", 1)[-1])
            dequantise(copy, out)
    else:
        for file in pin.files or []:
            _copy(file, out / file.url.rsplit("/", 1)[-1])
    weight_files(out)
    if pin.chat_template is not None:
        bake_chat_template(out, pin.chat_template)


def bake_chat_template(folder: Path, template: str) -> None:
    """Makes `template` the folder's only chat template."""
    (folder / CHAT_TEMPLATE_FILE).write_text(template, encoding="utf-8")
    path = folder / "tokenizer_config.json"
    if path.is_file():
        config = json_of(path, path.read_bytes())
        if not isinstance(config, dict):
            raise BadInput("a tokenizer's configuration is a JSON object", file=str(path))
        if config.pop("chat_template", None) is not None:
            path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy(file: SourceFile, target: Path) -> None:
    sha = hashlib.sha256()
    try:
        with fsspec.open(file.url, "rb") as source, target.open("wb") as copy:
            while block := source.read(BLOCK):
                sha.update(block)
                copy.write(block)
    except FileNotFoundError:
        raise BadInput("is gone since it was pinned", file=file.url) from None
    if sha.hexdigest() != file.sha256:
        raise BadInput("has changed since it was pinned: pin the model again", file=file.url)


def _hub_commit(name: str, revision: str | None, field: str) -> str:
    if revision is not None and len(revision) == FULL_COMMIT and all(c in "0123456789abcdef" for c in revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    where = f"{name}@{revision or 'main'}"
    try:
        commit = ask_hub(where, lambda: HfApi().model_info(name, revision=revision).sha)
    except HubUnreachable:
        raise
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise BadInput(f"{where} cannot be found on the hub: {error}".splitlines()[0], field=field) from error
    if not commit:
        raise BadInput(f"{where}: the hub names no commit", field=field)
    return commit


def hub_config(name: str, revision: str | None) -> dict[str, Any]:
    """config.json of a model on the hub: from the hub's cache on this machine, else asked for.

    Raises `HubUnreachable`, or `BadInput` where the hub does not give it.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    where = f"{name}@{revision or 'main'}"
    try:
        cached = try_to_load_from_cache(name, CONFIG_FILE, revision=revision)
        if not isinstance(cached, str):
            cached = ask_hub(where, lambda: hf_hub_download(name, CONFIG_FILE, revision=revision))
    except HubUnreachable:
        raise
    except LocalEntryNotFoundError as error:  # the hub's client says so of any silence
        raise HubUnreachable(f"{where} on the hub: {error}".splitlines()[0]) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise BadInput(f"{where} on the hub gives no {CONFIG_FILE}: {error}".splitlines()[0]) from error
    return read_config(Path(cached).parent)


def fetch_tokenizer(source: ModelSource, scratch: Path) -> Path:
    """A folder with a model's configuration and tokenizer, for which no weights are fetched: its own, or one in
    `scratch`.

    Raises `BadInput` where there is none.
    """
    if source.path is not None and is_gguf(source.path):
        write_tokenizer(Path(source.path).expanduser(), scratch)
        return scratch
    if source.path is not None:
        if not Path(source.path).is_dir():
            raise BadInput(no_such("folder", source.path), file=source.path)
        return Path(source.path)
    if source.embedded is not None:
        embedded(source.embedded).build_model(scratch, 0)
        return scratch
    pin = ModelPin(hub=source.hub, revision=source.revision)
    return _snapshot(pin, [CONFIG_FILE, GENERATION_CONFIG_FILE, *TOKENIZER_FILES])


def _download(pin: ModelPin, out: Path) -> None:
    snapshot = _snapshot(pin, [*HUB_PATTERNS, CODE_FILES] if pin.runs_code else HUB_PATTERNS)
    for path in checkpoint_files(snapshot, pin.runs_code):
        shutil.copyfile(path, out / path.name)


def _snapshot(pin: ModelPin, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, revision = str(pin.hub), pin.revision
    try:
        with asking_hub(f"{name}@{revision}"):
            return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except HubUnreachable:
        raise
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BadInput(f"{name}@{revision} cannot be fetched: {error}".splitlines()[0]) from error
