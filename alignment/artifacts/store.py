"""The artifact store: `<kind>/<key>/<attempt>/…` on any fsspec URL, visible only once committed.

The commit marker is created exclusively and last, so of two builders of one key the first wins and
readers never see half an artifact. Refs are small JSON files replaced as a whole.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.parse import quote, unquote

import fsspec
from filelock import FileLock, Timeout
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from alignment.artifacts.commit import Artifact, Commit, Erasure, FileEntry
from alignment.artifacts.refs import Ref
from alignment.digest import stream_sha256
from alignment.errors import BadInput

COMMIT_FILE = "_COMMIT.json"
ERASED = "_ERASED-"
"""Begins the name of the record that takes a marker's place when files of its artifact are erased."""
NOT_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)


class MissingArtifact(LookupError):
    """No committed artifact where one was expected."""


class CorruptArtifact(RuntimeError):
    """A committed artifact whose files are not what its commit record says."""


class ErasedArtifact(MissingArtifact):
    """An artifact whose commit record stands while files of it were erased on purpose."""


@contextmanager
def told_when_full(where: str) -> Iterator[None]:
    """Turns 'no space left' into one clear line that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno in OUT_OF_SPACE:
            raise BadInput(f"no space left for the artifact store: {error.strerror}", file=where) from error
        raise


@dataclass(frozen=True)
class Attempt:
    """A folder being filled; nobody sees it before its commit."""

    kind: str
    key: str
    name: str
    path: Path


class Store:
    """One artifact store. `cache` holds local copies of remote artifacts, and the work folders of a remote store,
    which another machine does not see: a launch that moves starts its work anew."""

    def __init__(self, url: str, cache: Path | None = None) -> None:
        self.url = url.rstrip("/")
        self.fs: fsspec.AbstractFileSystem
        try:
            self.fs, root = url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise BadInput(f"not a place for an artifact store: {error}", file=url) from error
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.cache = cache or Path(tempfile.gettempdir()) / "alignment-dags"

    def path(self, *parts: str) -> str:
        return str(PurePosixPath(self.root, *parts))

    def uri(self, artifact: Artifact) -> str:
        """The artifact's folder as a URL that a person can open."""
        return str(self.fs.unstrip_protocol(self.path(artifact.kind, artifact.key, artifact.attempt)))

    # Reading ------------------------------------------------------------------------------------

    def find(self, kind: str, key: str) -> Commit | None:
        """The commit of a key, or None when nothing was committed under it."""
        path = self.path(kind, key, COMMIT_FILE)
        try:
            text = self.fs.cat_file(path)
        except FileNotFoundError:
            return None
        try:
            return Commit.model_validate_json(text)
        except ValidationError as error:
            raise CorruptArtifact(f"{path}: not a commit record ({error.error_count()} errors)") from error

    def commit_of(self, artifact: Artifact) -> Commit:
        """The commit record behind a pinned pointer, whose files may have been erased since.

        Raises `MissingArtifact` if it is not there.
        """
        commit = self.find(artifact.kind, artifact.key)
        if commit is not None and commit.digest == artifact.digest:
            return commit
        if (erasure := self.erasure_of(artifact)) is not None:
            return erasure.commit
        raise MissingArtifact(f"{self.uri(artifact)}: no committed {artifact.kind} with this digest")

    def erasure_of(self, artifact: Artifact) -> Erasure | None:
        """The record of what was erased of this artifact, or None where nothing was."""
        path = self.path(artifact.kind, artifact.key, f"{ERASED}{artifact.attempt}.json")
        try:
            return Erasure.model_validate_json(self.fs.cat_file(path))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise CorruptArtifact(f"{path}: not an erasure record ({error.error_count()} errors)") from error

    def read(self, artifact: Artifact, name: str) -> bytes:
        """One file of an artifact, also of one that was erased in part; raises `MissingArtifact` where it is gone."""
        with self._present(artifact, name) as path:
            return bytes(self.fs.cat_file(path))

    def open(self, artifact: Artifact, name: str) -> BinaryIO:
        """A file of an artifact as a stream that can seek, for one that may be larger than memory; else as `read`."""
        with self._present(artifact, name) as path:
            return cast(BinaryIO, self.fs.open(path, "rb"))

    @contextmanager
    def _present(self, artifact: Artifact, name: str) -> Iterator[str]:
        commit = self.commit_of(artifact)
        path = self.path(commit.kind, commit.key, commit.attempt, name)
        try:
            yield path
        except FileNotFoundError:
            erasure = self.erasure_of(commit.artifact)
            if erasure is not None:
                raise ErasedArtifact(f"{path}: {erasure.told}") from None
            raise MissingArtifact(f"{path}: no such file in this artifact") from None

    def fetch(self, artifact: Artifact, *, deep: bool = False) -> Path:
        """A local folder with the artifact's files, sizes verified; sha256 too when `deep`.

        Where files of it were erased, any artifact with its digest stands for it. Raises `ErasedArtifact` if there is
        none, `MissingArtifact` when it was never there.
        """
        commit = self.find(artifact.kind, artifact.key)
        if commit is None or commit.digest != artifact.digest:
            if (erasure := self.erasure_of(artifact)) is not None:
                same = (other for other in self.commits(artifact.kind) if other.digest == artifact.digest)
                if (commit := next(same, None)) is None:
                    raise ErasedArtifact(f"{self.uri(artifact)}: {erasure.told}")
            else:
                commit = self.commit_of(artifact)
        remote = self.path(commit.kind, commit.key, commit.attempt)
        if self.is_local:
            folder = Path(remote)
        else:
            folder = self.cache / "artifacts" / commit.kind / commit.key / commit.attempt
            if not folder.exists():
                self._download(commit, remote, folder)
        verify(folder, commit, deep=deep)
        return folder

    def _download(self, commit: Commit, remote: str, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        arriving = Path(tempfile.mkdtemp(prefix=f".{commit.attempt}-", dir=folder.parent))
        for name in commit.files:
            target = arriving / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(f"{remote}/{name}", str(target))
        try:
            arriving.rename(folder)
        except OSError:  # another process brought the same files first
            shutil.rmtree(arriving)

    def commits(self, kind: str) -> Iterator[Commit]:
        """All committed artifacts of a kind, in no particular order."""
        for path in self.fs.glob(self.path(kind, "*", COMMIT_FILE)):
            commit = self.find(kind, PurePosixPath(str(path)).parent.name)
            if commit is not None:
                yield commit

    # Building -----------------------------------------------------------------------------------

    @contextmanager
    def building(self, kind: str, key: str) -> Iterator[None]:
        """Holds the key for one builder at a time, of those who share the store's folder (a local store) or the cache.

        The lock dies with its process. On other machines two builders may both work, and the first commit wins.
        """
        with FileLock(self._lock(kind, key)):
            attempts = self._attempts(kind, key)
            if self.find(kind, key) is None and attempts.is_dir():
                for leftover in attempts.iterdir():  # attempts of builders that died
                    if leftover.is_dir() and not (attempts / f"{ERASED}{leftover.name}.json").exists():
                        shutil.rmtree(leftover)
            yield

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Holds a name for one process at a time; of a remote store, for those of this machine that share its cache.

        The lock dies with its process.
        """
        folder = Path(self.path("locks")) if self.is_local else self.cache / "locks"
        with told_when_full(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{quote(name, safe='')}.lock"):
            yield

    @contextmanager
    def unless_building(self, kind: str, key: str) -> Iterator[bool]:
        """Holds the key and gives True; gives False at once where a builder that `building` can see holds it."""
        if self.is_local and not Path(self.path(kind, key)).is_dir():
            yield True  # nothing was ever built there, and looking leaves nothing behind
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
        with told_when_full(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
        return folder / ".lock"

    def _attempts(self, kind: str, key: str) -> Path:
        return Path(self.path(kind, key)) if self.is_local else self.cache / "attempts" / kind / key

    def begin(self, kind: str, key: str) -> Attempt:
        """An empty folder to build in: in the store itself where that is local, else beside the cache."""
        name = uuid.uuid4().hex[:12]
        parent = self._attempts(kind, key)
        with told_when_full(str(parent)):
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
        """Publishes an attempt. Returns the commit that holds the key: ours, or that of whoever was first."""
        files = describe(attempt.path)
        commit = Commit(
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
        with told_when_full(self.url):
            if not self.is_local:
                remote = self.path(attempt.kind, attempt.key, attempt.name)
                for name in files:
                    self.fs.makedirs(str(PurePosixPath(remote, name).parent), exist_ok=True)
                    self.fs.put_file(str(attempt.path / name), f"{remote}/{name}")
            marker = self.path(attempt.kind, attempt.key, COMMIT_FILE)
            won = self._create(marker, commit.model_dump_json(indent=1).encode())
        if not self.is_local or not won:
            self.discard(attempt)
        if won:
            return commit
        if not self.is_local:
            self.fs.rm(self.path(attempt.kind, attempt.key, attempt.name), recursive=True)
        winner = self.find(attempt.kind, attempt.key)
        if winner is None:
            raise CorruptArtifact(f"{marker}: appeared and vanished while committing")
        return winner

    def discard(self, attempt: Attempt) -> None:
        """Removes an attempt that will not be committed."""
        shutil.rmtree(attempt.path, ignore_errors=True)

    def _create(self, path: str, data: bytes) -> bool:
        """Writes a file only if there is none; whole or not at all. False when there was one."""
        if not self.is_local:
            try:
                self.fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            return True
        partial = Path(f"{path}.{uuid.uuid4().hex[:8]}")
        try:
            write_durably(partial, data)
            os.link(partial, path)
        except FileExistsError:
            return False
        finally:
            partial.unlink(missing_ok=True)
        return True

    # Resumable state ----------------------------------------------------------------------------

    def work_path(self, kind: str, key: str) -> Path:
        """A local folder for a build's resumable state, kept over interruptions until `clear_work`."""
        folder = Path(self.path("work", kind, key)) if self.is_local else self.cache / "work" / kind / key
        with told_when_full(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clear_work(self, kind: str, key: str) -> None:
        shutil.rmtree(self.work_path(kind, key), ignore_errors=True)

    # Refs ---------------------------------------------------------------------------------------

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
        self.fs.invalidate_cache()  # other processes move refs
        paths = [str(path) for path in self.fs.glob(f"{folder}/*.json")]
        texts = self.fs.cat(paths, on_error="omit") if paths else {}  # one may go while we look
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

    def replace(self, path: str, data: bytes) -> None:
        """Writes a small file of the store (a `path` of it), in place of what was there; whole or not at all."""
        with told_when_full(path):
            if not self.is_local:
                self.fs.pipe_file(path, data)
                return
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            partial = Path(f"{path}.{uuid.uuid4().hex[:8]}")
            try:
                write_durably(partial, data)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)


def write_durably(path: Path, data: bytes) -> None:
    """Writes and syncs a file, so that a name given to it later never points at missing bytes."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


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
