"""Servers that tests start on loopback: where, and whether they are up."""

from __future__ import annotations

import random
import socket
import urllib.request

PORTS = range(20_000, 32_000)
"""Below those that systems give to whoever asks for any: until a server is up, nobody is given its port."""


def free_port() -> int:
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def listens(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as page:
            return bool(page.status == 200)
    except OSError:
        return False
