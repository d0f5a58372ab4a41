"""Artifacts: the results of stages, each kept under a digest of all its inputs."""

from alignment.errors import CorruptArtifact, ErasedArtifact, MissingArtifact
from alignment.store.commit import Artifact, Commit, Erasure, FileEntry, Summary
from alignment.store.store import Ref, Store

__all__ = [
    "Artifact",
    "Commit",
    "CorruptArtifact",
    "ErasedArtifact",
    "Erasure",
    "FileEntry",
    "MissingArtifact",
    "Ref",
    "Store",
    "Summary",
]
