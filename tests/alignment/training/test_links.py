"""Links of a chain, stage by stage, for methods that ask more of the log-probs than two sums a pair."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.data.validate import halves
from alignment.methods import METHODS
from alignment.recipe import TokenPolicy
from alignment.stages import execute
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.policy import DpoRequest
from alignment.stages.policy_checkpoint import STAGE
from alignment.stages.policy_logprobs import STAGE as SCORING
from alignment.stages.policy_logprobs import PolicyLogprobsRequest
from alignment.stages.preference_manifest import STAGE as MANIFEST
from alignment.stages.preference_manifest import ManifestRequest
from alignment.stages.stage import PolicySummary, ReferenceSummary
from alignment.training.agreement import Disagreement
from alignment.training.held_out_pairs import HELD_OUT_FILE, parse_held_out

SHARE = 0.3


@pytest.mark.parametrize("loss", ["kto", "ld_dpo"])
def test_a_link_refers_to_its_start_or_to_the_sft_checkpoint(lab: Any, loss: str) -> None:
    method, store = METHODS[loss], lab.store
    rows = lab.rows(24)
    rows = [half for row in rows for half in halves(row)] if method.data == "unpaired" else rows
    sft = lab.checkpoint(kind="qwen2")
    first_manifest = lab.scored_manifest(sft, rows, method, held_out_fraction=SHARE, parts=2)
    settings = {"loss": loss, "learning_rate": 5e-3, "batch_size": 8}
    first = execute(STAGE, lab.dpo_request(sft, first_manifest, **settings), store)

    scoring = PolicyLogprobsRequest(
        checkpoint=first.artifact,
        manifest=first_manifest,
        tokens=TokenPolicy(max_length=64),
        precision="float32",
        batch_tokens=400,
        first_tokens=method.first_tokens,
        held_out_fraction=SHARE if method.coupled else None,
    )
    scored = execute(SCORING, scoring, store)
    before = [ReferenceSummary.of(commit) for commit in store.commits("reference_logprobs")]
    assert ReferenceSummary.of(scored).scored == sum(one.scored for one in before), "the same sequences, once each"

    asked = ManifestRequest.model_validate_json(store.read(first_manifest, REQUEST_FILE))
    references = dict.fromkeys(asked.shards, scored.artifact)
    manifest = execute(MANIFEST, asked.model_copy(update={"references": references}), store).artifact
    from_start = lab.dpo_request(first.artifact, manifest, **settings)
    second = execute(STAGE, from_start, store)
    assert PolicySummary.of(second).agreement["worst_nats"] < 1e-3, "it starts as its reference"

    from_sft = DpoRequest.model_validate(
        lab.dpo_request(first.artifact, first_manifest, **settings).model_dump() | {"reference": sft}
    )
    third = execute(STAGE, from_sft, store)
    assert PolicySummary.of(third).agreement["worst_nats"] < 1e-3, "the SFT checkpoint is scored again"
    keys = [
        [row.keys for row in parse_held_out(store.read(one.artifact, HELD_OUT_FILE))] for one in (first, second, third)
    ]
    assert keys[0] == keys[1] == keys[2], "all were measured against the SFT checkpoint"

    wrong = DpoRequest.model_validate(from_start.model_dump() | {"reference": sft})
    with pytest.raises(Exception, match=r"score the shard again"):
        execute(STAGE, wrong, store)


def test_a_reference_that_does_not_score_as_the_cache_ends_the_link(lab: Any) -> None:
    sft = lab.checkpoint(kind="qwen2")

    def shifted(scored: list[dict[str, Any]]) -> None:
        for cells in scored:
            cells["chosen_logp"] -= 0.5

    right, wrong = lab.manifest(sft, lab.rows(12)), lab.manifest(sft, lab.rows(12, seed=1), change=shifted)
    first = execute(STAGE, lab.dpo_request(sft, right), lab.store)
    given = lab.dpo_request(first.artifact, wrong).model_dump() | {"reference": sft}
    with pytest.raises(Disagreement, match="the cached reference's"):
        execute(STAGE, DpoRequest.model_validate(given), lab.store)
