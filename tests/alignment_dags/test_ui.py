"""`make ui`: both pages come up on this project's home, and nothing is left when it ends."""

from __future__ import annotations

import json
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

from resources.home import PROJECT, ensure_home
from resources.pools import load_pools
from tests.loopback import answers, free_port

pytestmark = pytest.mark.soak

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


def test_both_pages_come_up_with_schedule_sensors_and_pools_and_all_processes_end_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.setenv("ALIGN_RECIPES", str(tmp_path / "small.yaml"))
    dagster, mlflow = free_port(), free_port()
    monkeypatch.setenv("ALIGN_DAGSTER_PORT", str(dagster))
    monkeypatch.setenv("ALIGN_MLFLOW_PORT", str(mlflow))
    ui = subprocess.Popen([sys.executable, "-m", "alignment_dags.ui"], cwd=PROJECT)
    try:
        for url in (f"http://127.0.0.1:{dagster}/server_info", f"http://127.0.0.1:{mlflow}/health"):
            while not answers(url):
                assert ui.poll() is None
                time.sleep(0.2)
        names = loaded(dagster)
        assert names["schedules"] == ["small_night"]
        assert set(names["sensors"]) == {"automation", "small_night_sensor", "small_source"}
        below = psutil.Process(ui.pid).children(recursive=True)
        assert len(below) >= 3
    finally:
        ui.send_signal(signal.SIGTERM)
    assert ui.wait() == 0
    gone, alive = psutil.wait_procs(below, timeout=300)
    assert alive == []
    assert gone
    ensure_home()
    with dg.DagsterInstance.get() as instance:
        limits = {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}
    assert limits == {name: pool.slots for name, pool in load_pools().pools.items()}
