"""The quickstart as a person runs it: what it prints, that it ends, and that its gain comes from the labels."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.quickstart.records import preference_records
from resources.home import PROJECT

RECIPE = PROJECT / "recipes" / "quickstart.yaml"


class Project:
    """A home of its own, and `align` in it."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.command = command
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ALIGN_", "MLFLOW_"))}
        self.environment = kept | {"ALIGN_HOME": str(folder / "align"), "DAGSTER_HOME": str(folder / "dagster")}
        self.folder = folder

    def align(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Exit code and the one JSON object on stdout."""
        told = subprocess.run(
            [*self.command, *arguments, "--json"], env=self.environment, capture_output=True, text=True, check=False
        )
        assert told.stdout.count("\n") == 1, told.stdout + told.stderr
        return told.returncode, json.loads(told.stdout)


@pytest.fixture(scope="module")
def project(align_command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    yield Project(align_command, tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="module")
def first(project: Project) -> dict[str, Any]:
    code, told = project.align("run", str(RECIPE))
    assert code == 0, told
    return told


def test_the_policy_beats_its_baseline_on_a_suite_and_regresses_on_none(first: dict[str, Any]) -> None:
    rows = [(suite, one) for suite, metrics in first["comparisons"].items() for one in metrics.values()]
    assert {suite for suite, _ in rows} == {"gsm8k", "ifeval", "mt_bench", "preferences"}
    assert all(one["n"] >= 200 or suite in ("mt_bench", "preferences") for suite, one in rows)
    assert first["comparisons"]["mt_bench"]["turn_1"]["n"] >= 80
    assert any(one["ci95"][0] > 0 for _, one in rows)
    assert not any(one["verdict"] == "regressed" for _, one in rows)
    assert first["verdict"] == "pass"
    assert first["registered"]["version"] == "1"
    assert Path(first["report"].removeprefix("file://")).is_file()


def test_a_second_run_has_nothing_to_do(project: Project, first: dict[str, Any]) -> None:
    code, told = project.align("run", str(RECIPE))
    assert code == 0
    assert first["dagster_runs"]
    assert told["dagster_runs"] == []
    assert told["comparisons"] == first["comparisons"]


def test_lineage_from_commit_records_is_that_from_mlflow(project: Project, first: dict[str, Any]) -> None:
    _, store = project.align("lineage", "quickstart")
    _, mlflow = project.align("lineage", "quickstart@1", "--from", "mlflow")
    assert store["tree"] == mlflow["tree"]
    assert store["shards"] == mlflow["shards"]
    assert [shard["name"] for shard in store["shards"]] == ["day-1", "day-2", "day-3"]
    assert sum(shard["rows"] for shard in store["shards"]) == first["rows"]["rows"]


@pytest.mark.soak
def test_with_shuffled_labels_the_gain_is_gone_and_the_gate_refuses(project: Project, first: dict[str, Any]) -> None:
    data = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    flip = random.Random(0)
    for day in range(3):
        records = preference_records(day, data["seed"])
        for record in records:
            if flip.random() < 0.5:
                record["chosen"], record["rejected"] = record["rejected"], record["chosen"]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (project.folder / f"day-{day}.jsonl").write_text(lines, encoding="utf-8")
    data |= {"name": "shuffled", "preferences": {"files": [str(project.folder / "day-*.jsonl")]}}
    path = project.folder / "shuffled.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")

    code, told = project.align("run", str(path))

    assert code == 1
    assert told["verdict"] != "pass"
    assert told["registered"] is None
    left = {
        (suite, name): one["ci95"] for suite, metrics in told["comparisons"].items() for name, one in metrics.items()
    }
    assert left.keys() == {(suite, name) for suite, metrics in first["comparisons"].items() for name in metrics}
    assert {place: interval for place, interval in left.items() if interval[0] > 0} == {}
