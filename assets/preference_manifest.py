"""`preference_manifest`: which shards, under which reference, a policy is trained on."""

from __future__ import annotations

from pathlib import Path

from alignment.artifacts import Artifact, Commit
from alignment.preferences.manifest import STAGE, ManifestRequest
from alignment.preferences.shards import shards_of
from alignment.recipe import Recipe
from assets.node import Node, Shown
from assets.plots import table
from assets.upstream import Upstream


def preference_manifest(recipe: Recipe) -> Node:
    def request(upstream: Upstream, shard: str | None) -> ManifestRequest:
        checkpoint = upstream("sft_checkpoint")
        shards: dict[str, Artifact] = {}
        references: dict[str, Artifact] = {}
        left_out: dict[str, str] = {}
        for name in shards_of(recipe.preferences, recipe.seed):
            rows, reference = upstream.get("preference_shard", name), upstream.get("reference_logprobs", name)
            if reason := why_left_out(upstream, checkpoint, rows, reference):
                left_out[name] = reason
            elif rows is not None and reference is not None:
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


def why_left_out(
    upstream: Upstream, checkpoint: Artifact, rows: Artifact | None, reference: Artifact | None
) -> str | None:
    """Why a shard cannot be trained on now; None when its reference log-probs are of these rows and this model."""
    if rows is None:
        return "not built"
    if reference is None:
        return "no reference log-probs"
    scored = upstream.store.commit_of(reference).inputs
    if scored["shard"].digest != rows.digest:
        return "reference log-probs are of other rows"
    if scored["checkpoint"].digest != checkpoint.digest:
        return "reference log-probs are of another checkpoint"
    return None


def show(commit: Commit, folder: Path) -> Shown:
    left_out = commit.summary.get("left_out", {})
    if not left_out:
        return Shown()
    return Shown(markdown={"left_out": table(("shard", "reason"), sorted(left_out.items()))})
