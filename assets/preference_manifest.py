"""`preference_manifest`: which shards, under which reference, a policy is trained on."""

from __future__ import annotations

from pathlib import Path

from alignment.artifacts import Artifact, Commit
from alignment.preferences.manifest import STAGE, ManifestRequest
from alignment.preferences.shard import STAGE as SHARD
from alignment.recipe import Recipe
from assets.node import Node, Shown
from assets.plots import table
from assets.reference_logprobs import reference_logprobs
from assets.upstream import Upstream


def preference_manifest(recipe: Recipe) -> Node:
    scored = reference_logprobs(recipe)

    def request(upstream: Upstream, shard: str | None) -> ManifestRequest:
        shards: dict[str, Artifact] = {}
        references: dict[str, Artifact] = {}
        left_out: dict[str, str] = {}
        for name, shard_request in upstream.shards(recipe.preferences, recipe.seed).items():
            rows, reference = upstream.get("preference_shard", name), upstream.get("reference_logprobs", name)
            if rows is None:
                left_out[name] = "not built"
            elif shard_request.withdrawn and rows.key != SHARD.key(shard_request):
                left_out[name] = "rows of it were withdrawn, and it was not built without them"
            elif reference is None:
                left_out[name] = "no reference log-probs"
            elif reference.key != scored.stage.key(scored.request(upstream, name)):
                left_out[name] = "its reference log-probs are of other rows, another checkpoint or other settings"
            else:
                shards[name], references[name] = rows, reference
        return ManifestRequest(
            shards=shards,
            references=references,
            left_out=left_out,
            held_out_fraction=recipe.held_out_fraction,
        )

    return Node(
        name="preference_manifest",
        stage=STAGE,
        description="The pinned set of shards and their reference log-probs, and the train / held-out split.",
        kinds=frozenset({"json", "parquet"}),
        needs=("sft_checkpoint", "preference_shard", "reference_logprobs"),
        request=request,
        show=show,
    )


def show(commit: Commit, folder: Path) -> Shown:
    left_out = commit.summary.get("left_out", {})
    if not left_out:
        return Shown()
    return Shown(markdown={"left_out": table(("shard", "reason"), sorted(left_out.items()))})
