"""Guards as Dagster's asset checks: declared, green and red, reported for a reused artifact too, alerted once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from alignment.guards import Guard, Guards
from alignment.recipe import parse_recipe
from alignment.stages import Context, Request, Result, Stage
from alignment.store import Commit, Store
from assets.building.factory import asset_key, asset_resources, build_asset
from assets.building.node import Node, NotNeeded
from assets.building.upstream import Upstream
from assets.graph import nodes_of
from resources.home import ensure_home
from resources.pools import load_pools

EMBEDDED: dict[str, Any] = {"embedded": "micro"}


def recipe(**changes: Any) -> Any:
    plain = {"name": "small", "base_model": EMBEDDED, "sft": {"dataset": EMBEDDED}, "preferences": EMBEDDED}
    return parse_recipe(plain | changes, "-", {})


class Number(Request):
    value: int


def run(request: Number, context: Context) -> Result:
    (context.out / "value.txt").write_text(str(request.value), encoding="utf-8")
    return Result(str(request.value), {"value": request.value})


def find(store: Store, commit: Commit, deep: bool) -> list[Guard]:
    value = commit.summary["value"]
    small = Guard("small", value < 10, f"the value is {value}", {"value": value})
    return [small, Guard("even", value % 2 == 0, "by two", severity="error"), Guard("gate", value < 10, "said no")]


def node(value: int | None) -> Node:
    def request(upstream: Upstream, shard: str | None) -> Number:
        if value is None:
            raise NotNeeded("no champion yet")
        return Number(value=value)

    return Node(
        name="number",
        phase="train",
        stage=Stage("number", 1, Number, run),
        description="A number.",
        kinds=frozenset(),
        needs=(),
        request=request,
        guards=Guards(
            {"small": "Below ten.", "even": "By two.", "gate": "A verdict."}, find, {"small": "take a smaller one"}
        ),
    )


def materialized(value: int | None) -> dict[str, dg.AssetCheckEvaluation]:
    ensure_home()
    asset = build_asset(node(value), recipe(), load_pools())
    with dg.DagsterInstance.get() as instance:
        done = dg.materialize([asset], instance=instance, resources=asset_resources())
    assert done.success
    return {check.check_name: check for check in done.get_asset_check_evaluations()}


def test_each_guard_is_a_check_with_its_sentence_and_a_reused_artifact_reports_its_checks_too(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        checks = materialized(12)
        assert {name: check.passed for name, check in checks.items()} == {"small": False, "even": True, "gate": False}
        assert checks["small"].description == "the value is 12" and checks["small"].severity.name == "WARN"
        assert checks["small"].metadata["value"].value == 12.0
        assert checks["even"].asset_key == asset_key("small", "number") and checks["even"].severity.name == "ERROR"
    assert materialized(4)["small"].passed
    alerts = [record.getMessage() for record in caplog.records if record.name == "alignment_dags.alerts"]
    (alert,) = alerts  # once, and not for the gate
    assert alert.rpartition(" - ")[2].splitlines() == [  # behind what Dagster puts before each line of a step
        "small: the guard small of number is red; nothing is stopped by it (alert guard_failed)",
        "  it saw: the value is 12",
        "  it expects: Below ten.",
        "  what to do: take a smaller one",
    ]


def test_a_node_with_nothing_to_make_has_nothing_to_check(home: Path) -> None:
    checks = materialized(None)
    assert {check.description for check in checks.values()} == {"nothing to check: no champion yet"}
    assert all(check.passed for check in checks.values())


def test_the_graph_of_a_recipe_declares_its_guards() -> None:
    made = recipe(evals={"ifeval": EMBEDDED}, gate="default")
    assets = [build_asset(each, made, load_pools()) for each in nodes_of(made, load_pools())]
    declared = {key.to_user_string() for asset in assets for key in asset.check_keys}
    assert {
        "small/evaluation_report:gate",
        "small/evaluation_report:answer_length",
        "small/policy_checkpoint:agreement_at_start",
        "small/policy_checkpoint:training_stopped",
        "small/policy_responses:answers_missing",
        "small/preference_manifest:rows_quarantined",
        "small/preference_manifest:rows_dropped",
    } <= declared
