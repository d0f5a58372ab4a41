"""Publishing a registered model: into a folder, or to a repository on the Hugging Face Hub.

It is safe to repeat. A folder gets each version once, complete or not at all; a repository gets one commit with all
files, and none if it holds them already. What the gate did not pass stays inside, unless the recipe says otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.errors import BadInput, first_few
from alignment.models.pin import checkpoint_files
from alignment.recipe.places import Publish
from alignment.stages.stage import CheckpointSummary
from alignment.store import Commit, Store
from assets.card import CARD_FILE, Card, card_of
from assets.registration import RegistrationSummary
from eval.stages.evaluation_report import ReportSummary

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LINK = "champion"
DIGEST_FILE = "alignment-dags.json"
"""Says which checkpoint a published folder or commit holds."""
KEPT = frozenset({".gitattributes", "LICENSE", "LICENSE.txt", "NOTICE"})
"""Files of a repository that a new version does not remove."""


@dataclass(frozen=True)
class Published:
    """Where a version is; `done` is False if it was there already. `withheld` says why it was not published at all."""

    place: str | None
    done: bool
    withheld: str | None = None
    unknown: tuple[str, ...] = ()


def publish_model(
    store: Store, registration: Commit, settings: Publish, recipe: Mapping[str, Any] | None = None
) -> Published:
    """Publishes the version of a registration, if the gate passed it or the settings say that an override is enough.

    `recipe` is the recipe as it is written now, for the card. Raises `BadInput` for a folder or repository that cannot
    be used, and for a public repository while licences are unknown; errors of the hub are raised as they are.
    """
    if (why := withheld(store, registration)) is not None and not settings.even_if_overridden:
        return Published(None, False, f"{why}; publish.even_if_overridden: true publishes it all the same")
    card = card_of(store, registration, recipe)
    if settings.hub is None:
        return _to_folder(store, registration, Path(str(settings.folder)).expanduser().resolve(), card)
    if not settings.private and card.licences:
        problem = f"a public model needs to be known by its {first_few(card.licences)}: give `license` to each in the"
        raise BadInput(f"{problem} recipe, or keep it private", field="publish.private")
    return _to_hub(store, registration, settings, card)


def withheld(store: Store, registration: Commit) -> str | None:
    """Why a version is not published by itself; None if the gate passed it.

    A return to an earlier version is judged by that version's own report: it passed the gate, or it did not.
    """
    decision = RegistrationSummary.of(registration).decision
    if decision is not None and decision.kind == "override":
        return "it was promoted despite the gate"
    verdict = ReportSummary.of(store.commit_of(registration.inputs["report"])).verdict
    return None if verdict == "pass" else f"the gate said {verdict} of it"


def _texts(registration: Commit, card: Card) -> dict[str, str]:
    """The texts beside the checkpoint's files, by name."""
    model, version = RegistrationSummary.of(registration).model_version
    mark = {"model": model, "version": version, "digest": registration.inputs["policy"].digest}
    return {CARD_FILE: card.text, DIGEST_FILE: json.dumps(mark, ensure_ascii=False) + "\n"}


def _files(store: Store, registration: Commit) -> list[Path]:
    """The checkpoint's files, each hashed again."""
    policy = store.commit_of(registration.inputs["policy"])
    folder = store.fetch(policy.artifact, deep=True)
    return list(checkpoint_files(folder, CheckpointSummary.of(policy).may_run_code))


def _to_folder(store: Store, registration: Commit, folder: Path, card: Card) -> Published:
    _, version = RegistrationSummary.of(registration).model_version
    target, texts = folder / version, _texts(registration, card)
    done = not target.exists()
    try:
        if done:
            arriving = folder / f".{version}-{uuid.uuid4().hex[:8]}"
            try:
                arriving.mkdir(parents=True)
                for file in _files(store, registration):
                    shutil.copyfile(file, arriving / file.name)
                for name, text in texts.items():
                    (arriving / name).write_text(text, encoding="utf-8")
                arriving.rename(target)
            finally:
                shutil.rmtree(arriving, ignore_errors=True)
        else:
            _check_same(target, texts[DIGEST_FILE])
            if (target / CARD_FILE).read_text(encoding="utf-8") != card.text:  # a licence was given since
                (target / CARD_FILE).write_text(card.text, encoding="utf-8")
                done = True
        done |= _point_to(folder / LINK, version)
    except OSError as error:
        problem = f"cannot be published to: {error.strerror or error}"
        raise BadInput(problem, file=str(folder), field="publish.folder") from error
    return Published(str(target), done, unknown=tuple(card.unknown))


def _check_same(target: Path, wanted: str) -> None:
    mark = target / DIGEST_FILE
    if not mark.is_file() or mark.read_text(encoding="utf-8") != wanted:
        raise BadInput(
            "holds something else: move it away, or name another folder", file=str(target), field="publish.folder"
        )


def _point_to(link: Path, version: str) -> bool:
    """Makes the link lead to a version; returns False if it did already. A server that follows it finds the one or the
    other, and never none."""
    if link.is_symlink() and str(link.readlink()) == version:
        return False
    if link.exists() and not link.is_symlink():
        raise BadInput("is no link: move it away, or name another folder", file=str(link), field="publish.folder")
    arriving = link.with_name(f".{link.name}-{uuid.uuid4().hex[:8]}")
    arriving.symlink_to(version)
    arriving.replace(link)
    return True


def hub_api(settings: Publish) -> HfApi:
    """A client of the hub with the recipe's token; without one, with that of `hf auth login`."""
    from huggingface_hub import HfApi

    return HfApi(token=os.environ.get(settings.token_env) or None)


def _to_hub(store: Store, registration: Commit, settings: Publish, card: Card) -> Published:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    repository, api, texts = str(settings.hub), hub_api(settings), _texts(registration, card)
    _own_repository(api, repository, settings.private)
    state = api.model_info(repository)
    there = {file.rfilename for file in state.siblings or ()}

    def holds(name: str) -> bool:
        if name not in there:
            return False
        path = api.hf_hub_download(repository, name, revision=state.sha)
        return Path(path).read_text(encoding="utf-8") == texts[name]

    changed = [name for name in texts if not holds(name)]
    operations: list[Any] = [CommitOperationAdd(name, texts[name].encode()) for name in changed]
    if DIGEST_FILE in changed:  # else a card whose licences were given since
        files = _files(store, registration)
        operations += [CommitOperationAdd(file.name, str(file)) for file in files]
        gone = there - {file.name for file in files} - texts.keys() - KEPT
        operations += [CommitOperationDelete(name) for name in sorted(gone)]
    if operations:
        model, version = RegistrationSummary.of(registration).model_version
        api.create_commit(
            repository,
            operations,
            commit_message=f"{model} version {version} ({registration.inputs['policy'].digest[:12]})",
            parent_commit=state.sha,  # refused if somebody else published meanwhile
        )
    return Published(f"{api.endpoint}/{repository}", bool(operations), unknown=tuple(card.unknown))


def _own_repository(api: HfApi, repository: str, private: bool) -> None:
    """Creates the repository if it is not there; refuses a public one where a private one is asked for."""
    if not api.repo_exists(repository):
        api.create_repo(repository, private=private)
        return
    if private and not api.model_info(repository).private:
        raise BadInput(
            f"{repository} is public: make it private on the hub, name another, or set private: false",
            field="publish.private",
        )
