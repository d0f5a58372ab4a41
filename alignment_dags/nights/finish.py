"""The end of a night: what it stood on, what it registered, and who is told; its costs are noted afterwards."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from alignment.errors import first_few
from alignment.recipe import Recipe
from alignment.stages.stage import ManifestSummary
from alignment.store import Commit, Store
from alignment_dags.nights.decide import Close
from alignment_dags.nights.night import Night
from alignment_dags.nights.records import NightBook
from alignment_dags.nights.state import State
from alignment_dags.retention.withdraw import withdrawn_elsewhere
from assets.building.upstream import Upstream
from assets.champion import moved_by_hand
from assets.registration import RegistrationSummary
from eval.judge.retirement import NIGHT_NOTICE, retirement
from resources.alerts import Alert, send
from resources.mlflow import Tracking, TrackingUnreachable

ALERTED = {"failed": "night_failed", "gated": "night_gated"}

log = logging.getLogger("alignment_dags.nights")


@dataclass(frozen=True)
class Ending:
    """A night that is over, and why; `state` is how the recipe stands now, None where that cannot be said."""

    night: Night
    close: Close
    at: datetime
    state: State | None


def close_night(book: NightBook, recipe: Recipe, ending: Ending) -> Night:
    """Tells of a night's end and then records it, so that an alert may come twice and is never lost."""
    closed = described(book.store, ending)
    text = sentence(closed)
    if (event := ALERTED.get(closed.outcome)) is not None:
        send(recipe.alerts, Alert(recipe.name, event, text))
    else:
        log.info("%s: night_%s: %s", recipe.name, closed.outcome, text)
    book.write(closed)
    return closed


def described(store: Store, ending: Ending) -> Night:
    """The night with its outcome, what it stood on and left out, and what it registered."""
    closed = ending.night.closed(ending.close.outcome, ending.close.reason, ending.at)
    state = ending.state
    if state is None or not closed.runs:
        return closed
    upstream = Upstream(store, closed.recipe)
    manifest, registration = upstream.get("preference_manifest"), upstream.get("registered_model")
    left_out: dict[str, str] = {}
    version = None
    if manifest is not None:
        left_out = dict(ManifestSummary.of(store.commit_of(manifest)).left_out)
    for shard in state.behind:
        left_out.setdefault(shard, "came, changed or was renamed after the manifest was pinned")
    for shard, why in {**state.unsettled, **state.unreadable}.items():
        left_out[shard] += f" ({why})"
    if registration is not None and closed.outcome == "passed":
        version = RegistrationSummary.of(store.commit_of(registration)).version
    return closed.model_copy(
        update={
            "manifest": None if manifest is None else manifest.digest,
            "left_out": left_out,
            "version": version,
        }
    )


def sentence(night: Night) -> str:
    """A closed night for a person: outcome, reason, what was left out, and what it took."""
    lines = [f"{night.told} {night.outcome}: {night.reason}"]
    if night.version is not None:
        lines.append(f"registered version {night.version}")
    if night.left_out:
        named = [f"{shard} ({why})" for shard, why in night.left_out.items()]
        lines.append(f"left out: {first_few(named)}")
    lines += night.troubles + night.elsewhere
    if night.costs is not None:
        lines.append(night.costs.told())
    return "\n".join(lines)


# A champion's alias that somebody moved by hand in MLflow: looked for at the end of every night, told of once.


def watch_alias(book: NightBook, recipe: Recipe, night: Night, tracking: Tracking) -> Night:
    """The closed night with what is wrong with the alias, which is alerted unless an earlier night found the same.

    An alias that this night's registration has put back is told of too. Where MLflow does not answer, nothing is
    noted, and the next night looks again.
    """
    latest = Upstream(book.store, recipe.name).get("registered_model")
    if latest is None:  # no alias is the recipe's yet, and MLflow need not be loaded to know
        return night
    now = None
    try:
        now = moved_by_hand(book.store, tracking, recipe.model_name, latest) or ""
    except TrackingUnreachable as error:
        log.warning("%s: the alias of the champion was not looked at: %s", recipe.name, error)
    found = now or put_back(book.store.commit_of(latest), night)
    if found and found != known(book):
        send(recipe.alerts, Alert(recipe.name, "alias_moved", found))
    if now is None:
        return night
    noted = night.model_copy(update={"alias": now})
    book.write(noted)
    return noted


def watch_judge(book: NightBook, recipe: Recipe, night: Night, now: datetime) -> Night:
    """The closed night with what there is to say of a judge that retires, which is alerted unless an earlier night
    said the same: once ahead, and once when the judge is gone."""
    warning = retirement(recipe.judge, now.date(), NIGHT_NOTICE) or ""
    before = next((one.judge for one in book.latest() if one.judge is not None), "")
    if warning and warning != before:
        send(recipe.alerts, Alert(recipe.name, "judge_retires", warning))
    noted = night.model_copy(update={"judge": warning})
    book.write(noted)
    return noted


def note_elsewhere(book: NightBook, night: Night) -> Night:
    """The closed night with what its recipe uses and other recipes have withdrawn: a recipe under a new name, say."""
    found = []
    try:
        found = withdrawn_elsewhere(book.store, night.recipe)
    except Exception as error:  # whatever it is, the night is over and its record stands
        log.warning("%s: what other recipes have withdrawn was not looked at: %s", night.recipe, error)
    if not found:
        return night
    log.warning("%s: %s", night.recipe, "; ".join(found))
    noted = night.model_copy(update={"elsewhere": found})
    book.write(noted)
    return noted


def put_back(registration: Commit, night: Night) -> str | None:
    """What a registration of this night found before it moved the alias to where it belongs."""
    moved = RegistrationSummary.of(registration).alias_moved
    made_now = datetime.fromisoformat(registration.started_at) >= night.recorded_at.replace(microsecond=0)
    return moved if moved and made_now else None


def known(book: NightBook) -> str:
    """What the last night that looked has found."""
    return next((night.alias for night in book.latest() if night.alias is not None), "")
