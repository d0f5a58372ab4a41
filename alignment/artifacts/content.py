"""What an artifact's folder holds: described when it is committed, verified when it is read."""

from __future__ import annotations

import os
from pathlib import Path

from alignment.artifacts.commit import Commit, FileEntry
from alignment.artifacts.errors import CorruptArtifact
from alignment.digest import stream_sha256

NOT_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def describe(folder: Path) -> dict[str, FileEntry]:
    """sha256 and size of every file of a finished folder; pickled weights are refused."""
    files: dict[str, FileEntry] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        if path.suffix in NOT_WEIGHTS:
            raise CorruptArtifact(f"{path}: artifacts hold no pickled weights; save as safetensors")
        with path.open("rb") as stream:
            sha256, size = stream_sha256(stream)
            os.fsync(stream.fileno())  # the marker must not outlive, in a power cut, what it speaks of
        files[name] = FileEntry(sha256=sha256, size=size)
    return files


def verify(folder: Path, commit: Commit, *, deep: bool) -> None:
    """Checks a folder against its commit: every size always, every sha256 when `deep`."""
    for name, expected in commit.files.items():
        path = folder / name
        if not path.is_file():
            raise CorruptArtifact(f"{path}: named in the commit record but missing")
        if path.stat().st_size != expected.size:
            raise CorruptArtifact(f"{path}: {path.stat().st_size} bytes, committed with {expected.size}")
        if deep:
            with path.open("rb") as stream:
                sha256, _ = stream_sha256(stream)
            if sha256 != expected.sha256:
                raise CorruptArtifact(f"{path}: sha256 {sha256}, committed with {expected.sha256}")
