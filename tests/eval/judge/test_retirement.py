"""Judges that are gone or announced to go are told of ahead, and no shipped recipe names one."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest
import yaml

from alignment.recipe import Judge, load_recipe
from alignment.store import Artifact
from eval.judge.retirement import DAYS, NIGHT_NOTICE, retirement, retires
from eval.stages.scores import STAGE, ScoresRequest
from eval.suites import SuiteSpec
from resources.home import PROJECT
from resources.pools import pools_file

SHIPPED = sorted(set((PROJECT / "recipes").glob("*.yaml")) - {pools_file()})
DAY = date(2027, 1, 14)


def judge(model: str = "m", **more: object) -> Judge:
    return Judge.model_validate({"kind": "openai", "model": model, **more})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_shipped_recipe_names_a_judge_that_is_gone_or_announced_to_go(path: Path) -> None:
    found = load_recipe(path, {})
    assert retires(found.judge) is None
    if found.judge is not None and found.judge.kind == "openai":
        assert found.judge.base_url is not None, "an endpoint of somebody else's may retire any model"
        assert found.judge.model not in DAYS


def test_the_judges_of_published_figures_are_known_to_be_gone() -> None:
    for model in ("gpt-4", "gpt-4-0613", "gpt-4-1106-preview", "gpt-4-turbo"):
        told = retirement(judge(model), date(2026, 11, 28))
        assert told is not None and told.startswith(
            f"the judge {model} has been retired since 2026-10-23: name another"
        )
    assert retires(judge("gpt-4o-2024-11-20")) == retires(judge("ft:gpt-4o-2024-11-20:team::id")) == DAY
    assert retires(judge("gpt-4o-2024-11-20", base_url="https://api.openai.com/v1")) == DAY


def test_a_model_of_that_name_elsewhere_and_the_rubric_do_not_retire() -> None:
    assert retires(judge("gpt-4", base_url="http://judge:8000/v1")) is None
    assert retires(Judge(kind="rubric")) is None and retires(None) is None
    assert retirement(judge(), date.max) is None


@pytest.mark.parametrize(
    ("today", "told"),
    [
        (DAY - timedelta(days=31), None),
        (DAY - timedelta(days=30), "the judge m retires on 2027-01-14"),
        (DAY - timedelta(days=1), "the judge m retires on 2027-01-14"),
        (DAY, "the judge m has been retired since 2027-01-14"),
        (DAY + timedelta(days=300), "the judge m has been retired since 2027-01-14"),
    ],
)
def test_a_recipes_own_date_is_told_of_from_the_notice_on(today: date, told: str | None) -> None:
    found = retirement(judge(retires="2027-01-14"), today, NIGHT_NOTICE)
    assert found == told or (told is not None and found is not None and found.startswith(f"{told}: "))
    assert retires(judge("gpt-4", retires="2030-01-01")) == date(2030, 1, 1), "it knows better than the table"


def test_the_date_is_read_from_yaml_and_is_no_part_of_any_key() -> None:
    written = yaml.safe_load("{kind: openai, model: m, retires: 2027-01-14}")
    dated, plain = Judge.model_validate(written), judge()
    assert dated.retires == DAY and dated != plain

    def key(one: Judge) -> str:
        answers = Artifact(kind="responses", key="k", attempt="a", digest="d")
        suite = SuiteSpec(name="mt_bench", embedded="micro", max_new_tokens=8)
        return STAGE.key(ScoresRequest(responses=answers, suite=suite, judge=one, seed=0))

    assert key(dated) == key(plain)
