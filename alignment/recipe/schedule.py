"""When a recipe is brought up to date by itself, and who is told what came of it."""

from __future__ import annotations

from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator

from alignment.recipe.cron import check_cron
from alignment.recipe.environment import VariableName
from alignment.recipe.sources import Section


class Schedule(Section):
    """The nightly run. Without this section a recipe runs only when a person asks."""

    cron: str = "0 2 * * *"
    """Minute, hour, day of month, month, day of week, in `timezone`."""
    timezone: str = "UTC"
    """IANA name, such as Europe/Berlin; changes of its clock are followed."""
    deadline_minutes: int = Field(default=120, ge=1, le=7 * 24 * 60)
    """How long a night waits for shards before it goes without them; anew if it had to make base model or SFT first."""
    max_hours: int = Field(default=24, ge=1)
    """Longest that one run of a night may take; then it is ended, so that the nights after it have their turn."""

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        return check_cron(value)

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # a folder of zones is an OSError
            raise ValueError(f"no time zone '{value}'; give an IANA name such as Europe/Berlin") from error
        return value


class Alerts(Section):
    """Who is told when a night fails, is gated or a source looks wrong; a log line is written in any case."""

    webhook_env: VariableName | None = None
    """Name of the environment variable that holds the webhook's URL; the URL itself is never written anywhere."""
    format: Literal["json", "text"] = "json"
    """`json` posts {"recipe", "event", "text"}; `text` posts {"text"}, as Slack, Mattermost and Teams take it."""
