"""`make ui`: both pages come up on this project's home, and nothing is left when it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from alignment.errors import BadInput
from alignment.recipe import load_recipe
from alignment.store import Artifact, Ref, Store
from alignment_dags.recipes import RECIPES, derive, recipe_file, recipes_in_use, remember
from alignment_dags.ui import Server, choose_recipes, servers
from resources.home import PROJECT, ensure_home
from resources.pools import load_pools
from tests.loopback import answers, free_port, speaking_no_http

RECIPE = """
name: small
base_model: {embedded: micro}
sft: {dataset: {embedded: micro}}
preferences: {embedded: micro}
schedule: {cron: 0 2 1 1 *}
"""
SCHEDULED = "{repositoriesOrError{... on RepositoryConnection{nodes{schedules{name} sensors{name}}}}}"


def loaded(port: int) -> dict[str, list[str]]:
    """Names of the schedules and sensors that the webserver shows."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        json.dumps({"query": SCHEDULED}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        nodes: list[dict[str, Any]] = json.load(answer)["data"]["repositoriesOrError"]["nodes"]
    return {kind: [one["name"] for node in nodes for one in node[kind]] for kind in ("schedules", "sensors")}


def ui(*arguments: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "alignment_dags.ui", *arguments], cwd=PROJECT, text=True, stdout=subprocess.PIPE, **more
    )


def test_help_starts_nothing_and_names_the_ports(home: Path) -> None:
    asked = ui("--help")
    told, _ = asked.communicate(timeout=300)
    assert asked.returncode == 0
    assert "ALIGN_DAGSTER_PORT (3000)" in told and "ALIGN_MLFLOW_PORT (5000)" in told
    assert not (home / "align").exists()


def test_a_port_that_is_none_is_named_before_anything_starts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_MLFLOW_PORT", "seventy")
    asked = ui(stderr=subprocess.PIPE)
    _, told = asked.communicate(timeout=300)
    assert asked.returncode == 2
    assert told == "error: field 'ALIGN_MLFLOW_PORT': 'seventy' is no port: expected a number from 1 to 65535\n"
    assert not (home / "align").exists()


@pytest.mark.parametrize("variable", ["ALIGN_DAGSTER_PORT", "ALIGN_MLFLOW_PORT"])
def test_a_port_that_is_taken_is_named_before_anything_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Where another program's page answered, its address would be printed as ours."""
    for name in ("ALIGN_DAGSTER_PORT", "ALIGN_MLFLOW_PORT"):
        monkeypatch.setenv(name, str(free_port()))
    with speaking_no_http() as port:
        monkeypatch.setenv(variable, str(port))
        asked = ui(stderr=subprocess.PIPE)
        _, told = asked.communicate(timeout=300)
        assert asked.returncode == 2
        why = f"no server can listen on port {port}: Address already in use; give another port"
        assert told == f"error: field '{variable}': {why}\n"
        assert not (home / "align").exists()
        if variable == "ALIGN_MLFLOW_PORT":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
            assert len(servers(free_port(), port)) == 1, "and its port is nobody's concern where MLflow is elsewhere"


def test_another_programs_port_is_not_ready() -> None:
    """It may take the port between the look at it and the start of ours."""
    with speaking_no_http() as port:
        assert not Server("Dagster", [], "", f"http://127.0.0.1:{port}/server_info").is_ready()


def test_recipes_that_never_ran_are_shown_only_if_asked_for_or_scheduled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "store"))
    others = sorted(recipe.name for recipe in recipes_in_use().values() if recipe.name != "quickstart")
    monkeypatch.setenv(RECIPES, "")  # put back at the end
    assert len(others) > 2 and choose_recipes(store) == [], "a new home shows all"
    assert not os.environ[RECIPES]
    artifact = Artifact(kind="policy_checkpoint", key="k" * 40, attempt="a", digest="d" * 64)
    store.write_ref(Ref(artifact=artifact), others[0], "policy_checkpoint", None)
    assert choose_recipes(store) == others[1:], "the quickstart has a schedule"
    assert {recipe.name for recipe in recipes_in_use().values()} == {"quickstart", others[0]}
    monkeypatch.setenv(RECIPES, "")
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "align"))
    derived = derive(PROJECT / "recipes" / "quickstart.yaml", ["optimise.beta=0.5"], "stronger")
    derive(PROJECT / "recipes" / "quickstart.yaml", ["optimise.beta=0.6"], "never_run")
    (derived.parent / "broken.yaml").write_text("name: [")
    store.write_ref(Ref(artifact=artifact), "stronger", "policy_checkpoint", None)
    own = tmp_path / "elsewhere" / "own.yaml"
    own.parent.mkdir()
    own.write_text(RECIPE.replace("name: small", "name: own"), encoding="utf-8")
    remember(own, load_recipe(own))
    store.write_ref(Ref(artifact=artifact), "own", "policy_checkpoint", None)
    assert choose_recipes(store) == others[1:]
    assert {recipe.name for recipe in recipes_in_use().values()} == {"quickstart", others[0], "stronger", "own"}
    assert recipe_file(Path("own")) == own
    with pytest.raises(BadInput, match=r"'own' is the name of .*own\.yaml; give another"):
        derive(own, ["seed=1"], "own")
    own.unlink()
    with pytest.raises(BadInput, match="no such recipe"):
        recipe_file(Path("own"))
    monkeypatch.setenv(RECIPES, str(PROJECT / "recipes" / "*.yaml"))
    assert choose_recipes(store) == [] and len(recipes_in_use()) == len(others) + 1


@pytest.mark.soak
def test_a_word_to_end_while_the_pages_start_ends_them_quietly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.setenv("ALIGN_RECIPES", str(tmp_path / "small.yaml"))
    for variable in ("ALIGN_DAGSTER_PORT", "ALIGN_MLFLOW_PORT"):
        monkeypatch.setenv(variable, str(free_port()))
    started = ui(stderr=subprocess.PIPE)
    assert started.stdout is not None
    assert started.stdout.readline().startswith("Dagster and MLflow: starting")
    while len(psutil.Process(started.pid).children(recursive=True)) < 3:  # Dagster has begun to start its own
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    out, error = started.communicate(timeout=300)
    assert started.returncode == 0
    assert "http://" not in out, "no address was printed that never answered"
    assert "Traceback" not in error


@pytest.mark.soak
def test_both_pages_come_up_with_schedule_sensors_and_pools_and_all_processes_end_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.setenv("ALIGN_RECIPES", str(tmp_path / "small.yaml"))
    dagster, mlflow = free_port(), free_port()
    monkeypatch.setenv("ALIGN_DAGSTER_PORT", str(dagster))
    monkeypatch.setenv("ALIGN_MLFLOW_PORT", str(mlflow))
    started = ui()
    assert started.stdout is not None
    try:
        addresses = [started.stdout.readline() for _ in range(3)][1:]
        assert sorted(addresses) == [
            f"Dagster: http://127.0.0.1:{dagster}\n",
            f"MLflow: http://127.0.0.1:{mlflow}/#/experiments?workflowType=machine_learning\n",
        ]
        for url in (f"http://127.0.0.1:{dagster}/server_info", f"http://127.0.0.1:{mlflow}/health"):
            assert answers(url), "an address is printed when it answers"
        names = loaded(dagster)
        assert names["schedules"] == ["small_night"]
        assert set(names["sensors"]) == {"automation", "small_night_sensor", "small_source"}
        below = psutil.Process(started.pid).children(recursive=True)
        assert len(below) >= 3
    finally:
        started.send_signal(signal.SIGTERM)
    assert started.wait() == 0
    gone, alive = psutil.wait_procs(below, timeout=300)
    assert alive == []
    assert gone
    ensure_home()
    with dg.DagsterInstance.get() as instance:
        limits = {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}
    assert limits == {name: pool.slots for name, pool in load_pools().pools.items()}
