"""Pools: one file says what there is, and Kubernetes and Dagster hear the same."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from alignment.errors import BadInput
from alignment_dags.run.workers import apply_pools
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
    ],
)
def test_a_malformed_file_is_named_with_the_field(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        load_pools(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_dagsters_limits_become_those_of_the_file_and_stay_so(tmp_path: Path) -> None:
    pools = load_pools()
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        instance.event_log_storage.set_concurrency_slots("gone", 3)
        for _ in range(2):
            assert apply_pools(instance, pools) == {"local": 1, "h100": 8, "h100_node": 1}
            limits = {limit.name: limit.limit for limit in instance.event_log_storage.get_pool_limits()}
            assert limits == {"local": 1, "h100": 8, "h100_node": 1}
