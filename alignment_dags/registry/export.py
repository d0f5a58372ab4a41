"""Export of a registered checkpoint: a folder with the files that `transformers` loads, and no others."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment.errors import BadInput, counted
from alignment.models.checkpoint import ADAPTER_FOLDER, has_chat_template
from alignment.models.pin import checkpoint_names
from alignment.stages.stage import PolicySummary
from alignment.store import Commit, CorruptArtifact, Store
from alignment.store.place import explain_no_space
from alignment_dags.registry.cards import card_for
from alignment_dags.registry.registrations import name_and_version, registration_of
from assets.card import CARD_FILE
from assets.registration import RegistrationSummary
from resources.store import ArtifactStore

BLOCK = 1 << 22
Say = Callable[[str], None]


def export(model: str, to: Path, say: Say, adapter: bool = False) -> dict[str, Any]:
    """Copies the checkpoint of MODEL[@champion|@VERSION] into `to`, each file verified by its committed sha256; with
    `adapter` the adapter that was kept beside it, alone.

    The model's card (README.md) is written beside them. All are copied to a hidden folder beside `to`, which is renamed
    when it is complete: an interrupted export leaves nothing at `to`. Returns `model`, `version`, `digest`, `path`,
    `files` {name: {sha256, size}}, `bytes`, `card` and what is `unknown` to it, `withdrawn_since` (in a line, what it
    learned that was withdrawn since; or None), and `adapter` {base, revision, base_digest, rank, alpha, parameters}
    where that was asked for. Raises `BadInput` for a folder that cannot be used
    or a policy without an adapter, `ErasedArtifact` if the weights were erased.
    """
    store = ArtifactStore().open()
    version, policy = checkpoint_of(store, model)
    folder = _free(to)
    kept = PolicySummary.of(policy).adapter if adapter else None
    if adapter and kept is None:
        raise BadInput(f"{model} has no adapter: train it with lora.keep_adapter", field="--adapter")
    lead = f"{ADAPTER_FOLDER}/" if adapter else ""
    names = [name for name in policy.files if name.startswith(lead)] if adapter else checkpoint_names(policy.files)
    files = {name.removeprefix(lead): policy.files[name] for name in names}
    size = sum(file.size for file in files.values())
    card = card_for(store, model, adapter)
    say(f"copying {counted(len(files), 'file')}, {size / 2**20:,.1f} MiB")
    arriving = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        with _explain_folder(to):
            arriving.mkdir(parents=True)
        with explain_no_space(str(folder.parent)):
            for name in files:
                _copy(store, policy, f"{lead}{name}", arriving / name)
            (arriving / CARD_FILE).write_text(card.text, encoding="utf-8")
        with _explain_folder(to):
            arriving.rename(folder)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return {
        "model": name_and_version(model)[0],
        "version": version,
        "digest": policy.digest,
        "path": str(folder),
        "files": {name: file.model_dump() for name, file in files.items()},
        "bytes": size,
        "card": CARD_FILE,
        "unknown": card.unknown,
        "withdrawn_since": card.about["withdrawn_since"],
        **({} if kept is None else {"adapter": kept.model_dump()}),
    }


def local_path(model: str, say: Say) -> dict[str, Any]:
    """The local folder of a checkpoint: in a local store, or in the cache, where it is downloaded first."""
    store = ArtifactStore().open()
    version, policy = checkpoint_of(store, model)
    if not store.is_local:
        size = sum(file.size for file in policy.files.values())
        say(f"{size / 2**20:,.1f} MiB, from {store.uri(policy.artifact)} unless the cache has them")
    folder = store.fetch(policy.artifact)
    return {
        "model": name_and_version(model)[0],
        "version": version,
        "digest": policy.digest,
        "path": str(folder),
    }


def checkpoint_of(store: Store, model: str) -> tuple[str, Commit]:
    """The version that MODEL[@champion|@VERSION] is, and the commit of its policy with all files."""
    registration = registration_of(store, *name_and_version(model))
    _, version = RegistrationSummary.of(registration).model_version
    return version, store.intact_commit(registration.inputs["policy"])


def _free(to: Path) -> Path:
    folder = to.expanduser().resolve()
    if folder.is_dir():
        if any(folder.iterdir()):
            raise BadInput("is not empty: name a folder that does not exist yet", file=str(to), field="--to")
    elif folder.exists():
        raise BadInput("is a file: name a folder that does not exist yet", file=str(to), field="--to")
    return folder


@contextmanager
def _explain_folder(to: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(f"cannot be created: {error.strerror or error}", file=str(to), field="--to") from error


def _copy(store: Store, policy: Commit, name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    sha = hashlib.sha256()
    with store.open(policy.artifact, name, verified=False) as source, target.open("wb") as copy:
        while block := source.read(BLOCK):
            sha.update(block)
            copy.write(block)
        copy.flush()
        os.fsync(copy.fileno())  # a power cut must not leave the folder without its bytes
    if sha.hexdigest() != policy.files[name].sha256:
        raise CorruptArtifact(
            f"{store.uri(policy.artifact)}/{name}: differs from its committed sha256; nothing was exported"
        )


def show_exported(result: dict[str, Any]) -> None:
    """Prints where the checkpoint is, and how to load it."""
    from alignment_dags.cli.output import place

    folder = place(result["path"])
    print(f"{result['model']} version {result['version']}: {folder}")
    if result["withdrawn_since"]:
        print(result["withdrawn_since"])
    if adapter := result.get("adapter"):
        revision = f" at {adapter['revision']}" if adapter["revision"] else ""
        bits = f" in {adapter['quantise']}" if adapter.get("quantise") else ""
        print(
            f"an adapter of rank {adapter['rank']} for {adapter['base']}{revision}; load that model{bits},"
            " and on top of it:"
        )
        print("  from peft import PeftModel")
        print(f"  model = PeftModel.from_pretrained(base, {folder!r})")
        return
    if result["unknown"]:
        print(f"its card, {result['card']}, does not know: {'; '.join(result['unknown'])}")
        if any("licence" in one for one in result["unknown"]):
            print("  (`license:` beside the model and each source in the recipe names a licence)")
    print("load it with transformers:")
    print("  from transformers import pipeline")
    print(f"  answer = pipeline('text-generation', model={folder!r})")
    if has_chat_template(Path(result["path"])):
        print("  print(answer([{'role': 'user', 'content': '…'}]))")
    else:  # a conversation would be refused
        print("  print(answer('…'))")
