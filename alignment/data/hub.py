"""Data sets on the Hugging Face Hub: pinned to a commit, and read as records."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from alignment.data.readers import Record
from alignment.errors import BadInput
from alignment.recipe.data import DataSource

# Asking the Hugging Face Hub: an error of the network says what was asked for.

TRANSPORTS = frozenset({"httpx", "httpx2"})
"""Packages that the hub's client speaks HTTP with; their errors are no `OSError`."""


T = TypeVar("T")


class HubUnreachable(ConnectionError):
    """The hub gave no answer; the message names what it was asked for."""


@dataclass
class _Patience:
    """How long the hub may take for an answer, and why it gave none, once it did not."""

    seconds: float
    silent: str | None = None


_PATIENCE: ContextVar[_Patience | None] = ContextVar("patience", default=None)


@contextmanager
def asking_briefly(seconds: float) -> Iterator[None]:
    """Within it the hub gets this long for an answer, name look-up included, and is not asked again after it gave none.

    For who can do without: a run waits as long as the hub's client does.
    """
    token = _PATIENCE.set(_Patience(seconds))
    try:
        yield
    finally:
        _PATIENCE.reset(token)


def ask_hub(what: str, ask: Callable[[], T]) -> T:
    """What `ask` returns; raises `HubUnreachable` with the name of `what` where the hub gave no answer."""
    patience = _PATIENCE.get()
    if patience is None:
        with asking_hub(what):
            return ask()
    if patience.silent is not None:
        raise HubUnreachable(f"{what} on the hub: {patience.silent}")
    try:
        with asking_hub(what):
            return _within(patience.seconds, ask)
    except HubUnreachable as error:
        patience.silent = str(error).removeprefix(f"{what} on the hub: ")
        raise


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """In a thread that is left behind when it takes longer: no time limit of a client covers the look-up of a name."""
    answers: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors and type(errors[0]).__name__ == "OfflineModeIsEnabled":
        raise TimeoutError("not asked, as HF_HUB_OFFLINE is set") from errors[0]
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return answers[0]


@contextmanager
def asking_hub(what: str) -> Iterator[None]:
    """Turns a transport's error into `HubUnreachable` with the name of `what`; others, and the hub's answers, pass."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, TimeoutError) and type(error).__module__.partition(".")[0] not in TRANSPORTS:
            raise
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HubUnreachable(f"{what} on the hub: {told}") from error


DEFAULT_SPLIT = "train"
COMMIT_HASH = re.compile(r"[0-9a-f]{40}")


def pin_hub(source: DataSource) -> DataSource:
    """The source with its revision resolved to a commit hash and its split named, and no more than that.

    Raises `BadInput` if the hub cannot be asked or does not know the data set.
    """
    revision = source.revision
    if revision is None or not COMMIT_HASH.fullmatch(revision):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            info = ask_hub(str(source.hub), lambda: HfApi().dataset_info(str(source.hub), revision=revision))
        except HubUnreachable:
            raise
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise BadInput(f"cannot be found on the hub: {_first_line(error)}", file=source.hub) from error
        revision = str(info.sha)
    return DataSource(hub=source.hub, config=source.config, split=source.split or DEFAULT_SPLIT, revision=revision)


def hub_records(source: DataSource, part: int = 0, parts: int = 1) -> Iterator[Record]:
    """Records of one split in order, or run `part` of `parts` contiguous ones; rows count from 1 in the split."""
    from datasets import load_dataset

    split = source.split or DEFAULT_SPLIT
    try:
        data = load_dataset(source.hub, source.config, split=split, revision=source.revision)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a data set that is a program is never run
        raise BadInput(f"cannot be loaded from the hub: {_first_line(error)}", file=source.hub) from error
    first, last = len(data) * part // parts, len(data) * (part + 1) // parts
    for position, value in enumerate(data.select(range(first, last)), start=first + 1):
        yield Record(position, value=dict(value))


def hub_name(source: DataSource) -> str:
    """What stands in a row's `source`."""
    return ":".join(part for part in (source.hub, source.config, source.split or DEFAULT_SPLIT) if part)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
