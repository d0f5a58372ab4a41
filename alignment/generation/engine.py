"""Whatever answers prompts with one checkpoint: Transformers in this process, or a server with the OpenAI API.

A server that is started here is a process of its own in its own environment, such as vLLM's: its packages never meet
ours. It is reached by the same protocol as any other endpoint, and ended when its work is done.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.errors import BadInput
from alignment.generation.endpoint import EndpointGenerator
from alignment.generation.generator import Each, Generator, PromptEncoder
from alignment.models.checkpoint import default_device, load_model, load_tokenizer, max_positions
from alignment.models.loading import load_sharded
from alignment.recipe.evaluation import Generate
from alignment.recipe.forward import TokenPolicy
from alignment.stages.stage import Context
from alignment.store import Artifact

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

AnyGenerator = Generator | EndpointGenerator
END_SECONDS = 30.0
"""Seconds that a server may take to end when it is asked to; then it is killed."""
POLL_SECONDS = 0.2

_loaded: dict[tuple[str, str, str], PreTrainedModel] = {}
"""The last model that `kept` asked for, by digest, precision and device."""


@dataclass(frozen=True)
class Served:
    """A checkpoint and how prompts are put to it, whoever computes the answers.

    With `kept` the loaded model stays in this process for the next who asks for the same one. Of a `sharded` one every
    process has its rows. `workers` gives those who make the answers where Transformers computes them.
    """

    context: Context
    checkpoint: Artifact
    precision: str
    batch_tokens: int
    tokens: TokenPolicy
    kept: bool = False
    sharded: bool = False
    workers: Callable[[Served], Each] | None = None

    def loaded(self) -> Generator:
        """The generator of this process, which has loaded the checkpoint."""
        each = None if self.workers is None else self.workers(self)
        folder, runs_code = self.context.fetch(self.checkpoint), self.context.runs_code(self.checkpoint)
        tokenizer = load_tokenizer(folder, runs_code)
        return Generator(self._model(folder, runs_code), tokenizer, self.batch_tokens, self.tokens, each)

    @contextmanager
    def by(self, settings: Generate, answers: Path) -> Iterator[AnyGenerator]:
        """The generator that the settings name; `answers` is the file that a server's answers are kept in over
        interruptions. Raises `BadInput` for a server that cannot be started or does not serve the checkpoint."""
        if settings.kind == "transformers":
            yield self.loaded()
            return
        folder, runs_code = self.context.fetch(self.checkpoint), self.context.runs_code(self.checkpoint)
        encoder = PromptEncoder(load_tokenizer(folder, runs_code), max_positions(folder), self.tokens)
        if settings.kind == "endpoint":
            yield EndpointGenerator(settings, self.checkpoint.digest, encoder, answers)
            return
        digest = self.checkpoint.digest
        with _shared.server(settings, folder, digest) if _shared else started(settings, folder, digest) as endpoint:
            yield EndpointGenerator(endpoint, digest, encoder, answers)

    def _model(self, folder: Path, runs_code: bool) -> PreTrainedModel:
        if not self.kept:
            load = load_sharded if self.sharded else load_model
            return load(folder, self.precision, runs_code=runs_code)
        key = (self.checkpoint.digest, self.precision, str(default_device()))
        if key not in _loaded:
            forget()  # before the next one arrives, so that two are never held
            _loaded[key] = load_model(folder, self.precision, runs_code=runs_code)
        return _loaded[key]


def forget() -> None:
    """Lets go of the model that was kept."""
    _loaded.clear()


class _Shared:
    """The server that was started last, for all who ask for the same one while it is shared."""

    def __init__(self) -> None:
        self.users = 0
        self._key: tuple[str, str | None] | None = None
        self._endpoint: Generate | None = None
        self._open = ExitStack()

    def __bool__(self) -> bool:
        return self.users > 0

    @contextmanager
    def server(self, settings: Generate, folder: Path, digest: str) -> Iterator[Generate]:
        """As `started`, and the server goes on."""
        if self._endpoint is None or self._key != (digest, settings.command):
            self.close()
            self._endpoint = self._open.enter_context(started(settings, folder, digest))
            self._key = (digest, settings.command)
        yield self._endpoint

    def close(self) -> None:
        """Ends the server."""
        self._endpoint = None
        self._open.close()


_shared = _Shared()


@contextmanager
def shared_server() -> Iterator[None]:
    """Within it a server is started once for all that ask for the same checkpoint, and ended at its end."""
    _shared.users += 1
    try:
        yield
    finally:
        _shared.users -= 1
        if not _shared:
            _shared.close()


@contextmanager
def started(settings: Generate, folder: Path, digest: str) -> Iterator[Generate]:
    """A server of the checkpoint in `folder`, started by the settings' command; yields the settings of its endpoint.

    Raises `BadInput` if the command cannot be run, or ends or stays silent before it lists its model.
    """
    name, port = settings.model.format(digest=digest[:12]), _free_port()
    assert settings.command is not None
    words = [
        word.replace("{folder}", str(folder)).replace("{port}", str(port)).replace("{name}", name)
        for word in shlex.split(settings.command)
    ]
    url = f"http://127.0.0.1:{port}/v1"
    try:
        process = subprocess.Popen(words, start_new_session=True)
    except OSError as error:
        raise BadInput(f"'{words[0]}' cannot be started: {error.strerror}", field="generate.command") from error
    try:
        _await(process, url, settings.start_seconds)
        log.info("%s serves %s on port %d", words[0], name, port)
        more = settings.model_dump(exclude={"kind", "command", "start_seconds", "base_url"})
        yield Generate(kind="endpoint", base_url=url, **more)
    finally:
        _end(process)


def _await(process: subprocess.Popen[bytes], url: str, seconds: float) -> None:
    """Until the server lists models. Until it listens, another program may have its port, and speak no HTTP."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (code := process.poll()) is not None:
            raise BadInput(f"the server ended with {code} before it served anything", field="generate.command")
        with suppress(OSError, HTTPException):
            try:
                with urllib.request.urlopen(f"{url}/models", timeout=5):
                    return
            except urllib.error.HTTPError as error:
                if error.code in (401, 403):  # it is up, and asks for its key: whoever asks next brings it
                    return
        time.sleep(POLL_SECONDS)
    raise BadInput(f"the server did not list its models within {seconds:g} s", field="generate.start_seconds")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the server and what it started, which is its process group."""
    try:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
    finally:  # after a second interruption, too: workers that outlive it would keep the GPU
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
