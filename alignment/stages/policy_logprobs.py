"""Stage `policy_logprobs`: the log-probs of a manifest's shards under a policy, each sequence scored once, ever.

It is `reference_logprobs` of all shards at once, through the same cache: new rows alone are forwarded, and so the
result need not be cut in shards.
"""

from __future__ import annotations

from alignment.data.manifest import read_manifest
from alignment.logprobs.table import folder_of
from alignment.stages.reference_logprobs import Scoring, score_shards
from alignment.stages.stage import Context, Result, Stage
from alignment.store import Artifact


class PolicyLogprobsRequest(Scoring):
    """`manifest` names the shards."""

    manifest: Artifact


def run(request: PolicyLogprobsRequest, context: Context) -> Result:
    """Writes the files of `reference_logprobs` for each shard, in a folder of its own; raises as that stage does."""
    shards = [shard.shard for shard in read_manifest(context.fetch(request.manifest)).shards]
    places = {shard: folder_of(context.out, shard.digest) for shard in shards}
    for folder in places.values():
        folder.mkdir(parents=True, exist_ok=True)
    return score_shards(request, context, places)


STAGE: Stage[PolicyLogprobsRequest] = Stage(
    name="policy_logprobs", code_version=1, request=PolicyLogprobsRequest, run=run, device="gpu", elastic=True
)
