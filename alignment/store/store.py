"""The artifact store: `<kind>/<key>/<attempt>/…` on any fsspec URL, visible only once committed.

The commit marker is created exclusively and last, so of two builders of one key the first wins and
readers never see half an artifact.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.parse import quote, unquote

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from alignment.address import shown
from alignment.digest import stream_sha256
from alignment.errors import CorruptArtifact, ErasedArtifact, MissingArtifact
from alignment.store.commit import STORE_FORMAT, Artifact, Commit, Erasure, Record, read_record
from alignment.store.files import Deep, altered, describe, let_others_read, verify
from alignment.store.place import Place, explain_no_space

# Refs: the store's only mutable objects. Each names the current artifact of a stage in a recipe.


class Ref(BaseModel):
    """The current artifact of a node, and the Dagster and MLflow runs that reported it. It is written last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: Artifact
    dagster_run_id: str | None = None
    mlflow_run_id: str | None = None


@contextmanager
def missing_if_name_too_long(path: str) -> Iterator[None]:
    """Raises `FileNotFoundError` for a name that is too long for the file system: no such file can exist."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise FileNotFoundError(path) from None
        raise


class Refs(Place):
    """The refs of a store: small JSON files at `refs/<recipe>/<stage>[/<partition>].json`, each replaced as a whole."""

    def ref_path(self, recipe: str, stage: str, partition: str | None = None) -> str:
        """The path of a ref on `fs`; a partition's name is percent-encoded."""
        parts = ["refs", recipe, stage] + ([] if partition is None else [quote(partition, safe="")])
        return self.path(*parts) + ".json"

    def read_ref(self, recipe: str, stage: str, partition: str | None = None) -> Ref | None:
        """The ref of a stage's current artifact, or None if there is none. Raises `CorruptArtifact` for a broken
        file."""
        path = self.ref_path(recipe, stage, partition)
        try:
            with missing_if_name_too_long(path):
                return Ref.model_validate_json(self.fs.cat_file(path))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise CorruptArtifact(f"{path}: not a ref ({error.error_count()} errors)") from error

    def read_refs(self, recipe: str, stage: str) -> dict[str, Ref]:
        """The refs of all partitions of a stage, by partition, from one listing."""
        folder = self.path("refs", recipe, stage)
        contents = self.contents(self.matching(folder, "*.json"))
        for path, error in contents.items():
            # a ref that is not found was removed after the listing
            if isinstance(error, Exception) and not isinstance(error, FileNotFoundError):
                raise OSError(f"{path}: cannot be read: {error}") from error
        texts = {path: text for path, text in contents.items() if not isinstance(text, Exception)}
        try:
            return {unquote(PurePosixPath(path).stem): Ref.model_validate_json(text) for path, text in texts.items()}
        except ValidationError as error:
            raise CorruptArtifact(f"{folder}: not a ref ({error.error_count()} errors)") from error

    def remove_ref(self, recipe: str, stage: str, partition: str | None = None) -> None:
        """Removes a ref; the artifact stays. Safe to repeat."""
        path = self.ref_path(recipe, stage, partition)
        with suppress(FileNotFoundError), missing_if_name_too_long(path):
            self.fs.rm_file(path)

    def write_ref(self, ref: Ref, recipe: str, stage: str, partition: str | None = None) -> None:
        """Makes `ref` the current artifact of a stage or partition."""
        self.replace(self.ref_path(recipe, stage, partition), ref.model_dump_json(indent=1).encode())


COMMIT_FILE = "_COMMIT.json"
ERASED = "_ERASED-"
"""Prefix of an erasure record's name. The record replaces the commit marker when files of the artifact are erased."""


@dataclass(frozen=True)
class Attempt:
    """A folder that is being filled. Readers do not see it before its commit."""

    kind: str
    key: str
    name: str
    path: Path


class Store(Refs):
    """An artifact store. `cache` holds local copies of remote artifacts, and the work folders of a remote store, whose
    checkpoints are copied into the store (`alignment.store.work`)."""

    def uri(self, artifact: Artifact) -> str:
        """The artifact's folder as a URL that a person can open."""
        return shown(str(self.fs.unstrip_protocol(self.path(artifact.kind, artifact.key, artifact.attempt))))

    # Reading ------------------------------------------------------------------------------------

    def find(self, kind: str, key: str) -> Commit | None:
        """The commit of a key, or None when nothing was committed under it."""
        path = self.path(kind, key, COMMIT_FILE)
        try:
            text = self.fs.cat_file(path)
        except FileNotFoundError:
            return None
        return read_record(Commit, text, path)

    def commit_of(self, artifact: Artifact) -> Commit:
        """The commit record of a pinned pointer, even if files of the artifact were erased.

        Raises `MissingArtifact` if there is no such record.
        """
        commit = self.find(artifact.kind, artifact.key)
        if commit is not None and commit.digest == artifact.digest:
            return commit
        if (erasure := self.erasure_of(artifact)) is not None:
            return erasure.commit
        if not self.fs.exists(self.root):
            raise MissingArtifact(f"{self.shown}: the artifact store is gone; put it back, or run again from the start")
        raise MissingArtifact(f"{self.uri(artifact)}: no committed {artifact.kind} with this digest")

    def erasure_of(self, artifact: Artifact) -> Erasure | None:
        """The erasure record of this artifact, or None if nothing was erased."""
        path = self.path(artifact.kind, artifact.key, f"{ERASED}{artifact.attempt}.json")
        try:
            text = self.fs.cat_file(path)
        except FileNotFoundError:
            return None
        return read_record(Erasure, text, path)

    def read(self, artifact: Artifact, name: str) -> bytes:
        """The bytes of a file of an artifact, also of a partly erased artifact.

        Raises `ErasedArtifact` for an erased file, `MissingArtifact` for a file that is not there, and
        `CorruptArtifact` for bytes that are not those that were committed.
        """
        with self._present(artifact, name) as (path, commit):
            data = bytes(self.fs.cat_file(path))
        self._require_committed(commit, name, path, hashlib.sha256(data).hexdigest())
        return data

    def open(self, artifact: Artifact, name: str, *, verified: bool = True) -> BinaryIO:
        """A file of an artifact as a seekable stream, for files that may be larger than memory. Raises as `read`.

        The stream is read once to verify it, unless `verified` is false: for a caller that hashes what it reads.
        """
        with self._present(artifact, name) as (path, commit):
            stream = cast(BinaryIO, self.fs.open(path, "rb"))
        if verified:
            sha256, _ = stream_sha256(stream)
            self._require_committed(commit, name, path, sha256)
            stream.seek(0)
        return stream

    def _require_committed(self, commit: Commit, name: str, path: str, sha256: str) -> None:
        expected = commit.files.get(name)
        if expected is None or sha256 == expected.sha256:
            return
        if self.erasure_of(commit.artifact) is None:  # with the text of withdrawn rows, another file took its place
            raise altered(path, sha256, expected)

    @contextmanager
    def _present(self, artifact: Artifact, name: str) -> Iterator[tuple[str, Commit]]:
        commit = self.commit_of(artifact)
        path = self.path(commit.kind, commit.key, commit.attempt, name)
        try:
            yield path, commit
        except FileNotFoundError:
            erasure = self.erasure_of(commit.artifact)
            if erasure is not None:
                raise ErasedArtifact(f"{path}: {erasure.message}") from None
            raise MissingArtifact(f"{path}: no such file in this artifact") from None

    def intact_commit(self, artifact: Artifact) -> Commit:
        """The commit record of an artifact with all its files.

        If files of it were erased, another artifact with the same kind and digest is returned instead. Raises
        `ErasedArtifact` if there is none, and `MissingArtifact` if the artifact never existed.
        """
        commit = self.find(artifact.kind, artifact.key)
        if commit is not None and commit.digest == artifact.digest:
            return commit
        if (erasure := self.erasure_of(artifact)) is None:
            return self.commit_of(artifact)
        same = (other for other in self.commits(artifact.kind) if other.digest == artifact.digest)
        if (commit := next(same, None)) is None:
            raise ErasedArtifact(f"{self.uri(artifact)}: {erasure.message}")
        return commit

    def fetch(self, artifact: Artifact, *, deep: Deep = False) -> Path:
        """A local folder with the artifact's files. Sizes are verified, and with `deep` every sha256. Raises as
        `intact_commit`, and `CorruptArtifact`."""
        commit = self.intact_commit(artifact)
        remote = self.path(commit.kind, commit.key, commit.attempt)
        if self.is_local:
            folder = Path(remote)
        else:
            folder = self.cache / "artifacts" / commit.kind / commit.key / commit.attempt
            if not folder.exists():
                with self._arriving(folder):  # the ranks of a machine ask at the same time
                    if not folder.exists():
                        self._download(commit, remote, folder)
        verify(folder, commit, deep=deep)
        return folder

    def _arriving(self, folder: Path) -> FileLock:
        """Held while an artifact's files come to this machine: by one process, and the others wait for them."""
        locks = self.cache / "arriving"
        with explain_no_space(str(locks)):
            locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{folder.parent.name}-{folder.name}.lock")

    def _download(self, commit: Commit, remote: str, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        arriving = Path(tempfile.mkdtemp(prefix=f".{commit.attempt}-", dir=folder.parent))
        for name in commit.files:
            target = arriving / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(f"{remote}/{name}", str(target))
        try:
            arriving.rename(folder)
        except OSError:  # another process fetched the same files first
            shutil.rmtree(arriving)

    def commits(self, kind: str) -> Iterator[Commit]:
        """All committed artifacts of a kind, in no particular order."""
        for path in self.matching(self.path(kind), f"*/{COMMIT_FILE}"):
            commit = self.find(kind, PurePosixPath(path).parent.name)
            if commit is not None:
                yield commit

    # Building -----------------------------------------------------------------------------------

    @contextmanager
    def building(self, kind: str, key: str) -> Iterator[None]:
        """Holds the lock of a key while an artifact is built, and removes what dead builders left.

        The lock ends with its process. Processes share it if they share the store's folder (a local store) or the
        cache. Without that two builders may both work, and the first commit wins.
        """
        with FileLock(self._lock(kind, key)):
            attempts = self._attempts(kind, key)
            if self.find(kind, key) is None and attempts.is_dir():
                for leftover in attempts.iterdir():  # left by builders that died
                    if leftover.is_dir() and not (attempts / f"{ERASED}{leftover.name}.json").exists():
                        shutil.rmtree(leftover)
            yield

    @contextmanager
    def unless_building(self, kind: str, key: str) -> Iterator[bool]:
        """Holds the lock of a key and gives True; gives False at once if a builder holds the lock (see `building`)."""
        if self.is_local and not Path(self.path(kind, key)).is_dir():
            yield True  # nothing was ever built there, and a check must not create the folder
            return
        lock = FileLock(self._lock(kind, key))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _lock(self, kind: str, key: str) -> Path:
        folder = Path(self.path(kind, key)) if self.is_local else self.cache / "building" / kind / key
        with explain_no_space(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
        return folder / ".lock"

    def _attempts(self, kind: str, key: str) -> Path:
        return Path(self.path(kind, key)) if self.is_local else self.cache / "attempts" / kind / key

    def begin(self, kind: str, key: str) -> Attempt:
        """An empty folder to build in: inside a local store, or beside the cache for a remote store."""
        name = uuid.uuid4().hex[:12]
        parent = self._attempts(kind, key)
        with explain_no_space(str(parent)):
            (parent / name).mkdir(parents=True)
        return Attempt(kind=kind, key=key, name=name, path=parent / name)

    def commit(
        self,
        attempt: Attempt,
        *,
        digest: str,
        stage: str,
        code_version: int,
        inputs: dict[str, Artifact],
        summary: dict[str, object],
        environment: dict[str, str],
        started_at: str,
        seconds: float,
    ) -> Commit:
        """Publishes an attempt. Returns the commit of the key: this one, or the commit of a builder that was faster."""
        let_others_read(attempt.path)
        files = describe(attempt.path)
        commit = Commit(
            format=STORE_FORMAT,
            kind=attempt.kind,
            key=attempt.key,
            attempt=attempt.name,
            digest=digest,
            stage=stage,
            code_version=code_version,
            inputs=inputs,
            files=files,
            summary=summary,
            environment=environment,
            started_at=started_at,
            seconds=seconds,
        )
        with explain_no_space(self.url):
            if not self.is_local:
                remote = self.path(attempt.kind, attempt.key, attempt.name)
                for name in files:
                    self.fs.makedirs(str(PurePosixPath(remote, name).parent), exist_ok=True)
                    self.fs.put_file(str(attempt.path / name), f"{remote}/{name}")
            marker = self.path(attempt.kind, attempt.key, COMMIT_FILE)
            won = self.create(marker, commit.model_dump_json(indent=1).encode())
        if not self.is_local or not won:
            self.discard(attempt)
        if won:
            return commit
        if not self.is_local:
            self.remove_folder(self.path(attempt.kind, attempt.key, attempt.name))
        winner = self.find(attempt.kind, attempt.key)
        if winner is None:
            raise CorruptArtifact(f"{marker}: appeared and vanished while committing")
        return winner

    def discard(self, attempt: Attempt) -> None:
        """Removes an attempt that will not be committed."""
        shutil.rmtree(attempt.path, ignore_errors=True)

    # Resumable state ----------------------------------------------------------------------------

    def work_path(self, kind: str, key: str) -> Path:
        """A local folder for the resumable state of a build. It survives interruptions, until `clear_work`."""
        folder = Path(self.path("work", kind, key)) if self.is_local else self.cache / "work" / kind / key
        with explain_no_space(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clear_work(self, kind: str, key: str) -> None:
        """Removes the resumable state of a build, here and in the store; safe to repeat."""
        shutil.rmtree(self.work_path(kind, key), ignore_errors=True)
        if not self.is_local:
            self.remove_folder(self.path("work", kind, key))


# The refs of a stage in every recipe.


@dataclass(frozen=True)
class Named:
    """A ref with its recipe, node and partition; `partition` is None for a node without partitions."""

    recipe: str
    node: str
    partition: str | None
    ref: Ref


def refs_of(store: Store, stage: str, *, partitioned: bool = False, kind: str | None = None) -> Iterator[Named]:
    """The refs of a stage in every recipe, those in a group of nodes (`link_1/<stage>`) among them. A ref that
    changes meanwhile is given in its old or new state. `kind` is that of the artifacts, where nodes of this name are of
    another stage."""
    patterns = [f"*/{stage}/*.json"] if partitioned else [f"*/{stage}.json", f"*/*/{stage}.json"]
    depth = len(PurePosixPath(store.path("refs")).parts)
    for path in (path for pattern in patterns for path in store.matching(store.path("refs"), pattern)):
        place = PurePosixPath(path)
        recipe, partition = place.parts[depth], unquote(place.stem) if partitioned else None
        node = stage if partitioned else "/".join((*place.parts[depth + 1 : -1], stage))
        ref = store.read_ref(recipe, node, partition)
        if ref is not None and (node == stage or ref.artifact.kind == (kind or stage)):  # else a shard of that name
            yield Named(recipe, node, partition, ref)


# Many commit records are read concurrently: on a remote store, thousands read in turn would take minutes.

log = logging.getLogger(__name__)


def commits_of(store: Store, artifacts: Iterable[Artifact]) -> list[Commit]:
    """The commit records of pinned pointers, in the same order; raises as `Store.commit_of` does."""
    wanted = list(artifacts)
    paths = [store.path(artifact.kind, artifact.key, COMMIT_FILE) for artifact in wanted]
    records = _read(store, paths, Commit)
    return [
        commit
        if (commit := records.get(path)) is not None and commit.digest == artifact.digest
        else store.commit_of(artifact)  # the artifact was erased, or this raises the right error
        for artifact, path in zip(wanted, paths, strict=True)
    ]


def readable_commits(store: Store, kind: str) -> list[Commit]:
    """All commit records of a kind, also of erased artifacts, without unreadable records, whose number is logged."""
    markers = store.matching(store.path(kind), f"*/{COMMIT_FILE}")
    records = store.matching(store.path(kind), f"*/{ERASED}*.json")
    commits = [erasure.commit for erasure in _read(store, records, Erasure).values()]
    commits += _read(store, markers, Commit).values()
    if unread := len(markers) + len(records) - len(commits):
        log.warning("%s: %d of its records cannot be read and are left out", kind, unread)
    return list({(commit.key, commit.digest): commit for commit in commits}.values())


def _read(store: Store, paths: Iterable[str], record: type[Record]) -> dict[str, Record]:
    """Path to record; those that cannot be read are left out."""
    records = {}
    for path, text in store.contents(paths).items():
        if isinstance(text, bytes):
            with suppress(CorruptArtifact):
                records[path] = read_record(record, text, path)
    return records
