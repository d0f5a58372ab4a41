"""The alias `champion` in MLflow against the champion that the store's registrations say there is."""

from __future__ import annotations

from alignment.store import Artifact, Store
from assets.champion import standing
from resources.tracking import CHAMPION, REGISTRATION_TAG, Tracking


def moved_by_hand(
    store: Store, tracking: Tracking, model: str, latest: Artifact | None, registering: str | None = None
) -> str | None:
    """What to tell a person when the alias is not where the latest registration put it; None when it is.

    `registering` is the key of a registration that may have moved it before it was cut short. Raises
    `TrackingUnreachable` when MLflow does not answer.
    """
    ours, found = standing(store, latest).version, tracking.aliased(model)
    theirs, tags = found or (None, {})
    if ours == theirs or (registering is not None and tags.get(REGISTRATION_TAG) == registering):
        return None
    where = f"on version {theirs}" if theirs else "gone"
    if ours is None:
        return f"the alias {CHAMPION} of {model} is {where}, and nothing was registered yet: somebody set it by hand"
    return (
        f"the alias {CHAMPION} of {model} is {where}, the registered champion is version {ours}: somebody moved it by"
        f" hand; `align promote {model} --to VERSION` says which it shall be"
    )
