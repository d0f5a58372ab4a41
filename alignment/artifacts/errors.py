"""What can be wrong with an artifact that somebody asks for."""

from __future__ import annotations


class MissingArtifact(LookupError):
    """No committed artifact where one was expected."""


class CorruptArtifact(RuntimeError):
    """A committed artifact whose files are not what its commit record says."""


class ErasedArtifact(MissingArtifact):
    """An artifact whose commit record stands while files of it were erased on purpose."""
