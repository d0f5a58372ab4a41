"""Artifacts: what stages make, kept under a digest of everything that went in."""

from alignment.artifacts.commit import Artifact, Commit, Erasure, FileEntry
from alignment.artifacts.errors import CorruptArtifact, ErasedArtifact, MissingArtifact
from alignment.artifacts.refs import Ref
from alignment.artifacts.store import Store

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
