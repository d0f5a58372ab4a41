"""A folder on any fsspec URL: small files are written whole or not at all, and a lock is held by one process at a
time."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import fsspec
from filelock import FileLock
from fsspec.core import has_magic, url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from alignment.address import shown
from alignment.errors import BadInput

OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)
FULL = re.compile(r"No space left on device|Disk quota exceeded|disk is full|inline_container\.cc|PytorchStreamWriter")
"""What libraries say that write files with code of their own: safetensors, SQLite, torch."""
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class Place:
    """A folder, local or remote. `cache` is a local folder for what a remote folder cannot hold, such as locks.

    `url` opens it and may contain a password; `shown` is the address without secrets, for people.

    Raises `BadInput` for a URL that names no folder.
    """

    def __init__(self, url: str, cache: Path | None = None) -> None:
        check_url(url)
        self.url = url.rstrip("/")
        self.shown = shown(self.url)
        self.fs: fsspec.AbstractFileSystem
        try:
            self.fs, root = url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise BadInput(f"not a place for an artifact store: {error}", file=url) from None
        self.fs.dircache.use_listings_cache = False  # other processes write here too
        self.fs.invalidate_cache()
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.cache = cache or Path(tempfile.gettempdir()) / "alignment-dags"

    def path(self, *parts: str) -> str:
        """A path on `fs`."""
        return str(PurePosixPath(self.root, *parts))

    def create(self, path: str, data: bytes) -> bool:
        """Writes a small file at a `path` of this place, whole or not at all; returns False if the file exists
        already."""
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

    def replace(self, path: str, data: bytes) -> None:
        """Writes a small file at a `path` of this place, whole or not at all; an older file is replaced."""
        with explain_no_space(path):
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

    def matching(self, folder: str, pattern: str) -> list[str]:
        """The paths below a `folder` of this place that match a pattern of `*` and `?`, sorted; none where there is no
        such folder."""
        return sorted(matching(self.fs, folder, pattern))

    def contents(self, paths: Iterable[str]) -> dict[str, bytes | Exception]:
        """The bytes of many files, read concurrently on a remote place; an error stands in the place of its file."""
        wanted = list(dict.fromkeys(paths))
        if not any(map(has_magic, wanted)):
            return dict(self.fs.cat(wanted, on_error="return")) if wanted else {}
        found: dict[str, bytes | Exception] = {}
        for path in wanted:  # of many paths at once, `cat` takes each for a pattern
            try:
                found[path] = self.fs.cat_file(path)
            except Exception as error:
                found[path] = error
        return found

    def remove_folder(self, path: str) -> None:
        """Removes a folder of this place with all that is in it."""
        if self.is_local:
            shutil.rmtree(path, ignore_errors=True)
            return
        for file in self.fs.find(path):  # `rm` takes its path for a pattern
            self.fs.rm_file(file)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Holds the lock of a name, which one process at a time can hold. It ends with its process.

        For a remote place the lock lies in the cache, so it holds only for processes on this machine.
        """
        folder = Path(self.path("locks")) if self.is_local else self.cache / "locks"
        with explain_no_space(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{quote(name, safe='')}.lock"):
            yield


def matching(fs: fsspec.AbstractFileSystem, folder: str, pattern: str) -> dict[str, dict[str, Any]]:
    """Path to what `fs` says of it, of all below `folder` that matches a glob relative to it.

    The folder is taken by its name: to fsspec's own `glob` a folder called `[2026]` is a pattern of four letters.
    """
    deep = None if "**" in pattern else pattern.count("/") + 1
    fits = re.compile(glob_translate(pattern)).match
    try:
        found = fs.find(folder, maxdepth=deep, withdirs=True, detail=True)
    except FileNotFoundError:
        return {}
    above = len(folder.rstrip("/")) + 1
    return {path: about for path, about in found.items() if fits(path[above:])}


def check_url(url: str) -> None:
    """Raises `BadInput` for a blank URL or a scheme without a place: fsspec would take it for a local folder."""
    if not url.strip().strip("/"):
        raise BadInput("not a place for an artifact store: it is blank, or the root", field="ALIGN_STORE")
    _, slashes, place = url.partition("://")
    if SCHEME.match(url) and not (slashes and place.strip().strip("/")):
        problem = "a scheme without a place; expected an address such as s3://bucket/folder or file:///folder"
        raise BadInput(f"not a place for an artifact store: {problem}", file=url)


@contextmanager
def explain_no_space(where: str) -> Iterator[None]:
    """Raises `BadInput` that names the place, instead of the error of a full disk, in whatever words it comes."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in OUT_OF_SPACE
        if full or FULL.search(str(error)):
            raise BadInput("no space left on the device of the artifact store", file=where) from error
        raise


def write_durably(path: Path, data: bytes) -> None:
    """Writes and syncs a file, so that after a power cut a link to it never leads to missing bytes."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
