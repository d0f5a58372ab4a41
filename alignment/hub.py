"""Asking the Hugging Face Hub: an error of the network says what was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
