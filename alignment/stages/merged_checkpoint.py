"""Stage `merged_checkpoint`: a policy that is a weighted average of a trained one and of other checkpoints.

Its artifacts are of the kind of policies, with the same files: what reads a policy reads a merged one. `checkpoint` is
the trained policy, so that lineage leads through it to where training started.
"""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from alignment.data.manifest import read_manifest
from alignment.logprobs.effort import ALONE
from alignment.models.checkpoint import checkpoint_summary, digest_checkpoint
from alignment.models.code import record_of_code
from alignment.models.merging import write_average
from alignment.models.runner import tf32_products
from alignment.recipe.forward import TokenPolicy
from alignment.recipe.training import Dpo
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.policy import DpoRequest
from alignment.stages.policy_checkpoint import measure_held_out, training_rows
from alignment.stages.stage import POLICY, Context, PolicySummary, Request, Result, Stage
from alignment.store import Artifact

TRAINED = "policy"
"""The name of the trained policy among the parts."""


class MergeRequest(Request):
    """The parts by name, with their weights; one is `checkpoint`, which was trained on `manifest` by `settings`."""

    checkpoint: Artifact
    manifest: Artifact
    settings: Dpo
    tokens: TokenPolicy
    parts: dict[str, Artifact]
    weights: dict[str, float]

    @model_validator(mode="after")
    def _weights_of_parts(self) -> MergeRequest:
        if self.parts.keys() != self.weights.keys() or self.parts.get(TRAINED) != self.checkpoint:
            raise ValueError("parts and weights go together, and the policy is one of them")
        return self

    def identity(self) -> Any:
        """Of the weights only their proportions count."""
        total = sum(self.weights.values())
        return super().identity() | {"weights": {name: weight / total for name, weight in self.weights.items()}}


def run(request: MergeRequest, context: Context) -> Result:
    """Writes the checkpoint, and the policy's training_rows.parquet and held_out.parquet, measured on the average.

    Raises `BadInput` for parts of another architecture.
    """
    if context.rank:
        return Result(digest="")
    trained = DpoRequest.model_validate_json(context.store.read(request.checkpoint, REQUEST_FILE))
    runs_code, total = context.runs_code(request.checkpoint), sum(request.weights.values())
    parts = {name: (context.fetch(part), request.weights[name] / total) for name, part in request.parts.items()}
    write_average(parts, TRAINED, context.out, runs_code=runs_code)
    folder, manifest_folder = context.fetch(trained.checkpoint), context.fetch(trained.manifest)
    manifest = read_manifest(manifest_folder)
    rows, dropped, _ = training_rows(trained, context, ALONE, folder, manifest_folder, manifest)
    with tf32_products(trained.settings.tf32):
        measured = measure_held_out(trained, context, rows, context.out)
    digest = digest_checkpoint(context.out, runs_code)
    about = checkpoint_summary(context.out, digest) | record_of_code(context.out, runs_code)
    summary = PolicySummary(
        **about,
        **measured,
        steps=0,
        tokens=0,
        rows_trained=len(rows.train),
        rows_held_out=len(rows.held_out),
        rows_dropped=dropped,
        merged={name: round(weight, 6) for name, (_, weight) in parts.items()},
    )
    return Result(digest=digest.digest, summary=summary)


STAGE: Stage[MergeRequest] = Stage(
    name="merged_checkpoint", code_version=1, request=MergeRequest, run=run, device="gpu", kind=POLICY
)
