"""The tree of a version whose champions answered for each other's successors, night after night."""

from __future__ import annotations

import json
from typing import Any

from alignment.store import Artifact, Commit
from alignment_dags.registry.lineage import _tree
from eval.stages.evaluation_report import STAGE as REPORT

NIGHTS = 400


def commit(kind: str, key: str, inputs: dict[str, Artifact], summary: dict[str, Any] | None = None) -> Commit:
    return Commit(
        kind=kind,
        key=key,
        attempt="a",
        digest=key,
        stage=kind,
        code_version=1,
        inputs=inputs,
        files={},
        summary=summary or {},
        environment={},
        started_at="2026-01-01T00:00:00+00:00",
        seconds=1.0,
    )


def nights(count: int) -> tuple[Commit, dict[str, Commit]]:
    """Each night's champion samples the next night's answers and is its reference."""
    made: dict[str, Commit] = {}

    def make(kind: str, number: int, summary: dict[str, Any] | None = None, **inputs: Artifact) -> Artifact:
        one = commit(kind, f"{kind}-{number}", inputs, summary)
        made[one.key] = one
        return one.artifact

    sft, counts = make("sft_checkpoint", 0), {"prompts": 1, "candidates": 1, "tokens": 1, "cut": 0, "quarantined": 0}
    champion, given = sft, dict[str, Artifact]()
    for number in range(count):
        about = counts | {"generator": f"champion {number}"}
        answers = make(
            "candidates", number, about, checkpoint=champion, **{f"checkpoints.{k}": a for k, a in given.items()}
        )
        given[str(number)] = champion
        shard = make("preference_shard", number, candidates=answers)
        reference = {} if champion == sft else {"reference": champion}
        first = make("preference_manifest", number, **{"shards.generated": shard})
        scored = make("policy_logprobs", number, checkpoint=champion, manifest=first)
        pinned = make(
            "preference_manifest", number + count, **{"shards.generated": shard, "references.generated": scored}
        )
        champion = make("policy_checkpoint", number, checkpoint=sft, manifest=pinned, **reference)
    report = make(REPORT.kind, 0, policy=champion)
    return commit("registered_model", "registered", {"policy": champion, "report": report}), made


def test_a_champion_s_own_lineage_is_not_told_again_in_that_of_each_version_after_it() -> None:
    registration, made = nights(NIGHTS)
    seen: dict[str, Commit] = {}
    tree = _tree(registration, lambda artifact: made[artifact.key], seen, set())
    assert len(json.dumps(tree)) < 1000 * NIGHTS and len(seen) < NIGHTS + 20
    policy = tree["inputs"]["policy"]
    assert policy["inputs"]["checkpoint"]["kind"] == "sft_checkpoint"
    champion = policy["inputs"]["manifest"]["inputs"]["references.generated"]["inputs"]["checkpoint"]
    assert champion["key"] == f"policy_checkpoint-{NIGHTS - 2}"
    assert (champion["lineage"], champion["inputs"]) == ("its own", {})
    assert policy["inputs"]["reference"]["lineage"] == "its own"
    assert tree["inputs"]["report"]["inputs"]["policy"]["lineage"] == "above"


def test_the_policies_of_a_chain_and_of_rounds_are_told_where_they_first_stand() -> None:
    made: dict[str, Commit] = {}

    def make(kind: str, key: str, summary: dict[str, Any] | None = None, **inputs: Artifact) -> Artifact:
        made[key] = commit(kind, key, inputs, summary)
        return made[key].artifact

    sft, whole = make("sft_checkpoint", "sft"), make("preference_manifest", "whole")
    first = make("policy_checkpoint", "first", checkpoint=sft, manifest=whole)
    scored = make("policy_logprobs", "scored", checkpoint=first, manifest=whole)
    second = make("policy_checkpoint", "second", checkpoint=first, manifest=make("preference_manifest", "m", r=scored))
    counts = {"prompts": 1, "candidates": 1, "tokens": 1, "cut": 0, "quarantined": 0, "generator": "policy of round 1"}
    answers = make("candidates", "answers", counts, checkpoint=second)
    last = make("policy_checkpoint", "last", checkpoint=sft, manifest=make("preference_manifest", "n", c=answers))
    tree = _tree(commit("registered_model", "r", {"policy": last}), lambda artifact: made[artifact.key], {}, set())
    of_round = tree["inputs"]["policy"]["inputs"]["manifest"]["inputs"]["c"]["inputs"]["checkpoint"]
    assert of_round["key"] == "second" and "lineage" not in of_round
    link = of_round["inputs"]["checkpoint"]
    assert link["key"] == "first" and "manifest" in link["inputs"]
    assert of_round["inputs"]["manifest"]["inputs"]["r"]["inputs"]["checkpoint"]["lineage"] == "above"
