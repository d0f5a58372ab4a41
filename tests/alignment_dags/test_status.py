"""`align status`: what it says of every recipe, and how little it reads for that."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.recipe import load_recipe
from alignment.stages import execute
from alignment.store import Ref
from alignment_dags.nights.night import Night
from alignment_dags.nights.records import NightBook
from alignment_dags.run.workspace import Workspace
from alignment_dags.status import ago, show_status, status
from resources.home import ensure_home
from resources.pools import load_pools
from resources.store import ArtifactStore

NOW = datetime(2026, 11, 28, 10, 0, tzinfo=UTC)
PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}


def write_recipe(folder: Path, name: str, shards: int, **more: Any) -> Path:
    data = folder / name
    data.mkdir()
    for shard in range(shards):
        (data / f"s{shard:03d}.jsonl").write_text(json.dumps(PAIR | {"prompt": f"{name} {shard}"}) + "\n")
    recipe: dict[str, Any] = {
        "name": name,
        "base_model": {"embedded": "micro"},
        "sft": {"dataset": {"embedded": "micro"}},
        "preferences": {"files": [str(data)], "settle_seconds": 0},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe | more))
    return path


def make(path: Path, phases: tuple[str, ...] = ("base", "shards", "reference")) -> None:
    """Commits what the phases would make: records with the right keys, and no content."""
    workspace = Workspace(load_recipe(path), load_pools())
    store, name = workspace.store, workspace.recipe.name
    for phase in workspace.phases:
        for node in phase.nodes if phase.name in phases else ():
            upstream = replace(workspace).upstream()
            shards = list(upstream.shards(workspace.recipe)) if node.partitioned else [None]
            for shard in shards:
                request = node.request(upstream, shard)
                commit = store.commit(
                    store.begin(node.stage.kind, node.stage.key(request)),
                    digest=f"{name} {node.name} {shard}",
                    stage=node.stage.name,
                    code_version=node.stage.code_version,
                    inputs={},
                    summary={"fingerprint": "f"},
                    environment={"recipe": name},
                    started_at="2026-11-20T02:00:00+00:00",
                    seconds=1.0,
                )
                store.write_ref(Ref(artifact=commit.artifact, mlflow_run_id="m"), name, node.name, shard)


@contextmanager
def counted_opens(folder: Path) -> Iterator[Counter[str]]:
    """The files under a folder that this process opens meanwhile, by their place below it."""
    opened: Counter[str] = Counter()
    counting = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if counting[0] and event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(str(folder)):
            opened[arguments[0].removeprefix(f"{folder}/")] += 1

    sys.addaudithook(hook)  # stays for the life of the process, and counts only here
    try:
        yield opened
    finally:
        counting[0] = False


def test_a_thousand_current_shards_cost_a_few_small_files_each_and_no_artifact(home: Path, tmp_path: Path) -> None:
    ensure_home()
    recipes, shards = 4, 25
    paths = [write_recipe(tmp_path, f"r{number}", shards) for number in range(recipes)]
    for path in paths:
        make(path)
    status(paths, NOW)
    with counted_opens(home / "align") as first:
        told = status(paths, NOW)
    assert [one["shards"] for one in told["recipes"]] == [shards] * recipes
    assert not [stage for one in told["recipes"] for stage in one["stale"] if "shards" in stage]
    kinds = Counter("/".join(path.split("/")[:2]) for path in first)
    assert len(first) <= recipes * (3 * shards + 20), kinds  # two refs and one remembered digest a shard
    assert not [path for path in first if "preference_shard/" in path and "refs/" not in path]


def test_status_says_what_is_stale_and_why(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ensure_home()
    path = write_recipe(tmp_path, "one", 3, schedule={"cron": "0 2 * * *", "timezone": "Europe/Berlin"})
    (new,) = status([path], NOW)["recipes"]
    assert (new["state"], new["champion"], new["last_night"]) == ("new", None, None)
    assert new["next_night"] == "2026-11-29T02:00+01:00"
    make(path)
    policy = next(node for node in Workspace(load_recipe(path), load_pools()).nodes if node.name == "policy_checkpoint")
    store = ArtifactStore().open()
    sft = store.read_ref("one", "sft_checkpoint")
    assert sft is not None
    store.write_ref(sft, "one", policy.name)  # some policy
    night = Night(
        recipe="one",
        scheduled_at=NOW - timedelta(hours=9),
        recorded_at=NOW,
        deadline_minutes=1,
        outcome="failed",
        reason="out of memory",
    )
    NightBook(store, "one").add(night)
    (tmp_path / "one" / "s001.jsonl").write_text(json.dumps(PAIR | {"prompt": "another"}) + "\n")
    (tmp_path / "one" / "s003.jsonl").write_text(json.dumps(PAIR | {"prompt": "new"}) + "\n")
    told = status([path], NOW)
    (one,) = told["recipes"]
    assert one["state"] == "stale"
    assert one["stale"]["2 shards new or changed"] == "s001, s003"
    assert one["last_night"] == {"at": "2026-11-28T01:00+00:00", "outcome": "failed", "reason": "out of memory"}
    show_status(told)
    out = capsys.readouterr().out
    assert "one: 2 shards new or changed: s001, s003" in out and "2026-11-28T01:00 failed" in out
    assert len(out.splitlines()) < 24, "one screen"


def test_a_setting_that_changed_is_named_with_both_values(home: Path, tmp_path: Path) -> None:
    ensure_home()
    path = write_recipe(tmp_path, "one", 1)
    workspace = Workspace(load_recipe(path), load_pools())
    node = next(node for node in workspace.nodes if node.name == "sft_dataset")
    commit = execute(node.stage, node.request(workspace.upstream(), None), workspace.store)
    workspace.store.write_ref(Ref(artifact=commit.artifact, mlflow_run_id="m"), "one", node.name)
    path.write_text(path.read_text() + "seed: 5\n")
    (one,) = status([path], NOW)["recipes"]
    assert one["stale"]["sft_dataset"] == "seed 0 → 5"
    assert one["stale"]["base_model"] == "never made"


def test_a_recipe_with_a_mistake_does_not_hide_the_others(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_home()
    write_recipe(tmp_path, "good", 1)
    write_recipe(tmp_path, "bad", 1, dop={})
    (tmp_path / "torn.yaml").write_text("name: [\n")
    monkeypatch.setenv("ALIGN_RECIPES", str(tmp_path / "*.yaml"))
    told = {one["name"]: one for one in status([], NOW)["recipes"]}
    assert told["torn"]["state"] == "bad" and "malformed YAML" in told["torn"]["problem"]
    assert told["bad"]["state"] == "bad" and "did you mean dpo?" in told["bad"]["problem"]
    assert told["good"]["state"] == "new" and told["good"]["problem"] is None


@pytest.mark.parametrize(("seconds", "words"), [(5, "5 s"), (600, "10 min"), (7200, "2.0 h"), (3 * 86400, "3 days")])
def test_an_age_is_told_as_people_do(seconds: float, words: str) -> None:
    assert ago(seconds) == words


def test_status_imports_no_model_library(tmp_path: Path) -> None:
    ensure_home()
    path = write_recipe(tmp_path, "one", 1)
    code = (
        f"import sys; sys.argv = ['align', 'status', {str(path)!r}]\n"
        "from alignment_dags.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = 'torch transformers trl mlflow pandas lm_eval'.split()\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "one" in told.stdout and told.stderr.splitlines()[-1] == "[]"
