"""Alerts: a log line always, and a webhook where the recipe names one.

A webhook is enough for chat (Slack, Mattermost, Teams and Discord's Slack endpoint take `format: text`), for paging
and for e-mail (through any of the services that turn a webhook into mail).
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
from alignment.recipe import Alerts

ATTEMPTS = 3
TIMEOUT = 5.0  # seconds one attempt may take
PAUSE = 1.0  # seconds before the second attempt; doubled before every further one

log = logging.getLogger("alignment_dags.alerts")


@dataclass(frozen=True)
class Alert:
    """What a person should know: `event` is a short name to filter by, `text` one or more plain lines."""

    recipe: str
    event: str
    text: str


def send(alerts: Alerts | None, alert: Alert) -> None:
    """Logs the alert and posts it to the recipe's webhook; says so when that does not work, and never raises.

    No address in its text shows a secret.

    The webhook's URL is a secret: it stands in no log line.
    """
    alert = replace(alert, text=shown(alert.text))
    log.warning("%s: %s: %s", alert.recipe, alert.event, alert.text)
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
    """What is posted."""
    content = asdict(alert) if alerts.format == "json" else {"text": f"{alert.recipe}: {alert.event}\n{alert.text}"}
    return json.dumps(content, ensure_ascii=False).encode()


def _post(url: str, data: bytes) -> str | None:
    """None when the receiver took it, else why not. Only what may pass by itself is tried again."""
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
        except Exception as error:  # whatever it is, the work that wanted to tell of it goes on
            why = type(error).__name__  # without its text, which may hold the URL
    return why
