"""The sentence data that IFEval splits with, and a judge to ask."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.loopback import Server


@pytest.fixture
def sentence_data(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(real_data / "nltk_data")])


class JudgeServer:
    """A real server on loopback that speaks the chat completions API, and misbehaves as it is told.

    `script(user, times)` may answer the `times`-th request with that user message: a status with a body text and
    headers, or one of the words half, cut, garbage, empty, null, no usage. None answers as a judge does, by
    `verdict(user)`. `asked` counts requests by user message, `most_at_once` those that were under way together: a
    request is no longer under way before its answer goes out, as whoever has the answer may ask again at once.
    While `gate` is shut, requests wait inside; `arrived` is released once for every request that comes.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.script: Callable[[str, int], Any] = lambda user, times: None
        self.verdict: Callable[[str], str] = lambda user: f"Fine. Rating: [[{4 + len(user) % 3}]]"
        self.served: str | None = None  # the model that the answers name
        self.usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        self.now = self.most_at_once = 0
        self.lock = threading.Lock()
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Semaphore(0)
        self.server = Server(self._handler())
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    @property
    def requests(self) -> int:
        with self.lock:
            return sum(self.asked.values())

    def close(self) -> None:
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                user = body["messages"][-1]["content"]
                with judge.lock:
                    judge.asked[user] += 1
                    times = judge.asked[user]
                    judge.bodies.append(body)
                    judge.now += 1
                    judge.most_at_once = max(judge.most_at_once, judge.now)
                judge.arrived.release()
                judge.gate.wait()
                scripted = judge.script(user, times)
                with judge.lock:
                    judge.now -= 1
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # whoever asked is gone
                    self.answer(user, scripted)

            def answer(self, user: str, scripted: Any) -> None:
                message = {"role": "assistant", "content": judge.verdict(user)}
                reply: dict[str, Any] = {"choices": [{"index": 0, "message": message}], "usage": judge.usage}
                if judge.served is not None:
                    reply["model"] = judge.served
                status, headers, word = 200, {}, scripted if isinstance(scripted, str) else ""
                if isinstance(scripted, tuple):
                    status, text, headers = scripted
                    # as badly as can be: the key is quoted to the one who sent it
                    reply = {"error": {"message": f"{text}: {self.headers['Authorization']}", "code": text}}
                if word == "empty":
                    reply["choices"] = []
                if word == "null":
                    message["content"] = None  # type: ignore[assignment]
                if word == "no usage":
                    del reply["usage"]
                data = {"half": b'{"choices": [', "garbage": b"<html>Bad gateway</html>"}.get(word)
                data = json.dumps(reply).encode() if data is None else data
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if word == "cut":
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    now = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
                    self.connection.close()
                    self.close_connection = True
                else:
                    self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """A judge's endpoint on loopback; its key stands in the environment variable `TEST_JUDGE_KEY`."""
    monkeypatch.setenv("TEST_JUDGE_KEY", "sk-secret-0123456789abcdef")
    server = JudgeServer()
    yield server
    server.close()
