"""The commit record: the last file of an artifact, and the only one readers trust."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Artifact(BaseModel):
    """A pinned pointer to one committed artifact.

    `key` names the request that made it, `digest` (the data version) its result; `attempt` is the
    folder that holds the files. Only kind and digest count in the key of what is built from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    key: str
    attempt: str
    digest: str

    def identity(self) -> dict[str, str]:
        return {"kind": self.kind, "digest": self.digest}


class FileEntry(BaseModel):
    """One file of an artifact; `size` in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size: int


class Commit(BaseModel):
    """`_COMMIT.json`: what was made, from what, by which code, and where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    kind: str
    key: str
    attempt: str
    digest: str
    stage: str
    code_version: int
    inputs: dict[str, Artifact]
    files: dict[str, FileEntry]
    summary: dict[str, Any]
    environment: dict[str, str]
    started_at: str
    seconds: float

    @property
    def artifact(self) -> Artifact:
        return Artifact(kind=self.kind, key=self.key, attempt=self.attempt, digest=self.digest)


class Erasure(BaseModel):
    """`_ERASED-<attempt>.json`: a commit record whose artifact lost `files` on purpose; the others still stand."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    commit: Commit
    at: str
    why: str
    files: list[str]

    @property
    def told(self) -> str:
        return f"erased on {self.at}: {self.why}"
