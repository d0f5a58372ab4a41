"""Guards through whole runs: asset checks in Dagster's record, the report's table, the alert; planted faults in red."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from alignment.recipe import Recipe, parse_recipe
from assets.building.upstream import Upstream
from tests.loopback import receiving
from tests.pipeline.conftest import CHAT_TEMPLATE

GATE = {
    "metrics": {
        "ifeval/prompt_level_strict_acc": {"no_regression": 1.0},
        "answers/length": {"max_ratio": 50},
        "answers/distinct_4": {"at_least": 0.0},
        "policy_divergence/kl": {"at_most": 1e6},
    }
}


def checks(recipe: Recipe) -> dict[str, dg.AssetCheckEvaluation]:
    """The latest evaluation of every check of a recipe, by asset and name."""
    from assets.graph import nodes_of
    from resources.pools import load_pools

    found = {}
    with dg.DagsterInstance.get() as instance:
        for node in nodes_of(recipe, load_pools()):
            if node.name.startswith("champion_"):  # not made without a champion
                continue
            for name in node.guards.about if node.guards else ():
                key = dg.AssetCheckKey(dg.AssetKey([recipe.name, *node.name.split("/")]), name)
                summary = instance.event_log_storage.get_asset_check_summary_records([key])[key]
                record = summary.last_check_execution_record
                assert record is not None and record.event is not None, key
                found[f"{node.name}/{name}"] = record.event.dagster_event.asset_check_evaluation_data  # type: ignore[union-attr]
    return found


def test_every_guard_of_a_sound_run_is_in_dagsters_record_and_in_the_report(
    small_recipe: dict[str, Any], bring_up_to_date: Callable[[Recipe], Upstream], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = parse_recipe(small_recipe | {"gate": GATE}, "-", {})
    made = bring_up_to_date(recipe)
    found = checks(recipe)
    assert len(found) > 12
    red = {name: check.description for name, check in found.items() if not check.passed}
    # random weights on random pairs learn nothing much, ramble and expect no answer: only what says so may be red
    sayings = ("training_signs", "repetition", "distribution_shift")
    assert {name.partition("/")[2] for name in red} <= {*sayings}, red
    assert found["evaluation_report/gate"].description.startswith("pass: ")  # type: ignore[union-attr]
    assert "nats a response" in str(found["evaluation_report/divergence"].description)
    page = (made.store.fetch(made("evaluation_report")) / "report.html").read_text(encoding="utf-8")
    assert 'id="guards"' in page and "rows_<wbr>quarantined" in page and "agreement_<wbr>at_<wbr>start" in page
    assert "Tokens of an answer" in page and "Distinct 4-grams of an answer" in page


def test_planted_faults_are_found_by_their_guards_and_alerted(
    small_recipe: dict[str, Any],
    small_inputs: Path,
    bring_up_to_date: Callable[[Recipe], Upstream],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = (small_inputs / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    broken = tmp_path / "pairs.jsonl"
    broken.write_text("\n".join([*lines, *(['{"prompt": "no answer"}'] * 6)]) + "\n", encoding="utf-8")
    gate = {"metrics": {"policy_divergence/kl": {"at_most": 1e-9}}}
    faults = {
        "preferences": {"files": [str(broken)], "split_into": 2},
        "dpo": small_recipe["dpo"] | {"epochs": 4, "stop": {"eval_steps": 3, "median_margin": 1e-6}},
        "gate": gate,
        "alerts": {"webhook_env": "TEAM_WEBHOOK"},
    }
    recipe = parse_recipe(small_recipe | faults, "-", {})
    with receiving() as webhook:
        monkeypatch.setenv("TEAM_WEBHOOK", webhook.url)
        for _ in range(2):
            with pytest.raises(Exception, match="the gate says fail"):
                bring_up_to_date(recipe)
    found = checks(recipe)
    red = {name: str(check.description) for name, check in found.items() if not check.passed}
    assert red["preference_manifest/rows_quarantined"].startswith(
        "6 of 54 rows are quarantined (11.1 %), most of them for"
    )
    assert "rows are trained on for 4 epochs" in red["policy_checkpoint/training_setup"]
    assert red["policy_checkpoint/training_stopped"].startswith("stopped at step ")
    assert red["evaluation_report/gate"].startswith("fail: policy_divergence/kl: ")
    assert found["evaluation_report/gate"].severity == dg.AssetCheckSeverity.ERROR
    assert found["preference_manifest/rows_dropped"].passed and found["policy_responses/answers_missing"].passed
    alerts = [body["text"] for body in webhook.bodies if body["event"] == "guard_failed"]
    posted = "\n".join(alerts)
    for name, text in red.items():
        stage, _, guard = name.partition("/")
        told = f"the guard {guard} of {stage} is red; nothing is stopped by it\n  it saw: {text}\n  it expects: "
        assert posted.count(told) == (0 if guard == "gate" else 1), "once, though the run was repeated"
    assert posted.count("the guard ") == len(red) - 1
    assert {body["recipe"] for body in webhook.bodies} == {"small"}


def test_a_template_without_an_end_is_found_by_its_own_guard_and_no_other(
    small_recipe: dict[str, Any], bring_up_to_date: Callable[..., Upstream]
) -> None:
    red = []
    for template in (CHAT_TEMPLATE, CHAT_TEMPLATE.replace(" + eos_token", "")):
        model = small_recipe["base_model"] | {"chat_template": template}
        planted = small_recipe | {"base_model": model, "sft": small_recipe["sft"] | {"adopt": model}}
        recipe = parse_recipe(planted, "-", {})
        bring_up_to_date(recipe)
        red.append({name: str(check.description) for name, check in checks(recipe).items() if not check.passed})
    sound, broken = red
    assert set(broken) - set(sound) == {"policy_checkpoint/training_setup"}, broken
    told = broken["policy_checkpoint/training_setup"]
    assert "the chat template puts none of the checkpoint's ends behind an answer" in told
