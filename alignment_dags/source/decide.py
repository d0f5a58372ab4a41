"""What follows from one look at a source: pure, so that every case is a unit test."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignment.errors import be, counted, first_few
from alignment_dags.source.observe import Seen

# What a watching sensor remembers from one look to the next.


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


FEW = 5
"""With fewer shards than this any number may go; an empty source never counts as gone."""
MOST_GONE = 0.2
TRIES = 2
"""Runs asked for one content: the second covers what passes by itself, and then a person has to look."""
ASKED_AT_ONCE = 1000


@dataclass
class Actions:
    """Partitions to add and drop, shards to ask runs for, what stays asked, and what a person should know."""

    add: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)
    ask: list[str] = field(default_factory=list)
    asked: dict[str, Asked] = field(default_factory=dict)
    given_up: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


def decide(
    seen: Seen,
    known: Collection[str],
    recorded: Mapping[str, str],
    asked: Mapping[str, Asked],
    running: Collection[str],
    meant: Collection[str] = (),
) -> Actions:
    """`known` are the recipe's partitions, `recorded` maps shards to the key of their current artifact, `asked` is
    what earlier looks asked for, `running` are the run keys whose runs have not ended, and `meant` are shards that a
    person withdrew: they go, and raise no doubt about the source."""
    partitions = set(known)
    made = Actions(add=[name for name in seen.keys if name not in partitions])
    _drop(made, seen, known, recorded, meant)
    for name, key in seen.keys.items():
        if recorded.get(name) != key:
            _ask(made, name, key, asked.get(name), running)
    made.asked |= {name: asked[name] for name in (*seen.waiting, *seen.unreadable) if name in asked}
    if seen.unreadable:
        made.troubles.append(f"cannot be read: {first_few(list(seen.unreadable.values()), '; ')}")
    return made


def _drop(
    made: Actions, seen: Seen, known: Collection[str], recorded: Mapping[str, str], meant: Collection[str]
) -> None:
    """Shards that are gone go, unless so many went at once that the source itself is in doubt."""
    names = seen.names
    shards = list(dict.fromkeys([*known, *recorded]))
    gone = [name for name in shards if name not in names]
    elsewhere = set(seen.keys.values())
    lost = [name for name in gone if recorded.get(name) not in elsewhere and name not in meant]  # renamed is not lost
    if len(shards) >= FEW and len(lost) > MOST_GONE * len(shards):
        made.troubles.append(
            f"{len(lost)} of {counted(len(shards), 'shard')} {be(len(lost))} gone from the source, and none was"
            f" left out: {first_few(lost)}; if that is meant, run"
            " `align run` or `align backfill`, which follow the source"
        )
        made.drop = [name for name in gone if name in meant]
    else:
        made.drop = gone


def _ask(made: Actions, name: str, key: str, before: Asked | None, running: Collection[str]) -> None:
    """A run for a shard that is not current, unless one is under way or enough have failed on this content."""
    if before is not None and before.run_key in running:
        made.asked[name] = before  # it may read the new content already, and two would race for the ref
        return
    if before is not None and before.key == key and before.tries >= TRIES:
        made.asked[name] = before.model_copy(update={"given_up": True})
        if not before.given_up:
            made.given_up.append(name)
        return
    if len(made.ask) < ASKED_AT_ONCE:
        made.ask.append(name)
    elif before is not None:
        made.asked[name] = before
