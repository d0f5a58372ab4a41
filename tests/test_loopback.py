"""What servers of the tests and of the judge's benchmark promise."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.judge import Server as BenchmarkServer
from tests.loopback import Server


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
