"""`champion/policy_logprobs` and `champion/preference_manifest`: the pinned set under the champion as its reference.

With `generate.reference: champion` a policy is trained against the champion and not against the SFT checkpoint. Each
champion scores all rows once; while the champion stays, because a gate rejected its rivals, new rows alone are scored.
A set keeps the reference that it was first trained with: otherwise the promotion of its own policy would make that
policy's reference another one, and the next run would train the same rows again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from alignment.errors import BadInput
from alignment.recipe.recipe import Recipe
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.policy_logprobs import STAGE as LOGPROBS_STAGE
from alignment.stages.policy_logprobs import PolicyLogprobsRequest
from alignment.stages.preference_manifest import ManifestRequest
from alignment.stages.stage import CheckpointSummary, scored_by
from alignment.store import Artifact, Commit, MissingArtifact, Store
from assets.building.node import Node, NotNeeded, Shown
from assets.building.upstream import Upstream
from assets.champion import registered_champion
from assets.merge import is_usable, require_same
from assets.policy_checkpoint import OF_CHAMPION
from assets.preference_manifest import manifest, source_names
from assets.preference_manifest import show as show_manifest
from assets.reference_logprobs import scoring

LOGPROBS, MANIFEST = "champion/policy_logprobs", OF_CHAMPION
FIRST = "preference_manifest"


@dataclass(frozen=True)
class Referred:
    """The checkpoint that a set's reference log-probs are of, None for the start checkpoint, and why it is this one."""

    checkpoint: Artifact | None
    why: str


def against_champion(recipe: Recipe, trained: str) -> Iterator[Node]:
    """The nodes of the log-probs under the champion, and of the set with them as its references; `trained` names the
    node of the policy that is trained on it."""
    about = _Said()

    def logprobs(upstream: Upstream, shard: str | None) -> PolicyLogprobsRequest:
        referred = referred_to(recipe, upstream, trained)
        if referred.checkpoint is None:
            raise NotNeeded(referred.why)
        return PolicyLogprobsRequest(checkpoint=referred.checkpoint, manifest=upstream(FIRST), **scoring(recipe))

    def pinned(upstream: Upstream, shard: str | None) -> ManifestRequest:
        referred, rows = referred_to(recipe, upstream, trained), upstream(FIRST)
        about.text, first = referred.why, request_of(upstream.store, rows)
        if referred.checkpoint is None:
            return first  # found by its own request, and not made again
        scored = upstream(LOGPROBS)
        made = upstream.store.commit_of(scored).inputs
        if (made["manifest"].digest, made["checkpoint"].digest) != (rows.digest, referred.checkpoint.digest):
            raise BadInput(
                "somebody promoted another version while this ran, which has not scored these rows: run again"
            )
        return first.model_copy(update={"references": dict.fromkeys(first.shards, scored)})

    def show(commit: Commit, folder: Path) -> Shown:
        shown = show_manifest(commit, folder, source_names(recipe))
        return replace(shown, markdown={"reference": about.text, **shown.markdown})

    yield Node(
        name=LOGPROBS,
        phase="train",
        stage=LOGPROBS_STAGE,
        description="Log-probs of the rows of all shards under the champion, cached by sequence.",
        kinds=frozenset({"pytorch", "parquet"}),
        needs=(FIRST,),
        request=logprobs,
        pool=recipe.pools.reference,
    )
    description = "The pinned set with the champion as its reference; before there is one, with the SFT checkpoint."
    yield replace(manifest(recipe, MANIFEST, description, (FIRST, LOGPROBS), pinned), show=show)


@dataclass
class _Said:
    """What a node's request has found of its reference, for the node's page."""

    text: str = field(default="")


def referred_to(recipe: Recipe, upstream: Upstream, trained: str) -> Referred:
    """The reference of the first manifest as it is now: the one that its rows were trained with, where they were, and
    else that of a new set."""
    store, policy = upstream.store, upstream.get(trained)
    try:
        known = None if policy is None else store.commit_of(policy).inputs["manifest"]
        if known is not None and rows_of(request_of(store, known)) == rows_of(request_of(store, upstream(FIRST))):
            before = scored_by(store.commit_of, known)
            if before is None or unfit(recipe, upstream, before) is None:
                named = "the SFT checkpoint" if before is None else f"champion {before.digest[:12]}"
                return Referred(before, f"the reference is {named}, with which this set of rows was first trained on")
    except MissingArtifact:  # erased: what was trained on is not known any more
        pass
    return champion_now(recipe, upstream)


def champion_now(recipe: Recipe, upstream: Upstream) -> Referred:
    """The reference of a set that was never trained on: the champion, where it can be one."""
    instead = "the reference is the SFT checkpoint"
    champion = registered_champion(upstream.store, upstream.get("registered_model"))
    if champion.policy is None:
        return Referred(None, f"{instead}: there is no champion yet")
    version = f"champion {champion.policy.digest[:12]}, version {champion.version}"
    if (problem := unfit(recipe, upstream, champion.policy)) is not None:
        return Referred(None, f"{instead}: {version} {problem}")
    return Referred(champion.policy, f"the reference is {version}")


def unfit(recipe: Recipe, upstream: Upstream, policy: Artifact) -> str | None:
    """Why a policy cannot be the reference of what the recipe trains now; None where it can."""
    if not is_usable(upstream, policy):
        return "has lost its weights, or learned what was withdrawn since"
    start = upstream(recipe.start)
    one, other = (CheckpointSummary.of(upstream.store.commit_of(each)) for each in (start, policy))
    if one.tokenizer_digest != other.tokenizer_digest:  # it would be asked about other ids than are trained on
        return "has another tokenizer"
    try:
        require_same(upstream.store, start, policy, "it")
    except BadInput:
        return "is of another architecture"
    return None


def request_of(store: Store, pinned: Artifact) -> ManifestRequest:
    """The request of a manifest."""
    return ManifestRequest.model_validate_json(store.read(pinned, REQUEST_FILE))


def rows_of(request: ManifestRequest) -> object:
    """What a set holds, whatever its shards are called and its reference is."""
    plain: dict[str, object] = {"shards": {}, "references": {}, "left_out": {}}
    return sorted(shard.digest for shard in request.shards.values()), request.model_copy(update=plain).identity()
