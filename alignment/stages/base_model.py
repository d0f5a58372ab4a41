"""Stage `base_model`: the pinned model as a checkpoint artifact, so that nothing later depends on where it was."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from alignment.models.check import check_loads
from alignment.models.checkpoint import checkpoint_summary, digest_checkpoint
from alignment.models.code import record_of_code
from alignment.models.pin import ModelPin, materialise
from alignment.stages.stage import CheckpointSummary, Context, Request, Result, Stage


class BaseModelRequest(Request):
    """`seed` makes the embedded model; a model from elsewhere is what it is, and its key has no seed."""

    pin: ModelPin
    seed: int

    def identity(self) -> Any:
        """The seed is part of it for the embedded model alone."""
        identity = super().identity()
        if self.pin.embedded is None:
            del identity["seed"]
        return identity


class BaseModelSummary(CheckpointSummary):
    """`source` is where the model came from: a hub id with its revision, a folder, or an embedded model's name."""

    source: dict[str, Any] | None = Field(default=None, validation_alias="from", serialization_alias="from")


def run(request: BaseModelRequest, context: Context) -> Result:
    """Writes the checkpoint folder at the artifact's root; the data version is the checkpoint's digest."""
    runs_code = request.pin.runs_code
    materialise(request.pin, context.out, request.seed)
    check_loads(context.out, runs_code)
    digest = digest_checkpoint(context.out, runs_code)
    about = checkpoint_summary(context.out, digest) | record_of_code(context.out, runs_code)
    return Result(digest=digest.digest, summary=BaseModelSummary(**about, source=request.pin.told()))


STAGE: Stage[BaseModelRequest] = Stage(name="base_model", code_version=1, request=BaseModelRequest, run=run)
