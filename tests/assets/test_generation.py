"""Pairs made before training: what the nodes are made from, and whose answers stay when the champion changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.data.files import pin_file
from alignment.data.sources import PromptSource
from alignment.errors import BadInput
from alignment.stages import Request, Result, Stage, execute
from alignment.stages.candidates import CandidatesRequest, CandidatesSummary
from alignment.stages.preference_manifest import ManifestRequest
from alignment.store import Artifact, Ref, Store
from alignment_dags.run.run import run_recipe
from assets.building.upstream import Upstream
from assets.champion import Champion
from assets.generation import answered_by_both
from resources.compute import check_processes
from resources.pools import load_pools
from tests.assets.test_policy_divergence import nodes, recipe
from tests.assets.test_rounds import made

GENERATE: dict[str, Any] = {"prompts": {"embedded": "micro"}, "n": 2, "score": {"kind": "rubric"}}


def test_generated_pairs_are_one_more_shard_of_the_first_manifest() -> None:
    found = nodes(generate=GENERATE)
    assert set(found["preference_manifest"].needs) == {
        *("sft_checkpoint", "preference_shard", "reference_logprobs"),
        *("generated_shard", "generated_logprobs"),
    }
    assert found["candidates"].needs == ("sft_checkpoint",)
    elsewhere = nodes(generate=GENERATE | {"generator": {"embedded": "micro"}})
    assert elsewhere["candidates"].needs == ("generator_model",)
    without = nodes(generate=GENERATE, optimise={"method": "simpo"})
    assert "generated_logprobs" not in without
    assert set(without["preference_manifest"].needs) == {"preference_shard", "generated_shard"}
    assert not any(node.partitioned for name, node in found.items() if name in ("candidates", "ranked_pairs"))


def test_delta_pairs_have_a_second_generator() -> None:
    delta = {"prompts": {"embedded": "micro"}, "n": 1, "pairs": "delta", "weak": {"embedded": "micro"}}
    found = nodes(generate=delta)
    assert found["weak_candidates"].needs == ("weak_model",)
    assert set(found["ranked_pairs"].needs) == {"candidates", "weak_candidates"}
    assert nodes(generate=delta | {"weak": "base"})["weak_candidates"].needs == ("base_model",)


def test_strong_and_weak_answers_are_paired_by_their_source_of_prompts(store: Store, tmp_path: Path) -> None:
    """One of the generators may have no prompt of a source that fits into its context."""
    checkpoint = made(store, "sft_checkpoint")

    def answered(model: str, *texts: str) -> Artifact:
        def one(text: str) -> Artifact:
            path = tmp_path / f"{text}.jsonl"
            path.write_text(json.dumps({"prompt": text}) + "\n", encoding="utf-8")
            request = CandidatesRequest(
                checkpoint=checkpoint,
                prompts=(PromptSource(file=pin_file(str(path))),),
                n=1,
                temperature=1,
                max_new_tokens=8,
                seed=1,
                precision="float32",
                batch_tokens=64,
                generator=model,
            )
            counts = {"prompts": 1, "candidates": 1, "tokens": 1, "cut": 0, "quarantined": 0}
            stage = Stage(
                "candidates", 1, CandidatesRequest, lambda *_: Result(f"{model} {text}", CandidatesSummary(**counts))
            )
            return execute(stage, request, store).artifact

        parts = [one(text) for text in texts]
        counts = {"prompts": len(texts), "candidates": len(texts), "tokens": 1, "cut": 0, "quarantined": 0}
        whole = Stage("candidates", 1, _Whole, lambda *_: Result(model, CandidatesSummary(**counts, parts=parts)))
        return execute(whole, _Whole(name=f"{model} {texts}"), store).artifact

    strong, weak = answered_by_both(store, answered("strong", "a", "b", "c"), answered("weak", "c", "a"))
    assert [one.digest for one in strong] == ["strong a", "strong c"]
    assert [one.digest for one in weak] == ["weak a", "weak c"]
    strong, weak = answered_by_both(store, answered("strong", "a", "b"), answered("weak", "b", "c"))
    assert [one.digest for one in (*strong, *weak)] == ["strong b", "weak b"], "as many on both sides, and not the same"
    with pytest.raises(BadInput, match="no source of prompts to which both generators have answered"):
        answered_by_both(store, answered("other", "a", "b"), answered("weaker", "c"))


class _Whole(Request):
    name: str


ENDPOINT = {"kind": "endpoint", "base_url": "http://127.0.0.1:9/v1", "model": "m-{digest}"}


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"evals": {"generate": ENDPOINT}}, "one process asks the endpoint of evals.generate"),
        ({"generate": GENERATE | {"engine": ENDPOINT}}, "one process asks the endpoint of generate.engine"),
        ({"rounds": GENERATE | {"count": 2, "engine": ENDPOINT}}, "one process asks the endpoint of rounds.engine"),
    ],
)
def test_a_pool_of_several_processes_is_refused_where_one_asks_before_anything_is_trained(
    sections: dict[str, Any], told: str, home: Path, tmp_path: Path
) -> None:
    pools, path = {"pools": {"responses": "h100_node"}}, tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(**sections, **pools).written), encoding="utf-8")
    with pytest.raises(BadInput, match=rf"pools\.responses': {told}"):
        run_recipe(path, print)
    for shared in ({}, {"evals": {"sharded": True}}, {"generate": GENERATE}, {"rounds": GENERATE | {"count": 2}}):
        check_processes(recipe(**shared, **pools), load_pools())


@pytest.fixture
def champions(monkeypatch: pytest.MonkeyPatch) -> Callable[[Artifact | None], None]:
    """Sets who the champion is."""

    def be(policy: Artifact | None) -> None:
        monkeypatch.setattr("assets.generation.registered_champion", lambda *_: Champion(policy=policy))

    return be


def test_answers_of_an_earlier_champion_stay_and_new_prompts_go_to_the_one_of_today(
    store: Store,
    tmp_path: Path,
    champions: Callable[[Artifact | None], None],
    commit_checkpoint: Callable[..., Artifact],
) -> None:
    made(store, "sft_checkpoint")

    def request(*files: str) -> CandidatesRequest:
        for name in files:
            path = tmp_path / name
            path.write_text(json.dumps({"prompt": name}) + "\n", encoding="utf-8")
        prompts = {"files": [str(tmp_path / name) for name in files]}
        node = nodes(generate=GENERATE | {"prompts": prompts})["candidates"]
        asked = node.request(Upstream(store, "small"), None)
        assert isinstance(asked, CandidatesRequest)
        return asked

    def answered(asked: CandidatesRequest) -> None:
        """Makes it the current one, as if it had been made."""
        stage = Stage("candidates", 1, CandidatesRequest, lambda request, context: Result(request.model_dump_json()))
        store.write_ref(Ref(artifact=execute(stage, asked, store).artifact), "small", "candidates")

    champions(None)
    first = request("monday.jsonl")
    assert first.checkpoint == Upstream(store, "small")("sft_checkpoint")
    answered(first)
    one, other = commit_checkpoint("one"), commit_checkpoint("other")
    champions(one)
    assert request("monday.jsonl") == first, "a promotion makes nothing anew"
    second = request("monday.jsonl", "tuesday.jsonl")
    assert second.checkpoints == (first.checkpoint, one) and second.checkpoint == one
    answered(second)
    champions(other)
    assert request("monday.jsonl", "tuesday.jsonl") == second
    third = request("tuesday.jsonl", "wednesday.jsonl")
    assert third.checkpoints == (one, other)


def test_a_manifest_takes_the_generated_shard_with_its_reference(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sft_checkpoint", "generated_shard", "generated_logprobs"):
        made(store, name)
    monkeypatch.setattr("assets.preference_manifest.expected_keys", lambda *_: {})
    upstream = Upstream(store, "small")
    asked = nodes(generate=GENERATE)["preference_manifest"].request(upstream, None)
    assert isinstance(asked, ManifestRequest)
    assert asked.shards == {"generated": upstream("generated_shard")}
    assert asked.references == {"generated": upstream("generated_logprobs")}
