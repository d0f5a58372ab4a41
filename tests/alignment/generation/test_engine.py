"""A server that was started for a checkpoint never outlives its user, whatever happens while it is being ended."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.generation import engine
from alignment.recipe import Generate
from tests.loopback import speaking_no_http

SERVER = """
import signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Models(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{}')
    def log_message(self, *told): pass
signal.signal(signal.SIGTERM, signal.SIG_IGN)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Models).serve_forever()
"""


def test_an_interruption_while_a_deaf_server_is_being_ended_kills_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[subprocess.Popen[bytes]] = []
    wait = subprocess.Popen.wait

    def wait_interrupted(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        waited.append(process)
        if len(waited) == 1:
            raise KeyboardInterrupt
        return wait(process, timeout)

    settings: dict[str, Any] = {
        "kind": "vllm",
        "command": f"{sys.executable} -c {shlex.quote(SERVER)} {{port}} {{folder}} {{name}}",
    }
    with (
        pytest.raises(KeyboardInterrupt),
        engine.started(Generate.model_validate(settings), tmp_path, "0" * 64),
    ):
        monkeypatch.setattr(subprocess.Popen, "wait", wait_interrupted)
    assert waited[0].returncode == -9


def test_another_programs_port_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The port was free when it was chosen; another program may have taken it before the server listens."""
    with speaking_no_http() as port:
        monkeypatch.setattr(engine, "_free_port", lambda: port)
        command = f"{sys.executable} -c 'import signal; signal.pause()' {{port}} {{folder}} {{name}}"
        settings = Generate.model_validate({"kind": "vllm", "command": command, "start_seconds": 1})
        told = pytest.raises(BadInput, match="did not list its models within 1 s")
        with told, engine.started(settings, tmp_path, "0" * 64):
            pass
