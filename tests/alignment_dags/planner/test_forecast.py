"""What a plan says of memory and times, node by node."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from alignment.models.shape import shape_of
from alignment.recipe import Lora, Recipe, load_recipe, parse_recipe
from alignment.store import Commit, Ref, Store
from alignment_dags.cli.run import show_plan
from alignment_dags.nights.worth import price_of
from alignment_dags.planner.forecast import History, StageForecast, forecast, seconds_of
from alignment_dags.planner.hours import UNMEASURED, lengths_of
from alignment_dags.planner.loads import load_of, remedies, unshardable
from alignment_dags.run.workspace import Workspace
from assets.building.node import Node
from assets.graph import nodes_of
from resources.compute import check_processes
from resources.home import PROJECT
from resources.pools import Pools, load_pools
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
CONFIGS = PROJECT / "alignment_dags" / "planner" / "models"
ENDPOINT = {"kind": "endpoint", "base_url": "http://localhost:1/v1"}


def recipe(**evals: Any) -> Recipe:
    plain = {"name": "small", "base_model": EMBEDDED, "sft": {"dataset": EMBEDDED}, "preferences": EMBEDDED}
    return parse_recipe(plain | {"evals": evals}, "-", {})


def nodes(of: Recipe) -> dict[str, Node]:
    return {node.name: node for node in nodes_of(of, load_pools())}


def stages(of: Recipe, store: Store, config: Path | None = None, **given: Any) -> dict[str, StageForecast]:
    return {one.stage: one for one in forecast(Workspace(of, load_pools(), lambda: store), config, **given)}


@pytest.mark.parametrize(
    "more",
    [
        {"sweep": {"beta": [0.1, 0.2]}},
        {"rounds": {"count": 2, "prompts": EMBEDDED, "score": {"kind": "rubric"}}},
        {"merge": [{"of": "policy", "weight": 0.5}, {"of": "sft", "weight": 0.5}]},
    ],
    ids=["sweep", "rounds", "merge"],
)
def test_each_training_is_counted_once(store: Store, more: dict[str, Any]) -> None:
    """A sweep's winner and the best of the rounds are trained by other nodes; an average takes no training."""
    of = parse_recipe(recipe(ifeval=EMBEDDED).model_dump(mode="json", exclude_unset=True) | more, "-", {})
    trained = made(store, "policy_checkpoint", "trained", seconds=100.0)
    other = {"stage": "merged_checkpoint", "digest": "average", "started_at": trained.started_at, "seconds": 6.0}
    rest: dict[str, Any] = {"code_version": 1, "inputs": {}, "summary": {}, "environment": {"recipe": "small"}}
    store.commit(store.begin("policy_checkpoint", "average"), **other, **rest)
    found = [one for one in stages(of, store).values() if one.stage.endswith("policy_checkpoint")]
    seconds = {one.stage: one.slot_seconds.value for one in found}
    last = 6.0 if "merge" in more else 0.0
    trainings = 1 if "merge" in more else 2
    assert sorted(seconds.values()) == [last, *[100.0] * trainings] and seconds["policy_checkpoint"] == last
    assert price_of(Workspace(of, load_pools(), lambda: store)) == (None, None), (
        "what the other stages take is not known"
    )
    took_nothing(of, store)
    assert price_of(Workspace(of, load_pools(), lambda: store))[0] == 100.0 * trainings + (
        last if "merge" in more else 0
    )


def took_nothing(of: Recipe, store: Store) -> None:
    """Gives every stage of a recipe that has not run yet an artifact that took no time."""
    for name, node in nodes(of).items():
        if not History(store, of.name).latest_first(node):
            commit = made(store, node.stage.kind, f"of {name.replace('/', ' ')}")
            if node.stage.kind == "scores":
                store.write_ref(Ref(artifact=commit.artifact), of.name, "policy_evals", name.rpartition("/")[2])


def test_what_follows_from_another_start_counts_each_shard_and_is_unknown_where_a_part_is(store: Store) -> None:
    """As `align reproduce` asks, whose seed makes the base model of an embedded recipe, its data and every shard."""
    of = recipe(ifeval=EMBEDDED)
    workspace = Workspace(of, load_pools(), lambda: store)
    times = {"base_model": 1.0, "sft_checkpoint": 7.0, "preference_shard": 10.0, "reference_logprobs": 100.0}
    for kind, seconds in (times | {"policy_checkpoint": 2000.0}).items():
        made(store, kind, kind, seconds=seconds)
    assert price_of(workspace) == (None, None)
    took_nothing(of, store)
    shards = len(workspace.upstream().shards(of))
    assert shards == 3 and price_of(workspace)[0] == 2000.0
    assert price_of(workspace, ["sft_checkpoint"])[0] == 7.0 + shards * 100.0 + 2000.0
    every = 1.0 + 7.0 + shards * (10.0 + 100.0) + 2000.0
    assert price_of(workspace, ["base_model", "sft_dataset", "preference_shard"])[0] == every


def test_log_probs_under_a_link_s_policy_are_planned_in_four_bits_too(store: Store) -> None:
    section = {"optimise": [{"lora": {"quantise": "nf4"}}] * 2, "evals": {"new_rows": {}}}
    found = stages(parse_recipe(recipe().model_dump(mode="json", exclude_unset=True) | section, "-", {}), store)
    quantised = {name for name, one in found.items() if "in 4 bits" in one.memory_gib.how}
    links = {"link_1/policy_checkpoint", "policy_checkpoint"}
    assert quantised == {"reference_logprobs", "link_1/policy_logprobs"} | links


def test_the_divergence_loads_a_model_and_answers_of_an_endpoint_none(store: Store, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    plain = stages(recipe(ifeval=EMBEDDED), store, config)
    with_endpoint = stages(recipe(ifeval=EMBEDDED, generate=ENDPOINT), store, config)
    for name in ("policy_divergence", "policy_responses"):
        assert plain[name].memory_gib.value
    assert with_endpoint["policy_divergence"].memory_gib.value
    assert with_endpoint["policy_responses"].memory_gib.value == 0
    assert "an endpoint answers" in with_endpoint["policy_responses"].memory_gib.how
    vllm = {"kind": "vllm", "command": "vllm serve {folder} --port {port} --served-model-name {name}"}
    with_server = stages(recipe(ifeval=EMBEDDED, generate=vllm), store, config)
    assert with_server["policy_responses"].memory_gib.value == 0
    assert "a server that is started answers" in with_server["policy_responses"].memory_gib.how


MIXTURE = CONFIG | {"model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
SINKS = CONFIG | {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2}
GPT2 = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}


def test_what_cannot_be_planned_is_named_and_never_guessed(store: Store, tmp_path: Path) -> None:
    def planned(config: dict[str, Any], **more: Any) -> dict[str, StageForecast]:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config))
        of = parse_recipe(recipe().model_dump(mode="json", exclude_unset=True) | more, "-", {})
        return stages(of, store, path)

    sinks = planned(SINKS)["policy_checkpoint"]
    assert sinks.memory_gib.value and not sinks.memory_parts_gib and sinks.fits is None
    assert "activations are not known and come on top: its attention has sinks" in sinks.memory_gib.how
    dropping = planned(GPT2)
    assert "drops units" in dropping["sft_checkpoint"].memory_gib.how and dropping["sft_checkpoint"].fits is None
    assert dropping["policy_checkpoint"].memory_parts_gib["activations"] > 0  # which trains without dropout
    mixture = planned(MIXTURE)["policy_checkpoint"]
    assert mixture.memory_parts_gib["activations"] > 0
    beside_experts = planned(MIXTURE, optimise={"lora": {}})["policy_checkpoint"]
    assert "puts adapters beside experts too" in beside_experts.memory_gib.how and beside_experts.fits is None
    beside_attention = planned(MIXTURE, optimise={"lora": {"target_modules": ["q_proj", "v_proj"]}})
    assert beside_attention["policy_checkpoint"].memory_parts_gib["activations"] > 0


def test_a_mixture_of_experts_is_not_planned_sharded_nor_told_to_be(store: Store) -> None:
    """Its weights are stored otherwise than it computes, which `require_shardable` refuses."""
    node = next(node for node in nodes(recipe()).values() if node.name == "policy_checkpoint")
    pool = load_pools()["h100_node"]
    shape = shape_of(MIXTURE)
    assert shape is not None
    lengths = lengths_of(recipe(), [])
    load = load_of(node, recipe(), pool, shape, lengths)
    assert load is not None and unshardable(load) is None
    assert "cannot be sharded" in (unshardable(replace(load, shards=8)) or "")
    changes = {change for each in remedies(node.name, load, pool, 1.0, True) for change in each.changes}
    dense = replace(load, shape=shape_of(CONFIG))
    assert not any("sharded" in change for change in changes)
    assert unshardable(replace(dense, shards=8)) is None


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
        assert seconds_of(history.latest_first(found[f"{model}_evals/ifeval"]), 2).value == 2 * 2.0
        assert seconds_of(history.latest_first(found[f"{model}_evals/gsm8k"]), 1).value == 100.0
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


ROWS = 61_135
"""Of UltraFeedback's train_prefs."""


@pytest.mark.parametrize("name", sorted(PRODUCTION))
def test_a_production_recipe_fits_the_pools_it_names(name: str, store: Store) -> None:
    shipped = load_recipe(PROJECT / "recipes" / f"{name}.yaml")
    planned = stages(shipped, store, CONFIGS / f"{PRODUCTION[name]}.json", rows=ROWS)
    in_pools = {stage: one for stage, one in planned.items() if one.pool is not None}
    assert {one.pool for one in in_pools.values()} <= {"h100", "h100_node"}
    assert {stage: one.fits for stage, one in in_pools.items()} == dict.fromkeys(in_pools, True)
    for one in in_pools.values():
        assert sum(one.memory_parts_gib.values()) == pytest.approx(one.memory_gib.value)
        assert one.remedies == []
    shards = planned["preference_shard"]
    assert (shards.current, shards.to_make) == (0, shipped.preferences.split_into), "known without the hub"
    for stage in ("reference_logprobs", "policy_checkpoint"):
        seconds, cost = in_pools[stage].slot_seconds, in_pools[stage].cost
        assert seconds.value is not None
        assert 60 < seconds.value < 12 * 3600
        assert "30% (assumed)" in seconds.how
        assert cost.value == pytest.approx(
            seconds.value * load_pools()[str(in_pools[stage].pool)].price_per_hour / 3600
        )


def changed(recipe: Recipe, **settings: Any) -> Recipe:
    return recipe.model_copy(update={"dpo": recipe.dpo.model_copy(update=settings)})


def zephyr(**settings: Any) -> Recipe:
    return changed(load_recipe(PROJECT / "recipes" / "zephyr_7b_dpo.yaml"), **settings)


def test_full_training_of_zephyr_would_not_fit_and_the_plan_says_with_what_it_would(store: Store) -> None:
    config = CONFIGS / "mistral_7b_v0.1.json"
    full = stages(zephyr(lora=None), store, config)["policy_checkpoint"]
    written = (PROJECT / "recipes" / "zephyr_7b_dpo.yaml").read_text(encoding="utf-8")
    assert f"full training needs {full.memory_gib.value:.0f} GiB on devices of 80 GiB" in written
    parameters, gib = 7_241_732_096, 2**30
    held = {"weights": 2, "gradients": 4, "masters": 4, "moments": 8}
    assert {part: full.memory_parts_gib[part] for part in held} == {
        part: pytest.approx(size * parameters / gib) for part, size in held.items()
    }
    assert full.fits is False
    (adapter,), (sharding,) = (remedy.changes for remedy in full.remedies)
    assert adapter == "optimise.lora: {rank: 16}"
    assert sharding.endswith(" over 8 devices")
    assert [remedy.devices for remedy in full.remedies] == [1, 8]
    adapted = stages(zephyr(lora=Lora(rank=16, alpha=32)), store, config)["policy_checkpoint"]
    assert full.remedies[0].memory_gib == adapted.memory_gib.value, "a remedy's figure is that of the changed recipe"
    assert adapted.fits


def test_each_remedy_is_the_plan_of_the_recipe_that_it_names_and_none_is_needless(store: Store) -> None:
    config = CONFIGS / "mistral_7b_v0.1.json"
    lora = Lora(rank=16, alpha=32)
    planned = stages(zephyr(lora=None, gradient_checkpointing=False), store, config)["policy_checkpoint"]
    by_changes = {remedy.changes: remedy for remedy in planned.remedies}
    checkpoint = "optimise.gradient_checkpointing: selective"
    both = by_changes[checkpoint, "optimise.lora: {rank: 16}"]
    kept = zephyr(lora=lora, gradient_checkpointing="selective")
    assert both.memory_gib == stages(kept, store, config)["policy_checkpoint"].memory_gib.value
    (smaller,) = (
        changes for changes in by_changes if "optimise.lora: {rank: 16}" in changes and checkpoint not in changes
    )
    tokens = int(smaller[0].removeprefix("reference.batch_tokens: "))
    cut = zephyr(lora=lora, gradient_checkpointing=False)
    for batch_tokens, fits in ((tokens, True), (2 * tokens, False)):
        one = cut.model_copy(update={"reference": cut.reference.model_copy(update={"batch_tokens": batch_tokens})})
        found = stages(one, store, config)["policy_checkpoint"]
        assert (found.fits, found.memory_gib.value == by_changes[smaller].memory_gib) == (fits, fits)


def test_a_7b_fits_24_gb_with_four_bits_and_the_plan_names_them(store: Store) -> None:
    """QLoRA's own sizing: a 7B on a GPU of 24 GB, which is 22.4 GiB."""
    config = CONFIGS / "mistral_7b_v0.1.json"
    small = {name: pool.model_copy(update={"memory_gib": 22.4}) for name, pool in load_pools().pools.items()}

    def policy(lora: Lora, stage: str = "policy_checkpoint") -> StageForecast:
        one = zephyr(lora=lora, gradient_checkpointing=True)
        one = one.model_copy(update={"reference": one.reference.model_copy(update={"batch_tokens": 16_384})})
        workspace = Workspace(one, Pools(pools=small), lambda: store)
        return next(found for found in forecast(workspace, config) if found.stage == stage)

    plain, quantised = Lora(rank=16, alpha=32), Lora(rank=16, alpha=32, quantise="nf4")
    alone, four_bits = policy(plain), policy(quantised)
    by_changes = {remedy.changes: remedy.memory_gib for remedy in alone.remedies}
    assert by_changes["optimise.lora.quantise: nf4",] == four_bits.memory_gib.value
    assert not alone.fits and four_bits.fits and "those of linear layers in 4 bits" in str(four_bits.memory_gib.how)
    scored = [policy(lora, "reference_logprobs").memory_gib.value or 0 for lora in (plain, quantised)]
    assert scored[0] - scored[1] == pytest.approx(9.4, abs=0.5), "the reference is in four bits too"


def test_the_smallest_recipe_needs_the_24_gib_that_it_says_with_the_pass_that_it_says(store: Store) -> None:
    shipped = load_recipe(PROJECT / "recipes" / "qwen2.5_0.5b_1gpu.yaml")
    assert "24 GiB are enough with reference.batch_tokens of 8192" in shipped.description
    small = {"h100": load_pools()["h100"].model_copy(update={"memory_gib": 24})}
    for batch_tokens, fits in ((16_384, False), (8192, True)):
        reference = shipped.reference.model_copy(update={"batch_tokens": batch_tokens})
        workspace = Workspace(
            shipped.model_copy(update={"reference": reference}),
            Pools(pools=load_pools().pools | small),
            lambda: store,
        )
        planned = forecast(workspace, CONFIGS / "qwen2.5_0.5b.json")
        assert all(one.fits for one in planned if one.pool is not None) is fits


LARGE = {
    "llama3_70b_lora": "llama_3_70b",
    "llama3_70b_full": "llama_3_70b",
    "llama3.1_405b_lora": "llama_3.1_405b",
}


def test_every_large_recipe_is_planned_below() -> None:
    assert {path.stem for path in (PROJECT / "recipes" / "large").glob("*.yaml")} == {*LARGE, "pools"}


@pytest.mark.parametrize("name", sorted(LARGE))
def test_a_large_recipe_needs_sharding_as_it_says_and_fits_its_own_pool_with_it(name: str, store: Store) -> None:
    shipped = load_recipe(PROJECT / "recipes" / "large" / f"{name}.yaml")
    pools = load_pools(PROJECT / "recipes" / "large" / "pools.yaml")
    check_processes(shipped, pools)
    workspace = Workspace(shipped, pools, lambda: store)
    planned = forecast(workspace, CONFIGS / f"{LARGE[name]}.json", rows=ROWS)
    assert "Needs sharding" in shipped.description
    too_large = {one.stage: one for one in planned if one.fits is False}
    assert not too_large
    uncut = changed(shipped, sharded=False).model_copy(
        update={
            "reference": shipped.reference.model_copy(update={"sharded": False}),
            "evals": shipped.evals.model_copy(update={"sharded": False}),
        }
    )
    whole = forecast(Workspace(uncut, pools, lambda: store), CONFIGS / f"{LARGE[name]}.json", rows=ROWS)
    too_large = {one.stage: one for one in whole if one.fits is False}
    assert too_large.keys() == {"policy_checkpoint", "reference_logprobs", "policy_divergence", "registered_model"}
    for one in too_large.values():
        pool = pools[str(one.pool)]
        cut = rf"(optimise|reference|evals)\.sharded: true over {pool.gpus_per_slot} devices"
        (remedy,) = (each for each in one.remedies if len(each.changes) == 1 and re.fullmatch(cut, each.changes[0]))
        assert remedy.memory_gib < float(pool.memory_gib or 0)
    (policy,) = (one for one in planned if one.stage == "policy_checkpoint")
    assert policy.slot_seconds.value


def test_a_405b_takes_more_than_two_nodes_of_80_gb(store: Store) -> None:
    """Published sizings say two nodes; docs/planning.md has the difference."""
    shipped = load_recipe(PROJECT / "recipes" / "large" / "llama3.1_405b_lora.yaml")
    pools = load_pools(PROJECT / "recipes" / "large" / "pools.yaml")
    two = pools["h100_node"].model_copy(update={"gpus_per_slot": 16})
    ours = Pools(pools=pools.pools | {"h200_2_nodes": two})
    planned = {
        one.stage: one for one in forecast(Workspace(shipped, ours, lambda: store), CONFIGS / "llama_3.1_405b.json")
    }
    policy = planned["policy_checkpoint"]
    assert min(remedy.devices for remedy in policy.remedies) > 16


def test_a_plan_from_a_configuration_takes_less_than_a_second_and_no_torch(tmp_path: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
from alignment.recipe import load_recipe
from alignment.store import Store
from alignment_dags.planner.forecast import forecast
from alignment_dags.run.workspace import Workspace
from resources.pools import Pools, load_pools
recipe = load_recipe(Path({str(PROJECT / "recipes" / "zephyr_7b_dpo.yaml")!r}))
started = time.process_time()
forecast(Workspace(recipe, load_pools(), lambda: Store({str(tmp_path / "store")!r})),
    Path({str(CONFIGS / "mistral_7b_v0.1.json")!r}), rows=1000)
print(time.process_time() - started < 1.0, sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "True []"


def test_lengths_are_those_of_the_last_pass_where_there_was_one() -> None:
    """Two pairs of a prompt of 10 and completions of 6 and 4 tokens: 60 tokens, of which 36 go through the model."""
    commit = made_reference(scored=4, tokens=60, forwarded=36)
    lengths = lengths_of(recipe(), [commit])
    assert (lengths.prompt, lengths.completions) == (10, (5, 5))
    assert lengths_of(recipe(), []).completions == (350, 310)


def made_reference(scored: int, tokens: int, forwarded: int) -> Any:
    return SimpleNamespace(summary={"scored": scored, "tokens": tokens, "forwarded_tokens": forwarded})


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
    assert asked.pop() == "HuggingFaceH4/ultrafeedback_binarized" and not asked
    shards, manifest, base = (planned[name] for name in ("preference_shard", "preference_manifest", "base_model"))
    assert (shards.current, shards.to_make, shards.slot_seconds.value) == (None, None, None)
    assert shards.slot_seconds.how == "HuggingFaceH4/ultrafeedback_binarized on the hub: no answer in 0.1 s"
    assert (base.current, base.to_make) == (0, 1), "the store holds no base model at all"
    assert (manifest.current, manifest.to_make) == (0, 1)
    assert planned["policy_checkpoint"].fits is True, "its dimensions come with the planner"
    assert "Qwen/Qwen2.5-0.5B-Instruct@main on the hub" in planned["policy_checkpoint"].memory_gib.how
    with monkeypatch.context() as patch:
        patch.setattr("alignment_dags.planner.forecast.MODELS", Path("nothing"))
        unknown = {one.stage: one for one in forecast(Workspace(shipped, load_pools(), lambda: store))}
    assert unknown["policy_checkpoint"].memory_gib.value is None
    assert unknown["policy_checkpoint"].fits is None
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
    assert planned["policy_checkpoint"].memory_parts_gib["moments"] == pytest.approx(494_032_768 * 8 / 2**30)


def test_an_embedded_model_needs_no_store_and_is_told_in_small_units(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = forecast(Workspace(recipe(ifeval=EMBEDDED), load_pools(), lambda: store), rows=2100)
    champion = next(one for one in planned if one.stage == "champion_responses")
    assert (champion.current, champion.to_make) == (0, 0), "there is none, and none is to be made"
    shown = {"too_large": [], "warnings": [], "notes": [], "upgrade": None}
    show_plan({"stages": [asdict(one) for one in planned], **shown})
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert lines["policy_checkpoint"][4:7] == ["48.3", "MiB", "yes"]
    assert lines["registered_model"][4] == "-", "gate: none registers nothing, so it loads no model"
    assert out.count(f": {UNMEASURED}") == 1, "what is so of many stages is said once"
    (training,) = [line for line in out.splitlines() if line.strip().startswith("policy_checkpoint: 2,058 rows of ")]
    assert training.endswith(f"; {UNMEASURED}") and " operations" in training
    assert lines["policy_checkpoint"][-2:] == ["unknown", "-"], "the pool has no price, so there is none to know"


@pytest.mark.parametrize(("precision", "known"), [("bfloat16", True), ("float32", False)])
def test_the_makers_rate_prices_bfloat16_alone_whatever_the_cache_holds(
    precision: str, known: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignment_dags.planner.forecast._not_cached", lambda *_: (1000, 400))
    written = recipe(ifeval=EMBEDDED).model_dump(mode="json", exclude_unset=True)
    kind = {"precision": precision}
    more = {"reference": kind, "optimise": kind, "pools": {"reference": "h100"}}
    found = stages(parse_recipe(written | more, "-", {}), store, CONFIGS / "llama_3_8b.json")
    time = found["reference_logprobs"].slot_seconds
    assert time.how.startswith("400 of 1,000 rows are not in the cache")
    assert (time.value is not None) == known
