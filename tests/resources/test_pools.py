"""Pools: one file says what there is, and Kubernetes and Dagster hear the same."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from alignment.errors import BadInput
from alignment.recipe import parse_recipe
from alignment_dags.run.workers import apply_pools
from resources.compute import ComputePools, check_residency
from resources.pools import Pools, load_pools


def test_the_shipped_pools_place_h100_work_on_h100_nodes() -> None:
    pools = load_pools()
    assert {"local", "h100", "h100_node"} <= set(pools.pools)
    config = pools["h100_node"].step_tags()["dagster-k8s/config"]
    assert config["container_config"]["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    pod = config["pod_spec_config"]
    assert pod["node_selector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pools["local"].step_tags() == {}


def test_a_torchrun_pool_has_a_rank_for_each_gpu_and_a_step_pool_has_one() -> None:
    pools = load_pools()
    assert pools["h100_node"].world_size == 8
    assert pools["local"].world_size == 1
    assert Pools(pools={"two": {"slots": 1, "launcher": "torchrun", "processes": 2}})["two"].world_size == 2  # type: ignore[dict-item]


def test_a_pool_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(BadInput, match=r"no pool 'tpu'; pools\.yaml has h100, h100_node, local"):
        load_pools()["tpu"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pools: {}", "pools"),
        ("pools: {a: {slot: 1}}", "pools.a.slot"),
        *((f"pools: {{a: {{slots: {slots}}}}}", "pools.a.slots") for slots in ("0", "1001", "true", "1.0", "'2'")),
        ("pools: {a: {slots: 1, price_per_hour: .nan}}", "pools.a.price_per_hour"),
        ("pools: {a: {slots: 1, price_per_hour: -1}}", "pools.a.price_per_hour"),
        ("pools: {a: {slots: 1, memory_gib: .inf}}", "pools.a.memory_gib"),
        ("pools: {a: {slots: 1, launcher: slurm}}", "pools.a.launcher"),
        ("pools: {a: {slots: 1, nodes: 2}}", "launcher step works on one node"),
        ("pools: {a: {slots: 1, nodes: 2, launcher: torchrun}}", "2 nodes need 1 torchrun.hosts"),
        ("pools: {a: {slots: 1, nodes: 2, launcher: ray, gpus_per_slot: 3}}", "3 is not divisible by the 2 nodes"),
        ("pools: {a: {slots: 1, launcher: kubernetes}}", "needs kubernetes.image"),
        ("pools: {a: {slots: 1, launcher: kuberay}}", "needs the section kuberay"),
        (
            "pools: {a: {slots: 1, node: x, accelerator: H100}, b: {slots: 1, node: x, accelerator: A100}}",
            "pools a and b are both on node x and differ in accelerator",
        ),
    ],
)
def test_a_malformed_file_is_named_with_the_field(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        load_pools(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_a_deployment_changes_pools_of_the_file_and_adds_some(tmp_path: Path) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text("pools: {h100: {slots: 8, gpus_per_slot: 1, price_per_hour: 3}}\nregion: eu\n")
    changes = {"h100": {"launcher": "ray", "region": "us"}, "cpu": {"slots": 4}}
    pools = ComputePools(file=str(path), changes=changes).load()
    assert (pools["h100"].launcher, pools["h100"].slots, pools["h100"].price_per_hour) == ("ray", 8, 3)
    assert pools["cpu"].slots == 4 and pools.region == "eu"
    assert set(ComputePools(file=str(path)).load().pools) == {"h100"}
    with pytest.raises(BadInput, match=r"pools\.yaml, field 'pools\.h100\.slots'"):
        ComputePools(file=str(path), changes={"h100": {"slots": 0}}).load()


PLACED = """
region: eu-west-1
regions: {"s3://bucket": eu-central-1, "s3://bucket/us": us-east-1, "https://judge.example": eu}
pools: {local: {slots: 1}, there: {slots: 1, region: us-east-1}, europe: {slots: 1, region: europe-north1}}
"""
SMALL = {
    "name": "small",
    "base_model": {"embedded": "micro"},
    "sft": {"dataset": {"embedded": "micro"}},
    "preferences": {"embedded": "micro"},
    "residency": "eu",
}
JUDGE = {"kind": "openai", "model": "m", "snapshot": None}
ENDPOINT = {"generate": {"kind": "endpoint", "base_url": "http://vllm:8000/v1", "model": "{digest}"}}


@pytest.mark.parametrize(
    ("changes", "store", "told"),
    [
        ({}, "s3://bucket/x", None),
        ({"judge": JUDGE | {"base_url": "https://judge.example/v1"}}, "/tmp/store", None),
        ({"pools": {"policy": "there"}}, "/tmp/store", r"pool there of pools\.policy is in us-east-1.*stay in eu"),
        ({"pools": {"policy": "europe"}}, "/tmp/store", r"pool europe of pools\.policy is in europe-north1"),
        ({}, "s3://bucket/us/x", r"the store s3://bucket/us/x is in us-east-1"),
        ({}, "s3://other/x", r"the store s3://other/x is in a region that is not known"),
        ({"judge": JUDGE | {"base_url": "http://j:1/v1"}}, "/tmp/store", r"the endpoint of judge http://j:1/v1 is"),
        ({"judge": JUDGE}, "/tmp/store", r"the judge https://api\.openai\.com is in a region that is not known"),
        ({"evals": ENDPOINT}, "/tmp/store", r"the endpoint of evals\.generate http://vllm:8000/v1"),
        ({"publish": {"hub": "our/model"}}, "/tmp/store", r"publish https://huggingface\.co"),
    ],
)
def test_a_recipe_that_demands_a_region_refuses_what_is_elsewhere_by_name(
    tmp_path: Path, changes: dict[str, Any], store: str, told: str | None
) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(PLACED)
    place: Any = SimpleNamespace(shown=store)
    with nullcontext() if told is None else pytest.raises(BadInput, match=told):
        check_residency(parse_recipe(SMALL | changes, "-", {}), load_pools(path), place)
    check_residency(parse_recipe(SMALL | changes | {"residency": None}, "-", {}), load_pools(path), place)


def test_a_tracking_server_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(PLACED)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@mlflow.example")
    place: Any = SimpleNamespace(shown="/tmp/store")
    with pytest.raises(BadInput, match=r"the tracking server https://mlflow\.example is in a region") as caught:
        check_residency(parse_recipe(SMALL, "-", {}), load_pools(path), place)
    assert "secret" not in str(caught.value)


def test_a_webhook_elsewhere_is_refused_by_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(PLACED)
    place: Any = SimpleNamespace(shown="/tmp/store")
    recipe = parse_recipe(SMALL | {"alerts": {"webhook_env": "ALERTS_GO_TO"}}, "-", {})
    monkeypatch.setenv("ALERTS_GO_TO", "https://hooks.example/secret/path")
    with pytest.raises(BadInput, match=r"the webhook in ALERTS_GO_TO https://hooks\.example is in a region") as caught:
        check_residency(recipe, load_pools(path), place)
    assert "secret" not in str(caught.value)
    monkeypatch.delenv("ALERTS_GO_TO")
    check_residency(recipe, load_pools(path), place)


def test_dagsters_limits_become_those_of_the_file_and_stay_so(tmp_path: Path) -> None:
    pools = load_pools()
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        instance.event_log_storage.set_concurrency_slots("gone", 3)
        for _ in range(2):
            assert apply_pools(instance, pools) == {"local": 1, "h100": 8, "h100_node": 1}
            limits = {limit.name: limit.limit for limit in instance.event_log_storage.get_pool_limits()}
            assert limits == {"local": 1, "h100": 8, "h100_node": 1}
