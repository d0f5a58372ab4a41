"""The graph on a store that is no folder: nothing of it is on this machine but copies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from alignment.recipe import Recipe, parse_recipe
from alignment_dags.run.plan import plan
from alignment_dags.run.workspace import Workspace
from assets.building.upstream import Upstream
from resources.home import align_home
from resources.pools import load_pools


def test_a_whole_run_on_s3_stands_without_the_copies(
    small_recipe: dict[str, Any],
    bring_up_to_date: Callable[[Recipe], Upstream],
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALIGN_STORE", f"{s3}/whole")
    recipe = parse_recipe(small_recipe, "-", {})
    made = bring_up_to_date(recipe)
    assert made.store.uri(made("policy_checkpoint")).startswith(f"{s3}/whole/policy_checkpoint/")
    assert not (align_home() / "store").exists()
    assert {one.state for one in plan(Workspace(recipe, load_pools(), lambda: made.store))} == {"current"}

    shutil.rmtree(align_home() / "cache")
    launched = len(bring_up_to_date.launched)  # type: ignore[attr-defined]
    again = bring_up_to_date(recipe)
    assert len(bring_up_to_date.launched) == launched  # type: ignore[attr-defined]
    for name in ("policy_checkpoint", "evaluation_report"):
        assert again(name) == made(name)
        assert list(again.store.fetch(again(name), deep=True).iterdir())
