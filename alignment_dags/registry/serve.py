"""`align serve`: a registered checkpoint, or an exported folder, behind the OpenAI API on this machine."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alignment.errors import BadInput, CorruptArtifact, MissingArtifact
from alignment.generation.generator import Generator
from alignment.generation.server import ModelServer, is_loopback
from alignment.models.checkpoint import default_device, digest_checkpoint, load_model, load_tokenizer
from alignment.recipe import TokenPolicy
from alignment.stages import CheckpointSummary
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.policy import DpoRequest
from alignment.stages.stage import trained_policy
from alignment.store import Commit, Store
from alignment_dags.registry.export import checkpoint_of
from alignment_dags.registry.registrations import name_and_version
from resources.home import ensure_home
from resources.store import ArtifactStore

BATCH_TOKENS = 16_384
"""Tokens held at once where many prompts are answered together, as evaluations do by default."""


@dataclass(frozen=True)
class Served:
    """A checkpoint folder with the names that it answers to, and how training wrote its prompts."""

    folder: Path
    names: tuple[str, ...]
    digest: str
    tokens: TokenPolicy
    runs_code: bool


def find(model: str, say: Callable[[str], None]) -> Served:
    """The checkpoint that a person named: a folder, or MODEL[@champion|@VERSION].

    It is served under its own name and under the first 12 digits of its data version, which `generate: endpoint` asks
    for, so that no other checkpoint can answer in its place. Raises `BadInput` for what is neither.
    """
    if os.sep in model or Path(model).is_dir():
        folder = Path(model).expanduser().resolve()
        say(f"hashing {folder}")
        digest = digest_checkpoint(folder).digest
        return Served(folder, (folder.name, digest[:12]), digest, TokenPolicy(), False)
    ensure_home()
    store = ArtifactStore().open()
    version, policy = checkpoint_of(store, model)
    name = name_and_version(model)[0]
    names = tuple(dict.fromkeys((name, f"{name}@{version}", policy.digest[:12])))
    runs_code = CheckpointSummary.of(policy).may_run_code
    return Served(store.fetch(policy.artifact), names, policy.digest, _tokens(store, policy), runs_code)


def _tokens(store: Store, policy: Commit) -> TokenPolicy:
    """How training wrote its rows; the default if the request is lost, as for a folder."""
    try:
        trained = trained_policy(store.commit_of, policy)
        return DpoRequest.model_validate_json(store.read(trained.artifact, REQUEST_FILE)).tokens
    except (MissingArtifact, CorruptArtifact, ValueError):
        return TokenPolicy()


def token_of(variable: str, host: str, none: bool) -> tuple[str | None, bool]:
    """The token that requests must bring, and whether it was made now; None if none is asked for.

    Raises `BadInput` for a host that others reach without a token.
    """
    if none:
        if not is_loopback(host):
            raise BadInput(f"goes with 127.0.0.1; {host} is open to others", field="--no-token")
        return None, False
    given = os.environ.get(variable)
    return (given, False) if given else (secrets.token_urlsafe(24), True)


def generator_of(served: Served, precision: str) -> Generator:
    """The checkpoint, loaded."""
    model = load_model(served.folder, precision, default_device(), runs_code=served.runs_code)
    return Generator(model, load_tokenizer(served.folder, served.runs_code), BATCH_TOKENS, served.tokens)


def serve(served: Served, host: str, port: int, token: str | None, precision: str) -> ModelServer:
    """Loads the checkpoint and binds the address; the caller lets it serve. Raises `BadInput` as `ModelServer`."""
    return ModelServer(generator_of(served, precision), served.names, host, port, token)
