"""A recipe's latest nights as plain data."""

from __future__ import annotations

from itertools import islice
from typing import Any

from alignment.recipe import Recipe
from alignment.store import Store
from alignment_dags.nights.book import NightBook


def latest_nights(store: Store, recipe: Recipe, last: int) -> dict[str, Any]:
    """The last nights, the latest first; `took` is what a night cost in one line, None where it launched nothing."""
    schedule = recipe.schedule
    return {
        "recipe": recipe.name,
        "schedule": None if schedule is None else f"{schedule.cron} {schedule.timezone}",
        "nights": [
            {**night.model_dump(mode="json"), "id": night.id, "took": night.costs.told() if night.costs else None}
            for night in islice(NightBook(store, recipe.name).latest(), last)
        ],
    }
