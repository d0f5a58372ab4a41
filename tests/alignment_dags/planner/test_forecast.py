"""What a plan says of memory and times, node by node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment.recipe import Recipe, parse_recipe
from alignment.store import Commit, Ref, Store
from alignment_dags.planner.forecast import History, _memory, _seconds
from assets.building.node import Node
from assets.graph import nodes_of
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
ENDPOINT = {"kind": "endpoint", "base_url": "http://localhost:1/v1"}


def recipe(**evals: Any) -> Recipe:
    plain = {"name": "small", "base_model": EMBEDDED, "sft": {"dataset": EMBEDDED}, "preferences": EMBEDDED}
    return parse_recipe(plain | {"evals": evals}, "-", {})


def nodes(of: Recipe) -> dict[str, Node]:
    return {node.name: node for node in nodes_of(of, load_pools())}


def test_the_divergence_loads_a_model_and_answers_of_an_endpoint_none() -> None:
    def loaded(name: str, of: Recipe) -> float | None:
        return _memory(nodes(of)[name], of, CONFIG, "config.json").value

    with_endpoint = recipe(ifeval=EMBEDDED, generate=ENDPOINT)
    for name in ("policy_divergence", "policy_responses"):
        assert loaded(name, recipe(ifeval=EMBEDDED)) is not None
    assert loaded("policy_divergence", with_endpoint) is not None
    assert loaded("policy_responses", with_endpoint) is None
    told = _memory(nodes(with_endpoint)["policy_responses"], with_endpoint, CONFIG, "config.json").how
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
