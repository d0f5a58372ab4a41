"""Artifacts: what stages make, kept under a digest of everything that went in."""

from alignment.artifacts.commit import Artifact, Commit, FileEntry
from alignment.artifacts.refs import Ref
from alignment.artifacts.store import CorruptArtifact, MissingArtifact, Store

__all__ = [
    "Artifact",
    "Commit",
    "CorruptArtifact",
    "FileEntry",
    "MissingArtifact",
    "Ref",
    "Store",
]
