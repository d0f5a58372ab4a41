"""Servers that tests start on loopback: where, and whether they are up."""

from __future__ import annotations

import json
import random
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

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


class Server(ThreadingHTTPServer):
    """A server on a free port. With Python's own backlog of five, a system resets connections that come at once."""

    request_queue_size = 128

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)


class Receiver:
    """A webhook receiver: `statuses` are its answers, the last one repeated; `bodies` is what came."""

    def __init__(self, path: str) -> None:
        self.statuses = [200]
        self.bodies: list[Any] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status = receiver.statuses.pop(0) if len(receiver.statuses) > 1 else receiver.statuses[0]
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = Server(Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}{path}"


@contextmanager
def receiving(path: str = "/") -> Iterator[Receiver]:
    """Meanwhile a receiver listens on loopback."""
    one = Receiver(path)
    thread = threading.Thread(target=one.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield one
    finally:
        one.server.shutdown()
        thread.join()
        one.server.server_close()


@contextmanager
def signed_files(files: Mapping[str, bytes], is_right: Callable[[str], bool]) -> Iterator[str]:
    """Serves the bytes of whichever name a path ends in to who brings `?signature=`, as a bucket does with presigned
    URLs; gives the address above the paths."""

    class Bucket(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            found = next((data for name, data in files.items() if asked.path.endswith(name)), None)
            if found is None or not is_right(parse_qs(asked.query).get("signature", [""])[0]):
                self.send_error(403)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(found)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = Server(Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
