"""What a watching sensor remembers from one look to the next."""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Asked(BaseModel):
    """A shard whose run was asked for and that is not current yet; `key` is that of the request it should have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    run_key: str
    tries: int = 1
    given_up: bool = False


class Cursor(BaseModel):
    """`observation` numbers the looks that asked for runs: Dagster never launches a run key twice.

    It begins with the clock, so that keys stay new when a person resets the cursor. `alerted` is the trouble that
    people have been told of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    observation: int = Field(default_factory=lambda: int(time.time()))
    asked: dict[str, Asked] = Field(default_factory=dict)
    alerted: str = ""


def read_cursor(text: str | None) -> Cursor:
    """The cursor in a sensor's text; an empty or unreadable one is a new one."""
    try:
        return Cursor.model_validate_json(text or "{}")
    except ValidationError:
        return Cursor()
