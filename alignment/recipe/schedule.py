"""When a recipe is brought up to date by itself, and who is told what came of it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from itertools import product
from typing import ClassVar, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from alignment.recipe.data import Section, VariableName

# Standard cron expressions: minute, hour, day of month, month, day of week.
#
# Numbers, names of months and weekdays, `*`, lists, ranges and steps; no seconds, no `@daily`, no extensions, so
# that every scheduler reads the same times in it.

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS = ("minute", "hour", "day of month", "month", "day of week")
BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
NAMES: tuple[dict[str, int], ...] = (
    {},
    {},
    {},
    {name: n for n, name in enumerate(MONTHS, 1)},
    {name: n for n, name in enumerate(WEEKDAYS)},
)
LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
PART = re.compile(r"(?:(?P<all>\*)|(?P<first>[a-z0-9]+)(?:-(?P<last>[a-z0-9]+))?)(?:/(?P<step>\d+))?")


def check_cron(expression: str) -> str:
    """The expression, its blanks made single; raises `ValueError` that names the field that is wrong."""
    parts = expression.split()
    if len(parts) != len(FIELDS):
        raise ValueError(f"a cron expression has five fields ({', '.join(FIELDS)}), this has {len(parts)}")
    values = [_values(index, part) for index, part in enumerate(parts)]
    days, months = values[2], values[3]
    if parts[4] == "*" and not any(min(days) <= LONGEST[month - 1] for month in months):
        raise ValueError(f"no month in '{parts[3]}' has a day '{parts[2]}'")
    return " ".join(parts)


def _values(index: int, part: str) -> set[int]:
    """The numbers that one field stands for."""
    low, high = BOUNDS[index]
    found: set[int] = set()
    for one in part.lower().split(","):
        match = PART.fullmatch(one)
        if match is None or (match["step"] is not None and (int(match["step"]) == 0 or match["last"] is match["all"])):
            raise ValueError(f"{FIELDS[index]} '{part}' is not a number, a range, a list, or a step of * or of a range")
        first = low if match["all"] else _number(index, match["first"])
        last = high if match["all"] else _number(index, match["last"]) if match["last"] else first
        if not low <= first <= last <= high:
            raise ValueError(f"{FIELDS[index]} '{part}' is not within {low}-{high}, lowest first")
        found.update(range(first, last + 1, int(match["step"] or 1)))
    return found


def next_time(expression: str, after: datetime) -> datetime:
    """The first time that an expression names after `after`, on the clock of `after`'s zone.

    As in cron, a day counts if it is one of the days of the month *or* one of the weekdays, where both are named. An
    hour that the clock leaves out is skipped, as is an hour's second turn.
    """
    parts = expression.split()
    minutes, hours, days, months, weekdays = (_values(index, part) for index, part in enumerate(parts))
    weekdays = {day % 7 for day in weekdays}
    either = parts[2] != "*" and parts[4] != "*"
    for ahead in range(8 * 366):  # 29 February comes back within eight years
        day = after.date() + timedelta(days=ahead)
        of_month, of_week = day.day in days, day.isoweekday() % 7 in weekdays
        if day.month not in months or not (of_month or of_week if either else of_month and of_week):
            continue
        for hour, minute in product(sorted(hours), sorted(minutes)):
            found = datetime.combine(day, time(hour, minute), after.tzinfo)
            is_there = found.astimezone(UTC).astimezone(after.tzinfo).replace(fold=0) == found
            if found > after and is_there:
                return found
    raise ValueError(f"'{expression}' names no time")  # `check_cron` refuses such


def _number(index: int, text: str) -> int:
    if text in NAMES[index]:
        return NAMES[index][text]
    if not text.isdecimal():
        raise ValueError(f"{FIELDS[index]} has no '{text}'")
    return int(text)


class Worth(Section):
    """What a night needs before it trains. With less, the new rows wait, and the next night looks again. Only
    additional rows wait: rows that are gone, and other settings or checkpoints, are trained at once. Where nothing is
    new or gone, as of a file of known rows, no night trains; nor while the gate's own bounds on `new_rows` are not met,
    as it would refuse whatever is trained."""

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"wake_on_drift"})

    min_new_rows: int | None = Field(default=None, ge=1)
    """Fewest rows to train on that the policy before was not given; held-out rows do not count."""
    min_new_share: float | None = Field(default=None, gt=0, le=1)
    """The same as a fraction of the rows that the policy before was trained on, such as 0.05. With `min_new_rows` both
    must hold."""
    provable: bool = False
    """Wait, too, while a night could not prove a change as large as its margin in some metric of the gate: such a
    policy would be refused as inconclusive. The reason names the number of items that would be enough. The spread is
    that of the last five reports."""
    max_wait_days: float | None = Field(default=None, gt=0)
    """Days since the last training that no new row waits for longer than: a night trains on any new row if the night
    after it would be later. Without it rows may wait for ever."""
    wake_on_drift: bool = False
    """Train at once, however few rows are new, if the champion's accuracy on them sets off the alarm `drift`. It needs
    `evals.new_rows`, which is measured on nights that sleep as well."""

    @model_validator(mode="after")
    def _asks_something(self) -> Worth:
        if self.min_new_rows is None and self.min_new_share is None and not self.provable:
            raise ValueError("give min_new_rows, min_new_share or provable: true")
        return self


class Schedule(Section):
    """The nightly run. Without this section a recipe runs only when a person asks."""

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"worth"})

    cron: str = "0 2 * * *"
    """When a night begins: minute, hour, day of month, month, day of week, in `timezone`."""
    timezone: str = "UTC"
    """IANA name, such as Europe/Berlin; changes of its clock are followed."""
    deadline_minutes: int = Field(default=120, ge=1, le=7 * 24 * 60)
    """Minutes that a night waits for shards before it goes on without those that are not ready. They count anew from
    the end of base model and SFT, if the night had to make these first."""
    max_hours: int = Field(default=24, ge=1)
    """Hours that the runs of a night may take, from the first that it asks for to the end of the last: time in a queue
    and a second try count. Then they are ended, so that the nights after it have their turn."""
    max_cost: float | None = Field(default=None, gt=0)
    """USD: the most that the runs of a night may cost, by the prices in pools.yaml; then they are ended.
    What a judge costs has a budget of its own."""
    worth: Worth | None = None
    """When new rows wait for more of their kind. Without this section every night trains on what is new."""

    def next_night(self, after: datetime) -> datetime:
        """When the first night after a moment begins, in the schedule's zone."""
        return next_time(self.cron, after.astimezone(ZoneInfo(self.timezone)))

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
