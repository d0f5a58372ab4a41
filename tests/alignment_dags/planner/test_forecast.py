"""What a plan says of memory and times, node by node."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.recipe import Recipe, load_recipe, parse_recipe
from alignment.store import Commit, Ref, Store
from alignment_dags.cli.run import show_plan
from alignment_dags.planner.forecast import History, Shape, _memory, _seconds, forecast
from alignment_dags.run.workspace import Workspace
from assets.building.node import Node
from assets.graph import nodes_of
from resources.home import PROJECT
from resources.pools import load_pools
from tests.alignment_dags.nights.test_between import made

EMBEDDED = {"embedded": "micro"}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 64,
}
CONFIGS = Path(__file__).parents[2] / "configs"
ENDPOINT = {"kind": "endpoint", "base_url": "http://localhost:1/v1"}


def recipe(**evals: Any) -> Recipe:
    plain = {"name": "small", "base_model": EMBEDDED, "sft": {"dataset": EMBEDDED}, "preferences": EMBEDDED}
    return parse_recipe(plain | {"evals": evals}, "-", {})


def nodes(of: Recipe) -> dict[str, Node]:
    return {node.name: node for node in nodes_of(of, load_pools())}


def test_the_divergence_loads_a_model_and_answers_of_an_endpoint_none() -> None:
    def loaded(name: str, of: Recipe) -> float | None:
        return _memory(nodes(of)[name], of, Shape(CONFIG, "config.json")).value

    with_endpoint = recipe(ifeval=EMBEDDED, generate=ENDPOINT)
    for name in ("policy_divergence", "policy_responses"):
        assert loaded(name, recipe(ifeval=EMBEDDED))
    assert loaded("policy_divergence", with_endpoint)
    assert loaded("policy_responses", with_endpoint) == 0
    told = _memory(nodes(with_endpoint)["policy_responses"], with_endpoint, Shape(CONFIG, "config.json")).how
    assert "an endpoint answers" in told


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def scores(store: Store, key: str, seconds: float) -> Commit:
    return made(store, "scores", key, seconds=seconds)


def test_a_suites_time_is_that_of_its_own_scores_and_a_kind_is_read_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, slow, earlier = scores(store, "quick", 1.0), scores(store, "slow", 100.0), scores(store, "earlier", 3.0)
    scores(store, "nobody's", 1000.0)
    store.write_ref(Ref(artifact=quick.artifact), "small", "policy_evals/ifeval")
    store.write_ref(Ref(artifact=slow.artifact), "small", "policy_evals/gsm8k")
    made(store, "evaluation_report", "r", inputs={"sft_scores.ifeval": earlier.artifact})
    read: list[str] = []
    whole = store.commits
    monkeypatch.setattr(store, "commits", lambda kind: (read.append(kind), whole(kind))[1])
    history, found = History(store, "small"), nodes(recipe(ifeval=EMBEDDED, gsm8k=EMBEDDED))
    for model in ("sft", "policy", "champion"):
        assert _seconds(history.latest_first(found[f"{model}_evals/ifeval"]), 2).value == 2 * 2.0
        assert _seconds(history.latest_first(found[f"{model}_evals/gsm8k"]), 1).value == 100.0
    assert sorted(read) == ["evaluation_report", "scores"]


PRODUCTION = {
    "qwen2.5_0.5b_1gpu": "qwen2.5_0.5b",
    "zephyr_7b_dpo": "mistral_7b_v0.1",
    "llama3_8b_node": "llama_3_8b",
}


def test_every_recipe_with_a_model_of_the_hub_is_planned_below() -> None:
    paths = (PROJECT / "recipes").glob("*.yaml")
    plain = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}
    assert PRODUCTION.keys() == {name for name, one in plain.items() if "hub" in one.get("base_model", {})}


@pytest.mark.parametrize("name", sorted(PRODUCTION))
def test_a_production_recipe_fits_the_pools_it_names(name: str, store: Store) -> None:
    shipped = load_recipe(PROJECT / "recipes" / f"{name}.yaml")
    planned = forecast(Workspace(shipped, load_pools(), lambda: store), CONFIGS / f"{PRODUCTION[name]}.json")
    in_pools = {one.stage: one for one in planned if one.pool is not None}
    assert {one.pool for one in in_pools.values()} <= {"h100", "h100_node"}
    assert {stage: one.fits for stage, one in in_pools.items()} == dict.fromkeys(in_pools, True)
    assert in_pools["policy_checkpoint"].memory_gib.value
    shards = next(one for one in planned if one.stage == "preference_shard")
    assert (shards.current, shards.to_make) == (0, shipped.preferences.split_into), "known without the hub"


def test_full_training_of_zephyr_would_not_fit(store: Store) -> None:
    shipped = load_recipe(PROJECT / "recipes" / "zephyr_7b_dpo.yaml")
    full = shipped.model_copy(update={"dpo": shipped.dpo.model_copy(update={"lora": None})})
    planned = {
        one.stage: one
        for one in forecast(Workspace(full, load_pools(), lambda: store), CONFIGS / "mistral_7b_v0.1.json")
    }
    assert planned["policy_checkpoint"].memory_gib.value == pytest.approx(107.9, abs=0.1)
    assert planned["policy_checkpoint"].fits is False


def test_a_hub_that_says_nothing_is_asked_once_and_what_it_knows_is_unknown(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import HfApi

    asked: list[str] = []

    def silent(self: HfApi, name: str, **_: object) -> None:
        asked.append(name)
        threading.Event().wait()

    monkeypatch.setattr("alignment_dags.planner.forecast.HUB_SECONDS", 0.1)
    monkeypatch.setattr(HfApi, "dataset_info", silent)
    monkeypatch.setattr(HfApi, "model_info", silent)
    shipped = load_recipe(PROJECT / "recipes" / "qwen2.5_0.5b_1gpu.yaml")
    made(store, "preference_shard", "of another recipe")
    planned = {one.stage: one for one in forecast(Workspace(shipped, load_pools(), lambda: store))}
    assert asked == ["HuggingFaceH4/ultrafeedback_binarized"]
    shards, manifest, base = (planned[name] for name in ("preference_shard", "preference_manifest", "base_model"))
    assert (shards.current, shards.to_make, shards.slot_seconds.value) == (None, None, None)
    assert shards.slot_seconds.how == "HuggingFaceH4/ultrafeedback_binarized on the hub: no answer in 0.1 s"
    assert (base.current, base.to_make) == (0, 1), "the store holds no base model at all"
    assert (manifest.current, manifest.to_make) == (0, 1)
    assert planned["policy_checkpoint"].memory_gib.value is None
    assert planned["policy_checkpoint"].fits is None
    assert "Qwen/Qwen2.5-0.5B-Instruct@main on the hub" in planned["policy_checkpoint"].memory_gib.how
    shown = {"too_large": [], "warnings": [], "notes": [], "upgrade": None}
    show_plan({"stages": [asdict(one) for one in planned.values()], **shown})
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["preference_shard"] == ["preference_shard", "-", "unknown", "unknown", "-", "-", "unknown", "-"]


def test_the_hubs_cache_on_this_machine_is_looked_at_before_the_hub(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, commit = tmp_path / "hub" / "models--Qwen--Qwen2.5-0.5B-Instruct", "c" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots" / commit).mkdir(parents=True)
    config = json.loads((CONFIGS / "qwen2.5_0.5b.json").read_text(encoding="utf-8"))
    (place / "snapshots" / commit / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    shipped = load_recipe(PROJECT / "recipes" / "qwen2.5_0.5b_1gpu.yaml")
    planned = {one.stage: one for one in forecast(Workspace(shipped, load_pools(), lambda: store))}
    assert planned["policy_checkpoint"].memory_gib.value == pytest.approx(494_032_768 * 16 / 2**30)


def test_an_embedded_model_needs_no_store_and_is_told_in_small_units(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = forecast(Workspace(recipe(ifeval=EMBEDDED), load_pools(), lambda: store))
    champion = next(one for one in planned if one.stage == "champion_responses")
    assert (champion.current, champion.to_make) == (0, 0), "there is none, and none is to be made"
    shown = {"too_large": [], "warnings": [], "notes": [], "upgrade": None}
    show_plan({"stages": [asdict(one) for one in planned], **shown})
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert lines["policy_checkpoint"][4:7] == ["5.6", "MiB", "yes"]
    assert lines["registered_model"][4] == "-", "gate: none registers nothing, so it loads no model"
    assert out.count("this recipe never made one") == 1, "what is so of many stages is said once"
