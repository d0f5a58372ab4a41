"""Alerts: logged always, posted where a webhook is named, and never the reason why something else fails."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import pytest

import resources.alerts as module
from alignment.recipe import Alerts
from resources.alerts import Alert, send
from tests.loopback import Receiver, receiving

ALERT = Alert("small", "night_failed", "train failed: no space left — schade")
SECRET = "T0KEN-of-the-webhook"
NAMED = "TEAM_WEBHOOK"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setattr(module, "TIMEOUT", 60.0)  # it answers, however busy the machine
    with receiving(f"/{SECRET}") as one:
        monkeypatch.setenv(NAMED, one.url)
        yield one


def test_without_a_webhook_there_is_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    send(None, ALERT)
    assert [(one.name, one.levelno) for one in caplog.records] == [("alignment_dags.alerts", logging.WARNING)]
    assert caplog.messages == ["small: train failed: no space left — schade (alert night_failed)"]


def test_the_log_has_the_name_to_filter_by_behind_the_first_of_several_lines() -> None:
    assert Alert("small", "guard_failed", "one\n  two").line == "small: one (alert guard_failed)\n  two"


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
