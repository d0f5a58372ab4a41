"""Errors of networks and remote stores, told in one line instead of a traceback."""

from __future__ import annotations

import socket

LIBRARIES = frozenset(
    {"aiobotocore", "aiohttp", "botocore", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"},
)
"""Packages whose exceptions mean that something beyond this machine gave no answer, or a refusal."""
BUILTIN = (ConnectionError, TimeoutError, PermissionError, socket.gaierror)


def unreachable(error: BaseException) -> str | None:
    """One line on what cannot be reached, naming the store where it is remote; None for an error of another kind.

    An error that a library put in the place of a network's (`raise ... from`) counts as that one.
    """
    if not any(_of_a_network(one) for one in _causes(error)):
        return None
    first = (str(error).strip() or "no reason given").splitlines()[0]
    return f"cannot be reached: {type(error).__name__}: {first}{_store()}"


def _causes(error: BaseException) -> list[BaseException]:
    found = [error]
    while (cause := found[-1].__cause__) is not None and cause not in found:
        found.append(cause)
    return found


def _of_a_network(error: BaseException) -> bool:
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, BUILTIN) or bool(packages & LIBRARIES)


def _store() -> str:
    from resources.home import store_url, without_userinfo

    url = store_url()
    remote = "://" in url and not url.startswith(("file://", "local://"))
    return f" (ALIGN_STORE is {without_userinfo(url)})" if remote else ""
