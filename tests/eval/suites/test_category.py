from __future__ import annotations

from typing import Any

import pytest

from eval.report.facts import categories_of
from eval.suites.suite import category_of

HARM = {"violence": True, "abuse": True, "theft": False}


@pytest.mark.parametrize(
    ("given", "name"),
    [("writing", "writing"), (HARM, "abuse, violence"), ({"theft": False}, None), ({}, None), ("", None), (None, None)],
)
def test_a_category_is_a_name_or_those_that_are_marked_true(given: Any, name: str | None) -> None:
    assert category_of({"category": given}) == name


def test_items_without_a_category_stand_in_none() -> None:
    items = {"1": {"category": HARM}, "2": {"category": {"theft": False}}, "3": {}, "4": {"category": "math"}}
    assert categories_of(items) == {"1": "abuse, violence", "4": "math"}
