"""Data sets on the Hugging Face Hub: pinned to a commit, and read as records."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from alignment.data.readers import Record
from alignment.errors import BadInput
from alignment.recipe import DataSource

# Asking the Hugging Face Hub: an error of the network says what was asked for.

TRANSPORTS = frozenset({"httpx", "httpx2"})
"""Packages that the hub's client speaks HTTP with; their errors are no `OSError`."""


class HubUnreachable(ConnectionError):
    """The hub gave no answer; the message names what it was asked for."""


@contextmanager
def asking_hub(what: str) -> Iterator[None]:
    """Turns a transport's error into `HubUnreachable` with the name of `what`; others, and the hub's answers, pass."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in TRANSPORTS:
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
            with asking_hub(str(source.hub)):
                info = HfApi().dataset_info(str(source.hub), revision=revision)
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
