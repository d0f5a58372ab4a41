"""Servers that tests start on loopback: where, and whether they are up."""

from __future__ import annotations

import json
import random
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, BaseServer, ThreadingTCPServer
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

AnyServer = TypeVar("AnyServer", bound=BaseServer)

_taken: list[socket.socket] = []


def free_port() -> int:
    """A port for a server that is yet to be started, given to nobody else on this machine while this process lives.

    Until the server listens, nothing of TCP holds its port. What holds it against other tests, of this process and of
    those beside it, is the UDP port of the same number.
    """
    ports = ports_below(first_ephemeral_port())
    while True:
        port = random.SystemRandom().choice(ports)
        held = socket.socket(type=socket.SOCK_DGRAM)
        try:
            held.bind(("127.0.0.1", port))
            with socket.socket() as one:
                one.bind(("127.0.0.1", port))
        except OSError:
            held.close()
            continue
        _taken.append(held)
        return port


def ports_below(ephemeral: int) -> range:
    """Ports of which the system gives none to whoever asks for any, unless it gives all that a user may have."""
    return range(ephemeral - 12_000, ephemeral) if ephemeral > 14_000 else range(20_000, 32_000)


def first_ephemeral_port() -> int:
    """The lowest port that the system gives to whoever asks for any."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except OSError:  # not Linux
        return 32_768


def listens(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as page:
            return bool(page.status == 200)
    except (OSError, HTTPException):
        return False


class Server(ThreadingHTTPServer):
    """A server on a free port. With Python's own backlog of five, a system resets connections that come at once."""

    request_queue_size = 128

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)


@contextmanager
def serving(server: AnyServer) -> Iterator[AnyServer]:
    """Meanwhile the server answers, in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def speaking_no_http() -> Iterator[int]:
    """Meanwhile a server listens on the port that is given, and greets whoever comes as a server of gRPC does."""

    class Greeting(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65_536)  # a connection that is closed on words unread is reset, and nothing is seen
            self.request.sendall(b"\0\0\6\4\0\0\0\0\0\0\5\0\x40\0\0")  # HTTP/2's frame of settings, no line

    with serving(ThreadingTCPServer(("127.0.0.1", 0), Greeting)) as server:
        yield server.server_address[1]


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
    with serving(one.server):
        yield one


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

    with serving(Server(Bucket)) as server:
        yield f"http://127.0.0.1:{server.server_port}"
