"""Refs: the store's only mutable objects, saying where a stage's current artifact is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from alignment.artifacts.commit import Artifact


class Ref(BaseModel):
    """Where a node's current artifact is, and the runs that reported it; written once all of that is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: Artifact
    dagster_run_id: str | None = None
    mlflow_run_id: str | None = None
