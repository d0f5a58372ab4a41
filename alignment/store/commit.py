"""The commit record: the last file of an artifact that is written. Readers trust no artifact without it."""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from alignment.errors import CorruptArtifact, NewerFormat

STORE_FORMAT = 1
"""The format of the records that this version writes, and the newest format that it reads. It is raised when an older
version would misread the records."""


def _readable(number: int) -> int:
    if number > STORE_FORMAT:  # not a ValueError: pydantic would list it among the other errors of such a record
        raise NewerFormat(
            f"made by a newer version of alignment-dags (store format {number}, this one reads up to {STORE_FORMAT}):"
            " upgrade"
        )
    return number


Format = Annotated[int, Field(ge=1), AfterValidator(_readable)]
"""A record's store format. A record without the field has format 1; a newer format raises `NewerFormat`."""


class Artifact(BaseModel):
    """A pinned pointer to a committed artifact.

    `key` identifies the request that made it, and `digest` (the data version) its result. `attempt` is the name of the
    folder with the files. Only kind and digest count in the keys of artifacts that are built from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    key: str
    attempt: str
    digest: str

    def identity(self) -> dict[str, str]:
        """What stands for the artifact in the key of a request: kind and digest, not the attempt."""
        return {"kind": self.kind, "digest": self.digest}


class FileEntry(BaseModel):
    """One file of an artifact; `size` in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size: int


class Commit(BaseModel):
    """`_COMMIT.json`: the files of an artifact, its inputs, and the code and the environment that made it.

    `started_at` is an ISO time in UTC, `seconds` the time that the build took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format = 1
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
        """The pinned pointer to what was committed."""
        return Artifact(kind=self.kind, key=self.key, attempt=self.attempt, digest=self.digest)


class Summary(BaseModel):
    """What a stage says of its result: one class a stage, which the stage fills and every reader reads through.

    A commit record keeps the fields that the stage set. An older record may lack some of them, so a field that was not
    always there has a default; what a newer version added is passed over.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True)

    @classmethod
    def of(cls, commit: Commit) -> Self:
        """The summary in a commit record; raises `CorruptArtifact` naming record and field where it cannot be read."""
        names = {field.validation_alias or name for name, field in cls.model_fields.items()}
        try:
            return cls.model_validate({name: value for name, value in commit.summary.items() if name in names})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, ("summary", *first["loc"])))
            raise CorruptArtifact(
                f"the commit record of {commit.kind}/{commit.key} cannot be read: field '{field}': {first['msg']};"
                " upgrade alignment-dags if a newer version wrote it, else restore the record from a backup"
            ) from error

    def recorded(self) -> dict[str, Any]:
        """The fields that were set, as plain JSON."""
        return self.model_dump(mode="json", by_alias=True, include=self.model_fields_set)


class Erasure(BaseModel):
    """`_ERASED-<attempt>.json`: the commit record of an artifact whose `files` were erased on purpose.

    Its other files are still there. `at` is an ISO time in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format = 1
    commit: Commit
    at: str
    why: str
    files: list[str]

    @property
    def message(self) -> str:
        """When and why the files were erased, as the end of a sentence."""
        return f"erased on {self.at}: {self.why}"


Record = TypeVar("Record", Commit, Erasure)


def read_record(record: type[Record], text: bytes | str, path: str) -> Record:
    """The record in a file of a store; raises `NewerFormat` or `CorruptArtifact`, naming the file."""
    try:
        return record.model_validate_json(text)
    except NewerFormat as error:
        raise NewerFormat(f"{path}: {error}") from None
    except ValidationError as error:
        what = "a commit record" if record is Commit else "an erasure record"
        raise CorruptArtifact(f"{path}: not {what} ({error.error_count()} errors)") from error
