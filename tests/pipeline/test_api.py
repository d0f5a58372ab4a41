"""The Python API on a finished run: its tables are those of the store, and its page runs as written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from alignment.data.rows import read_rows
from alignment.errors import BadInput
from alignment.recipe import load_recipe
from alignment_dags import api
from alignment_dags.registry.compare import compare
from alignment_dags.registry.lineage import lineage_of
from alignment_dags.run.launch import RunFailed
from assets.building.upstream import Upstream
from resources.home import PROJECT

PASSES = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}}
PAGE = PROJECT / "docs" / "api.md"


@pytest.fixture
def recipe_path(small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small recipe under the quickstart's name, in use, with a gate that it passes."""
    path = tmp_path / "quickstart.yaml"
    path.write_text(yaml.safe_dump(small_recipe | {"name": "quickstart", "gate": PASSES}), encoding="utf-8")
    monkeypatch.setenv("ALIGN_RECIPES", str(path))
    return path


@pytest.fixture
def upstream(recipe_path: Path, finished: Callable[..., Upstream]) -> Upstream:
    return finished(load_recipe(recipe_path))


def test_rows_and_log_probs_are_those_that_the_manifest_pins(upstream: Upstream) -> None:
    project = api.open("quickstart")
    rows, logprobs = project.rows(), project.logprobs()
    stored = [
        (shard, row)
        for shard in upstream.shards(load_recipe(Path(str(project.file))))
        for row in read_rows(upstream.store.fetch(upstream("preference_shard", shard)) / "rows.parquet")
    ]
    assert sorted(rows["row_id"]) == sorted(row.row_id for _, row in stored)
    by_id = rows.set_index("row_id")
    for shard, row in stored:
        assert by_id.loc[row.row_id, "shard"] == shard
        assert by_id.loc[row.row_id, "prompt"] == list(row.prompt)
        assert by_id.loc[row.row_id, "chosen"] == list(row.chosen or ())
    assert "completion" not in rows and "reason" in rows
    counts = rows["split"].value_counts()
    commit = upstream.store.commit_of(upstream("preference_manifest"))
    assert {name: commit.summary[name] for name in counts.index} == counts.to_dict()
    assert len(logprobs) == 48 and np.isfinite(logprobs["chosen_logp"]).all()
    shard = rows["shard"].iloc[0]
    assert set(project.rows(shard)["row_id"]) == set(rows[rows["shard"] == shard]["row_id"])
    assert set(project.logprobs(shard)["shard"]) == {shard}
    with pytest.raises(BadInput, match="the manifest has no shard 'nothing'"):
        project.rows("nothing")


def test_comparisons_samples_and_lineage_say_what_the_commands_say(upstream: Upstream) -> None:
    project = api.open("quickstart")
    table = project.comparisons().set_index(["suite", "metric"])
    compared = upstream.store.commit_of(upstream("evaluation_report")).summary["comparisons"]
    assert {(suite, metric) for suite, metrics in compared.items() for metric in metrics} == set(table.index)
    one = compared["ifeval"]["prompt_level_strict_acc"]
    assert [*table.loc[("ifeval", "prompt_level_strict_acc"), ["baseline", "candidate"]]] == [
        one["baseline"],
        one["candidate"],
    ]
    for side in ("baseline", "candidate"):
        samples = project.samples("ifeval", of="policy" if side == "candidate" else side)
        mean = samples[samples["metric"] == "prompt_level_strict_acc"]["value"].mean()
        assert mean == pytest.approx(one[side])
    assert isinstance(project.samples()["detail"].iloc[0], dict)
    assert project.comparisons("champion").empty
    assert project.verdict().verdict == "pass" and project.verdict().report.is_file()
    asked = compare("quickstart@1", "quickstart", None, None)
    table = project.compare("quickstart@1", "quickstart")
    assert {f"{row.suite}/{row.metric}": row.difference for row in table.itertuples()} == {
        name: found["difference"] for name, found in asked.items()
    }
    given = project.lineage_rows()
    policy = lineage_of("quickstart")["policy"]
    assert (given["split"] == "train").sum() == policy["rows_trained"]
    assert project.lineage()["policy"] == policy


def test_the_champion_is_loaded_in_one_line_and_answers_as_its_files_do(upstream: Upstream) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    champion = api.open("quickstart").champion()
    assert (champion.name, champion.version) == ("quickstart", "1")
    assert champion.digest == upstream("policy_checkpoint").digest == api.open("quickstart").policy().digest
    model, tokenizer = champion.load()
    plain = AutoModelForCausalLM.from_pretrained(champion.path)
    assert model.dtype == plain.dtype == torch.float32
    ids = AutoTokenizer.from_pretrained(champion.path)("Name 3", return_tensors="pt").input_ids
    assert torch.equal(ids, tokenizer("Name 3", return_tensors="pt").input_ids)
    with torch.no_grad():
        assert torch.equal(model(ids.to(model.device)).logits.cpu(), plain(ids).logits)


def test_a_stage_is_run_and_nothing_of_the_recipe_moves(upstream: Upstream, recipe_path: Path) -> None:
    project = api.open("quickstart")
    shard = project.rows()["shard"].iloc[0]
    same = project.stage("reference_logprobs", shard)
    assert same.key == upstream("reference_logprobs", shard).key
    changed = recipe_path.read_text(encoding="utf-8").replace("0.001", "0.002")
    recipe_path.write_text(changed, encoding="utf-8")
    made = api.open("quickstart").stage("policy_checkpoint")
    assert made.digest != upstream("policy_checkpoint").digest and (made.path / "model.safetensors").is_file()
    assert api.open("quickstart").policy().digest == upstream("policy_checkpoint").digest
    for name, wanted in {
        "policy_chekpoint": "did you mean policy_checkpoint",
        "registered_model": "only a run registers",
        "preference_shard": "needs a shard",
    }.items():
        with pytest.raises(BadInput, match=wanted):
            project.stage(name)


def test_another_home_is_opened_by_its_folder_and_this_process_keeps_its_own(
    upstream: Upstream, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = home / "align"
    monkeypatch.delenv("ALIGN_RECIPES")
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "mine"))
    monkeypatch.setenv("ALIGN_STORE", str(tmp_path / "elsewhere"))
    before = dict(os.environ)
    project = api.open(made)
    assert project.name == "quickstart" and len(project.rows()) == 48
    assert project.champion().version == "1"
    assert dict(os.environ) == before
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(BadInput, match="no recipe is chosen"):
        api.open().rows()
    with pytest.raises(BadInput, match="has no policy_checkpoint yet"):
        api.open("quickstart").policy()


def test_a_run_that_fails_or_cannot_start_raises_what_the_command_says(
    upstream: Upstream, recipe_path: Path, small_inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = recipe_path.read_text(encoding="utf-8")
    said: list[str] = []
    refusing = yaml.safe_load(text) | {"gate": {"metrics": {"ifeval/prompt_level_strict_acc": {"improve": 0.5}}}}
    recipe_path.write_text(yaml.safe_dump(refusing), encoding="utf-8")
    with pytest.raises(RunFailed, match="prompt_level_strict_acc"):
        api.open("quickstart").run(said.append)
    assert any("evaluation_report" in line for line in said)
    assert api.open("quickstart").verdict().verdict in ("fail", "inconclusive")
    project = api.open("quickstart")
    recipe_path.write_text(text.replace(str(small_inputs / "pairs.jsonl"), "/nothing.jsonl"), encoding="utf-8")
    with pytest.raises(BadInput, match=r"/nothing\.jsonl"):
        project.run(said.append)


def test_every_example_of_the_page_runs_as_written(upstream: Upstream, capfd: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["result"]["verdict"] == "pass"
    assert isinstance(names["given"], pd.DataFrame)


def test_every_function_stands_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for owner in (api, api.Project, api.Checkpoint):
        for name, one in vars(owner).items():
            ours = getattr(one, "__module__", "") == api.__name__ and not isinstance(one, type)
            if not name.startswith("_") and callable(one) and ours:
                assert re.search(rf"`(api\.)?{name}\(", text), name


def test_opening_needs_no_heavy_package(upstream: Upstream) -> None:
    code = (
        "import sys; from alignment_dags import api\n"
        "light = [name for name in 'pandas pyarrow torch dagster mlflow'.split() if name in sys.modules]\n"
        "api.open('quickstart').rows()\n"
        "print(json.dumps([light, [name for name in ('torch', 'transformers', 'trl') if name in sys.modules]]))"
    )
    told = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == [[], []]
