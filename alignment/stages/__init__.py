"""Stages and the one way to run them."""

from alignment.stages.execute import execute
from alignment.stages.stage import CheckpointSummary, Context, Request, Result, SourceFile, Stage

__all__ = ["CheckpointSummary", "Context", "Request", "Result", "SourceFile", "Stage", "execute"]
