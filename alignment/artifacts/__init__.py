"""Artifacts: what stages make, kept under a digest of everything that went in."""

from alignment.artifacts.commit import Artifact, Commit, Erasure, FileEntry
from alignment.artifacts.refs import Ref
from alignment.artifacts.store import CorruptArtifact, ErasedArtifact, MissingArtifact, Store

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
]
