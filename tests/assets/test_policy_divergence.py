"""The node of the divergence: when there is one, where it runs, and what it speaks of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignment.recipe import Recipe, parse_recipe
from alignment.stages import Request, Result, Stage, execute
from alignment.store import Artifact, Ref, Store
from assets.building.node import Node
from assets.building.upstream import Upstream
from assets.graph import nodes_of
from assets.policy_divergence import policy_divergence
from eval.stages.policy_divergence import DivergenceRequest
from resources.pools import load_pools

EMBEDDED = {"embedded": "micro"}


def recipe(**changes: Any) -> Recipe:
    plain = {"name": "small", "base_model": EMBEDDED, "sft": {"dataset": EMBEDDED}, "preferences": EMBEDDED}
    return parse_recipe(plain | changes, "-", {})


def nodes(**changes: Any) -> dict[str, Node]:
    return {node.name: node for node in nodes_of(recipe(**changes), load_pools())}


def test_there_is_one_where_pairs_are_held_out_and_the_report_waits_for_it() -> None:
    found = nodes()
    assert "policy_divergence" in found and "policy_divergence" in found["evaluation_report"].needs
    without = nodes(held_out_fraction=0)
    assert "policy_divergence" not in without and "policy_divergence" not in without["evaluation_report"].needs


def test_it_runs_where_the_policy_answers_and_never_where_only_an_endpoint_is_asked() -> None:
    pools = {"reference": "h100", "responses": "local"}
    assert policy_divergence(recipe(pools=pools)).pool == "local"
    endpoint = {"generate": {"kind": "endpoint", "base_url": "http://localhost:1/v1"}}
    assert policy_divergence(recipe(pools=pools, evals=endpoint)).pool == "h100"


class _Made(Request):
    name: str


class _Policy(Request):
    checkpoint: Artifact
    manifest: Artifact


def test_it_speaks_of_the_manifest_that_the_policy_was_trained_on(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))

    def made(kind: str, name: str) -> Artifact:
        return execute(Stage(kind, 1, _Made, lambda request, context: Result(name)), _Made(name=name), store).artifact

    sft, manifest, later = (
        made("sft_checkpoint", "s"),
        made("preference_manifest", "m"),
        made("preference_manifest", "l"),
    )
    trained = Stage("policy_checkpoint", 1, _Policy, lambda request, context: Result("p"))
    policy = execute(trained, _Policy(checkpoint=sft, manifest=manifest), store).artifact
    for stage, artifact in {"policy_checkpoint": policy, "preference_manifest": later, "sft_checkpoint": sft}.items():
        store.write_ref(Ref(artifact=artifact, dagster_run_id=""), "small", stage)
    request = policy_divergence(recipe()).request(Upstream(store, "small"), None)
    assert isinstance(request, DivergenceRequest)
    assert (request.policy, request.sft, request.manifest) == (policy, sft, manifest)
