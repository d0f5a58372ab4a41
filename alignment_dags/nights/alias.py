"""A champion's alias that somebody moved by hand in MLflow: looked for at the end of every night, told of once."""

from __future__ import annotations

import logging
from datetime import datetime

from alignment.recipe import Recipe
from alignment.store import Commit
from alignment_dags.nights.book import NightBook
from alignment_dags.nights.night import Night
from assets.building.upstream import Upstream
from assets.champion import moved_by_hand
from resources.alerts import Alert, send
from resources.mlflow import Tracking, TrackingUnreachable

log = logging.getLogger("alignment_dags.nights")


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


def put_back(registration: Commit, night: Night) -> str | None:
    """What a registration of this night found before it moved the alias to where it belongs."""
    told = registration.summary.get("alias_moved")
    made_now = datetime.fromisoformat(registration.started_at) >= night.recorded_at.replace(microsecond=0)
    return str(told) if told and made_now else None


def known(book: NightBook) -> str:
    """What the last night that looked has found."""
    return next((night.alias for night in book.latest() if night.alias is not None), "")
