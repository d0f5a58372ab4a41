"""Alerts: always a log line, and a POST to a webhook if the recipe names one.

A webhook reaches chat (Slack, Mattermost, Teams and Discord's Slack endpoint take `format: text`), paging services, and
e-mail through a service that turns webhooks into mail.
"""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.request
from dataclasses import asdict, dataclass, replace
from urllib.error import HTTPError

from alignment.address import shown
from alignment.recipe.schedule import Alerts

ATTEMPTS = 3
TIMEOUT = 5.0  # seconds of one attempt
PAUSE = 1.0  # seconds before the second attempt; doubled before every further attempt

log = logging.getLogger("alignment_dags.alerts")


@dataclass(frozen=True)
class Alert:
    """A message to a person: `event` is a short name to filter by, `text` is one or more plain lines."""

    recipe: str
    event: str
    text: str

    @property
    def line(self) -> str:
        """The alert in a log: what a person wants to know first, then the name to filter by."""
        first, newline, rest = self.text.partition("\n")
        return f"{self.recipe}: {first} (alert {self.event}){newline}{rest}"


def send(alerts: Alerts | None, alert: Alert) -> None:
    """Logs the alert and posts it to the recipe's webhook. A failure is logged; nothing is raised.

    Secrets in addresses are removed from the text. The webhook's URL is a secret itself and is never logged.
    """
    alert = replace(alert, text=shown(alert.text))
    log.warning("%s", alert.line)
    if alerts is None or alerts.webhook_env is None:
        return
    url = os.environ.get(alerts.webhook_env, "").strip()
    if not url:
        log.error("%s: no alert was posted: %s is not set", alert.recipe, alerts.webhook_env)
    elif not url.lower().startswith(("http://", "https://")):
        log.error("%s: no alert was posted: %s holds no http(s) URL", alert.recipe, alerts.webhook_env)
    elif (why := _post(url, body(alerts, alert))) is not None:
        log.error("%s: no alert was posted to the URL in %s: %s", alert.recipe, alerts.webhook_env, why)


def body(alerts: Alerts, alert: Alert) -> bytes:
    """The JSON text that is posted: the alert's fields, or `{"text"}` for chat services (`format: text`)."""
    content = asdict(alert) if alerts.format == "json" else {"text": f"{alert.recipe}: {alert.event}\n{alert.text}"}
    return json.dumps(content, ensure_ascii=False).encode()


def _post(url: str, data: bytes) -> str | None:
    """None if the receiver accepted the alert, else the reason. Errors that may be temporary are tried again."""
    why = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST")
            with urllib.request.urlopen(request, timeout=TIMEOUT):
                return None
        except HTTPError as error:
            error.close()
            why = f"status {error.code}"
            if error.code < 500 and error.code != 429:
                return why
        except Exception as error:  # an alert that fails must not stop the work that sends it
            why = type(error).__name__  # not the error's text, which may contain the URL
    return why
