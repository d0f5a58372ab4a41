"""A small recipe, and the moments of its nights."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from alignment.recipe import Recipe

TWO = datetime(2026, 11, 20, 2, tzinfo=UTC)
DAY = timedelta(days=1)
RECIPE = Recipe.model_validate(
    {
        "name": "small",
        "base_model": {"embedded": "micro"},
        "sft": {"dataset": {"embedded": "micro"}},
        "preferences": {"embedded": "micro"},
    }
)
