"""The rows of a recipe's shards, made or not, and those that the cache of reference log-probs does not hold yet."""

from __future__ import annotations

import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.rows import ROWS_FILE
from alignment.data.validate import Validation
from alignment.errors import BadInput
from alignment.logprobs.cache import LogprobCache, as_keys
from alignment.logprobs.keys import fingerprint, numerics_class
from alignment.logprobs.token_ids import policy_name
from alignment.models.checkpoint import read_config, whole_summary
from alignment.recipe import Recipe
from alignment.stages.preference_shard import ShardRequest, drawn_rows, records_of
from alignment.store import Artifact, MissingArtifact, Store
from alignment_dags.run.plan import Planned, PlannedUpstream
from alignment_dags.run.workspace import Workspace
from assets.champion_reference import FIRST, Referred, champion_now, referred_to
from assets.policy_checkpoint import policies_of

READ_AT_MOST = 1 << 24
"""Bytes of source files that a plan reads row by row, about a second of work."""


def rows_of_shards(workspace: Workspace, planned: list[Planned]) -> dict[str, list[str]] | None:
    """Row ids by shard: of a shard that is not made, by reading its file as the stage will. None where that is not
    known: of a data set on the hub, or of files that are too large to be read for a plan."""
    shards = [step for step in planned if step.node.name == "preference_shard" and step.shard is not None]
    upstream = workspace.upstream()
    found: dict[str, list[str]] = {}
    left = READ_AT_MOST
    for step in shards:
        try:
            if step.commit is not None:
                found[str(step.shard)] = row_ids_of(workspace.store, step.commit.artifact)
                continue
            request = step.node.request(upstream, step.shard)
            assert isinstance(request, ShardRequest)
            if request.file is None or (left := left - request.file.size) < 0:
                return None
            found[str(step.shard)] = _to_make(request)
        except (BadInput, ConnectionError, MissingArtifact):
            return None
    return found or None


def row_ids_of(store: Store, shard: Artifact) -> list[str]:
    """The ids of a shard's rows."""
    ids: list[str] = pq.read_table(store.fetch(shard) / ROWS_FILE, columns=["row_id"])["row_id"].to_pylist()
    return ids


def _to_make(request: ShardRequest) -> list[str]:
    kept = drawn_rows(request)
    validation = Validation(frozenset(request.withdrawn), request.reading, split_pairs=request.split_pairs)
    accepted = (row.row_id for row in validation.accepted(records_of(request), request.source))
    return [row_id for row_id in accepted if kept is None or row_id in kept]


def reference_to_come(workspace: Workspace, planned: list[Planned]) -> Referred:
    """What the next set of rows is trained against (`generate.reference: champion`), as the plan knows it. Raises
    `NotBuilt` where that is not known before the start checkpoint is made."""
    recipe, upstream = workspace.recipe, PlannedUpstream(workspace.store, workspace.recipe.name)
    steps = {step.node.name: step for step in planned if step.shard is None}
    for name in (recipe.start, FIRST):
        if (commit := steps[name].commit) is None:
            upstream.not_known(name)
        else:
            upstream.foresee(name, None, commit, None)
    if steps[FIRST].commit is None:  # other rows than were trained on
        return champion_now(recipe, upstream)
    return referred_to(recipe, upstream, policies_of(recipe)[-1].name)


def not_scored(store: Store, recipe: Recipe, checkpoint: Artifact, row_ids: list[str]) -> int:
    """How many of the rows have a side that was never scored under the checkpoint, as the recipe scores; loads no
    model."""
    about = whole_summary(store.commit_of(checkpoint).summary, lambda: store.fetch(checkpoint))
    reference = recipe.reference
    name = fingerprint(
        about["weights_digest"],
        about["config_digest"],
        reference.precision,
        quantisation=recipe.reference_quantise,
        numerics=numerics_class(
            reference.precision,
            reference.batch_tokens,
            lambda: read_config(store.fetch(checkpoint)),
            recipe.dpo.tf32,
        ),
        rope_by_length=about["rope_by_length"],
    )
    policy = policy_name(recipe.tokens, about, lambda: store.fetch(checkpoint))
    cache = LogprobCache(store, name, policy)
    known = [row for row in cache.rows(row_ids) if row is not None]
    sides = {row.row_id: [key for key in (row.chosen, row.rejected) if key is not None] for row in known}
    keys = sorted({key for each in sides.values() for key in each})
    there = pc.is_valid(cache.values(as_keys(keys))["sum"]).to_pylist()
    scored = {key for key, is_there in zip(keys, there, strict=True) if is_there}
    done = {row_id for row_id, each in sides.items() if scored.issuperset(each)}  # a dropped row has no side to score
    return sum(row_id not in done for row_id in row_ids)
