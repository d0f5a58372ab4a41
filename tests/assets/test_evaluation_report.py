"""The report's request: made anew where scores lack items, under its old key where they do not."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.recipe import parse_recipe
from alignment.stages import Context, Request, Result, Stage, execute
from alignment.store import Ref, Store
from assets.building.upstream import Upstream
from assets.evaluation_report import evaluation_report
from eval.gate.evidence import ReportRequest
from resources.pools import load_pools

WHOLE = {"failed": 0, "missing": 0, "unparsable": 0, "unjudged": 0}


class Made(Request):
    name: str


@pytest.mark.parametrize(
    ("model", "lost", "incomplete"),
    [
        ("sft", {}, False),
        ("sft", {"failed": 1}, True),
        ("policy", {"unjudged": 2}, True),
        ("policy", {"unparsable": 1}, True),
    ],
)
def test_a_request_says_whether_some_scores_lack_items(
    store: Store, model: str, lost: dict[str, int], incomplete: bool
) -> None:
    embedded: dict[str, Any] = {"embedded": "micro"}
    recipe = parse_recipe(
        {
            "name": "small",
            "base_model": embedded,
            "sft": {"dataset": embedded},
            "preferences": embedded,
            "evals": {"ifeval": embedded},
        },
        "r",
        {},
    )
    node = evaluation_report(recipe, load_pools())
    for name in node.needs:
        summary = WHOLE | (lost if name == f"{model}_evals/ifeval" else {})

        def run(request: Made, context: Context, summary: dict[str, int] = summary) -> Result:
            return Result(request.name, dict(summary))

        made = execute(Stage(name.partition("/")[0], 1, Made, run), Made(name=name), store)
        store.write_ref(Ref(artifact=made.artifact), "small", name)
    request = node.request(Upstream(store, "small"), None)
    assert isinstance(request, ReportRequest)
    assert request.incomplete is incomplete
    assert ("incomplete" in request.identity()) is incomplete
