"""Alerts: logged always, posted where a webhook is named, and never the reason why something else fails."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

import resources.alerts as module
from alignment.recipe import Alerts
from resources.alerts import Alert, send
from tests.loopback import Server

ALERT = Alert("small", "night_failed", "train failed: no space left — schade")
SECRET = "T0KEN-of-the-webhook"
NAMED = "TEAM_WEBHOOK"


class Receiver:
    """A webhook receiver: `statuses` are its answers, the last one repeated; `bodies` is what came."""

    def __init__(self) -> None:
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
        self.url = f"http://127.0.0.1:{self.server.server_port}/{SECRET}"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    one = Receiver()
    thread = threading.Thread(target=one.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv(NAMED, one.url)
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setattr(module, "TIMEOUT", 60.0)  # it answers, however busy the machine
    yield one
    one.server.shutdown()
    thread.join()
    one.server.server_close()


def test_without_a_webhook_there_is_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    send(None, ALERT)
    assert [(one.name, one.levelno) for one in caplog.records] == [("alignment_dags.alerts", logging.WARNING)]
    assert "small: night_failed: train failed: no space left" in caplog.text


def test_json_names_recipe_event_and_text(receiver: Receiver) -> None:
    send(Alerts(webhook_env=NAMED), ALERT)
    assert receiver.bodies == [{"recipe": "small", "event": "night_failed", "text": ALERT.text}]


def test_text_is_what_chats_take(receiver: Receiver) -> None:
    send(Alerts(webhook_env=NAMED, format="text"), ALERT)
    assert receiver.bodies == [{"text": f"small: night_failed\n{ALERT.text}"}]


def test_a_receiver_that_recovers_gets_it(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.statuses = [503, 429, 200]
    send(Alerts(webhook_env=NAMED), ALERT)
    assert len(receiver.bodies) == 3
    assert "no alert was posted" not in caplog.text


@pytest.mark.parametrize(("status", "times"), [(500, 3), (404, 1)])
def test_a_refusal_is_said_and_the_url_is_not(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, status: int, times: int
) -> None:
    receiver.statuses = [status]
    send(Alerts(webhook_env=NAMED), ALERT)
    assert len(receiver.bodies) == times
    assert f"no alert was posted to the URL in {NAMED}: status {status}" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("url", ["", "ftp://127.0.0.1/x", "nonsense", "http://[::1", "http://127.0.0.1:99999/"])
def test_a_url_that_cannot_be_used_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    monkeypatch.setenv(NAMED, url)
    monkeypatch.setattr(module, "PAUSE", 0.0)
    send(Alerts(webhook_env=NAMED), ALERT)
    assert "no alert was posted" in caplog.text
    assert not url or url not in caplog.text


def test_nobody_listening_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as bound:  # taken, and not listening
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv(NAMED, f"http://127.0.0.1:{bound.getsockname()[1]}/{SECRET}")
        monkeypatch.setattr(module, "PAUSE", 0.0)
        send(Alerts(webhook_env=NAMED), ALERT)
    assert "no alert was posted" in caplog.text
    assert SECRET not in caplog.text
