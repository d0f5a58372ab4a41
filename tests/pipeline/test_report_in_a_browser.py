"""The pages that people open, in a real browser: they fit a phone, fetch nothing, and leave the console silent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from alignment.recipe import Recipe, parse_recipe
from alignment_dags.registry.reports import write_report
from assets.building.upstream import Upstream
from tests.browser import WIDTHS, Look, look

SPOTLESS = Look(overrun=dict.fromkeys(WIDTHS, 0), fetched=[], console=[])


def test_the_report_and_the_history_are_whole_on_a_phone_and_on_a_screen(
    small_recipe: dict[str, Any], finished: Callable[[Recipe], Upstream], tmp_path: Path
) -> None:
    plain = small_recipe | {"gate": {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}}}
    recipe_file = tmp_path / "small.yaml"
    recipe_file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    finished(parse_recipe(plain, "-", {}))
    for history in (False, True):
        written = tmp_path / f"{history}" / "page.html"
        write_report(recipe_file, written, history=history)
        assert look(written.read_text(encoding="utf-8"), written.parent) == SPOTLESS


def test_a_page_that_is_none_of_this_is_seen(tmp_path: Path) -> None:
    seen = look('<p style="width:1000px">wide</p><img src="http://127.0.0.1:9/x.png"><script>gone()</script>', tmp_path)
    assert seen.overrun[390] > 600 and seen.overrun[1440] == 0
    assert set(seen.fetched) == {"http://127.0.0.1:9/x.png"}
    assert any("gone is not defined" in line for line in seen.console)
