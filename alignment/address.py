"""Addresses that may hold a secret: what of them is shown and recorded, and what opens them.

User, password and query of a URL open it and name nothing. A file's address is therefore kept without them
(`bare`): a URL that is signed anew every day is the same file. The whole address stays in this process's memory
(`remember`, `whole`) and comes from the recipe, or from ALIGN_ADDRESSES, every time that something runs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from typing import Any

ADDRESSES = "ALIGN_ADDRESSES"
"""Environment variable: a JSON list of whole addresses, for a stage that is started with a request file alone."""

SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]{0,30}"  # bounded: without end it takes minutes on a text of 200,000 letters
# of addresses chained by `::`, each by itself; the colons of an IPv6 host are none of a chain
URL = re.compile(rf"(?P<scheme>{SCHEME})://(?P<rest>(?:(?!::{SCHEME}(?:::|://))\S)*)")
CHAIN = re.compile(rf"::(?={SCHEME}(?:::|://))")
WEB = frozenset({"http", "https"})
"""Where a `?` always begins a query; elsewhere one that no `name=` follows is part of a glob."""
CONTAINER = frozenset({"abfs", "abfss", "wasb", "wasbs"})
"""Where what stands before `@` is a container of the account after it."""
QUERY = re.compile(r"\?[A-Za-z_][\w.\-]*=[^\s'\"<>`]*")
WEB_QUERY = re.compile(r"[?#][^\s'\"<>`]*")
USER = re.compile(r"[^/?#:\s]*:\S*@|[^/?#\s]*@")
"""User and password, the password with whatever is in it: one with a `/` is no URL, and is written all the same."""
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def shown(text: str) -> str:
    """A text as a person may see it: no URL in it names a user, a password or a query, nor does it hold a hub token."""
    return HUB_TOKEN.sub("hf_…", QUERY.sub("", URL.sub(_shown_url, text)))


def _shown_url(match: re.Match[str]) -> str:
    scheme, rest = match["scheme"].lower(), match["rest"]
    user = USER.match(rest)
    if user is not None and not (scheme in CONTAINER and ":" not in user[0]):
        rest = rest[rest.rindex("@", 0, user.end()) + 1 :]
    return f"{match['scheme']}://{WEB_QUERY.sub('', rest) if scheme in WEB else rest}"


def all_shown(value: Any) -> Any:
    """Plain data with every text in it as `shown`."""
    if isinstance(value, dict):
        return {name: all_shown(item) for name, item in value.items()}
    if isinstance(value, list):
        return [all_shown(item) for item in value]
    return shown(value) if isinstance(value, str) else value


def bare(address: str) -> str:
    """A path as it is; a URL without user, password and query, which is what names and records hold of it."""
    return address if "://" not in address else "::".join(_bare(part) for part in CHAIN.split(address))


def _bare(address: str) -> str:
    scheme, _, rest = address.partition("://")
    end = next((index for index, character in enumerate(rest) if character in "/?#"), len(rest))
    if scheme.lower() not in CONTAINER:
        rest = rest[rest.rfind("@", 0, end) + 1 :]
    query = (WEB_QUERY if scheme.lower() in WEB else QUERY).search(rest)
    return address if not rest else f"{scheme}://{rest[: query.start()] if query else rest}"


_whole: dict[str, str] = {}


def remember(address: str) -> str:
    """The bare address; `whole` gives the address back in this process."""
    short = bare(address)
    if short != address:
        _whole[short] = address
    return short


def whole(address: str) -> str:
    """What opens a bare address: as this process, or whoever started it, was told; else the address itself."""
    if "://" not in address or address in _whole:
        return _whole.get(address, address)
    for one in json.loads(os.environ.get(ADDRESSES) or "[]"):
        if bare(one) == address:
            return str(one)
    return address


def handed_on(addresses: Iterable[str]) -> dict[str, str]:
    """The environment by which another process opens these bare addresses."""
    told = [found for one in addresses if (found := whole(one)) != one]
    return {ADDRESSES: json.dumps(told)} if told else {}
