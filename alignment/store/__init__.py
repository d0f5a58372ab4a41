"""Artifacts: what stages make, kept under a digest of everything that went in."""

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
