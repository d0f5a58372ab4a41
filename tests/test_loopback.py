"""What servers of the tests and of the judge's benchmark promise."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.judge import Server as BenchmarkServer
from resources.home import PROJECT
from tests import loopback
from tests.loopback import Server, answers, first_ephemeral_port, free_port, ports_below, speaking_no_http


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *_: object) -> None:
        pass


@pytest.mark.parametrize("start", [Server, lambda handler: BenchmarkServer(("127.0.0.1", 0), handler)])
def test_connections_that_come_at_once_wait_and_are_all_answered(
    start: Callable[[type[BaseHTTPRequestHandler]], ThreadingHTTPServer],
) -> None:
    server = start(Handler)
    clients = [socket.create_connection(("127.0.0.1", server.server_port), timeout=30) for _ in range(64)]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for client in clients:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert {client.recv(12) for client in clients} == {b"HTTP/1.0 204"}
    finally:
        for client in clients:
            client.close()
        server.shutdown()
        server.server_close()


def test_what_speaks_no_http_does_not_answer() -> None:
    with speaking_no_http() as port:
        assert not answers(f"http://127.0.0.1:{port}/")


def test_a_port_is_given_once_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before anything listens there: here two processes take 60 of 64."""
    code = (
        "from tests import loopback; loopback.ports_below = lambda _: range(18_000, 18_064);"
        "print(*(loopback.free_port() for _ in range(30)))"
    )
    monkeypatch.setattr(loopback, "ports_below", lambda _: range(18_000, 18_064))
    mine = [free_port() for _ in range(30)]
    asked = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True, text=True)
    others = [int(port) for port in asked.stdout.split()]
    assert len({*mine, *others}) == 60


@pytest.mark.parametrize(
    ("ephemeral", "ports"),
    [(32_768, range(20_768, 32_768)), (16_000, range(4_000, 16_000)), (1_024, range(20_000, 32_000))],
)
def test_ports_are_those_that_the_system_gives_to_nobody(ephemeral: int, ports: range) -> None:
    assert ports_below(ephemeral) == ports
    assert 1 <= first_ephemeral_port() < 2**16
