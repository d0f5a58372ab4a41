"""Refs: the store's only mutable objects, saying where a stage's current artifact is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, ValidationError

from alignment.artifacts.commit import Artifact
from alignment.artifacts.errors import CorruptArtifact
from alignment.artifacts.place import Place


class Ref(BaseModel):
    """Where a node's current artifact is, and the runs that reported it; written once all of that is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: Artifact
    dagster_run_id: str | None = None
    mlflow_run_id: str | None = None


class Refs(Place):
    """The refs in a place, at `refs/<recipe>/<stage>[/<partition>].json`; small JSON files replaced as a whole."""

    def ref_path(self, recipe: str, stage: str, partition: str | None = None) -> str:
        parts = ["refs", recipe, stage] + ([] if partition is None else [quote(partition, safe="")])
        return self.path(*parts) + ".json"

    def read_ref(self, recipe: str, stage: str, partition: str | None = None) -> Ref | None:
        """Where a stage's current artifact is, or None when it was never made."""
        path = self.ref_path(recipe, stage, partition)
        try:
            return Ref.model_validate_json(self.fs.cat_file(path))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise CorruptArtifact(f"{path}: not a ref ({error.error_count()} errors)") from error

    def read_refs(self, recipe: str, stage: str) -> dict[str, Ref]:
        """The refs of all of a stage's partitions, by partition, from one listing."""
        folder = self.path("refs", recipe, stage)
        paths = [str(path) for path in self.fs.glob(f"{folder}/*.json")]
        told = self.fs.cat(paths, on_error="return") if paths else {}
        for path, error in told.items():
            if isinstance(error, Exception) and not isinstance(error, FileNotFoundError):  # one may go while we look
                raise OSError(f"{path}: cannot be read: {error}") from error
        texts = {path: text for path, text in told.items() if not isinstance(text, Exception)}
        try:
            return {unquote(PurePosixPath(path).stem): Ref.model_validate_json(text) for path, text in texts.items()}
        except ValidationError as error:
            raise CorruptArtifact(f"{folder}: not a ref ({error.error_count()} errors)") from error

    def remove_ref(self, recipe: str, stage: str, partition: str | None = None) -> None:
        """Forgets where a stage's current artifact is; the artifact stays. Safe to repeat."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(self.ref_path(recipe, stage, partition))

    def write_ref(self, ref: Ref, recipe: str, stage: str, partition: str | None = None) -> None:
        self.replace(self.ref_path(recipe, stage, partition), ref.model_dump_json(indent=1).encode())
