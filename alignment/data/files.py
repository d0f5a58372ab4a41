"""Files outside the store, pinned by what they hold: paths, globs, folders and fsspec URLs → `SourceFile`s.

Digests of local files are remembered under `$ALIGN_HOME/digests` (default `.align`), one small file per
source file, as long as size, modification time and inode stand; so planning does not read big files again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from alignment.address import remember, whole
from alignment.data.dataset_info import INFO, Wanted, described
from alignment.data.readers import DATA_SUFFIXES, data_suffix
from alignment.digest import file_sha256, json_digest, stream_sha256
from alignment.errors import BadInput, no_such, require_utf8
from alignment.stages.stage import SourceFile
from alignment.store.place import matching

SETTLED_SECONDS = 2.0
"""A file changed more recently may change again within one tick of its file system's clock: not remembered."""
CONTENT_TAGS = ("ETag", "etag", "md5Hash", "content_md5")
TIME_TAGS = ("mtime", "LastModified", "last_modified", "updated", "created")
MAGIC = "*?["
ABOUT_DATA = frozenset({INFO, "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files that say something of the data beside them and hold none: LLaMA-Factory's, and what `datasets` writes."""
UNFINISHED = (".tmp", ".part")
"""How files end while they are written; what begins with a dot or an underscore is no data either."""


def pin_file(url: str) -> SourceFile:
    """A local path or fsspec URL with its SHA-256 and size. Raises `BadInput` if there is no such file."""
    url = remember(url)
    with _reaching(url) as (fs, path):
        return _pin_local(path) if isinstance(fs, LocalFileSystem) else _pin_remote(fs, path, url)


def pin_files(patterns: list[str], wanted: Wanted = "all") -> list[SourceFile]:
    """The files behind paths, globs and folders, in the order given (sorted within a glob or folder), each once.

    A folder stands for the data files right in it. Raises `BadInput` naming a pattern that matches nothing.
    """
    return [pin_file(url) for url in expand_all(patterns, wanted)]


def expand_all(patterns: Iterable[str], wanted: Wanted = "all") -> list[str]:
    """The bare file URLs behind paths, globs and folders, each once.

    Raises `BadInput` for two files that differ in what opens them alone: neither names nor records tell them apart.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        for url in expand(pattern, wanted):
            if found.setdefault(url, whole(url)) != whole(url):
                problem = (
                    "is given twice, with two queries or users, which name no file; give each file a path of its own"
                )
                raise BadInput(problem, file=url)
    return list(found)


def modified(url: str) -> float | None:
    """When a file was last written, in seconds since the epoch; None where its file system does not say.

    Stores of whole objects may not say: what they list is complete. Raises `BadInput` if there is no such file.
    """
    with _reaching(url) as (fs, path):
        if isinstance(fs, LocalFileSystem):
            return Path(path).stat().st_mtime
        info = fs.info(path)
        for told in (info[name] for name in TIME_TAGS if info.get(name) is not None):
            if isinstance(told, datetime):
                return told.timestamp()
            with contextlib.suppress(ValueError):
                return float(told) if isinstance(told, int | float) else datetime.fromisoformat(str(told)).timestamp()
        return None


def size(url: str) -> int | None:
    """How many bytes a file has, without reading it; None where its file system does not say.

    Raises `BadInput` if there is no such file.
    """
    with _reaching(url) as (fs, path):
        if isinstance(fs, LocalFileSystem):
            return Path(path).stat().st_size
        told = fs.info(path).get("size")
        return None if told is None else int(told)


def expand(pattern: str, wanted: Wanted = "all") -> list[str]:
    """The bare file URLs behind one path, glob or folder; in globs and folders, only files that are not being
    written."""
    if not pattern.strip():
        raise BadInput("an empty path", field="files")
    pattern = remember(pattern)
    with _reaching(pattern) as (fs, path):
        fs.invalidate_cache()  # a process that lives for days has to see today's files
        if _is_data(pattern) and fs.isfile(path):  # asked first, as to HTTP a file full of links is a folder
            found = [path]
        elif fs.isdir(path):
            found = [name for name in sorted(fs.ls(path, detail=False)) if _is_data(name) and fs.isfile(name)]
            if wanted != "all" and isinstance(fs, LocalFileSystem):
                found = described(path, found, wanted)
            if not found:
                raise BadInput(f"no data files in this folder ({', '.join(DATA_SUFFIXES)})", file=pattern)
        elif fs.isfile(path):
            found = [path]
        else:
            folder, rest = _fixed(fs, path)
            if not _has_magic(rest):
                if isinstance(fs, LocalFileSystem) and Path(path).exists():
                    raise BadInput("is a pipe or a device, which is read once only: write it to a file", file=pattern)
                raise BadInput(no_such("file", pattern), file=pattern)
            files = (name for name in matching(fs, folder, rest) if _base(name) not in ABOUT_DATA and fs.isfile(name))
            found = sorted(name for name in files if _is_finished(name[len(folder) + 1 :]))
            if not found:
                raise BadInput("matches no file", file=pattern)
        for name in found:
            require_utf8(name)
        return (
            found if isinstance(fs, LocalFileSystem) else [remember(str(fs.unstrip_protocol(name))) for name in found]
        )


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[tuple[Any, str]]:
    """The file system and the path in it; whatever keeps us from it becomes one line that names the URL.

    Of a remote file system's own error only that line goes on: its text may hold the query that opens the URL.
    """
    url = remember(url)
    try:
        yield _resolve(whole(url))
    except BadInput:
        raise
    except FileNotFoundError:
        raise BadInput(no_such("file", url), file=url) from None
    except IsADirectoryError:
        raise BadInput("is a folder, not a file", file=url) from None
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", file=url) from (None if "://" in url else error)
    except Exception as error:  # each remote file system has exceptions of its own, for missing credentials say
        if "://" not in url:
            raise
        raise BadInput(f"cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}", file=url) from None


def _resolve(url: str) -> tuple[Any, str]:
    """Local paths are absolute, with symbolic links left as they are."""
    if url.startswith("/") and "::" not in url:  # a watched source asks this for each of its files
        return LocalFileSystem(), url.rstrip("/") or "/"
    fs, path = url_to_fs(str(Path(url).expanduser()) if "://" not in url and "::" not in url else url)
    return fs, str(path)


def _base(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _is_data(path: str) -> bool:
    name = _base(path)
    return _is_finished(name) and data_suffix(name) is not None and name not in ABOUT_DATA


def _is_finished(path: str) -> bool:
    """Whether no file or folder in a relative path bears a name that writers give to what is not done."""
    return not any(part.startswith((".", "_")) or part.lower().endswith(UNFINISHED) for part in path.split("/") if part)


def _has_magic(path: str) -> bool:
    return any(character in path for character in MAGIC)


def _fixed(fs: Any, glob: str) -> tuple[str, str]:
    """(the folder that a glob looks in, the rest): a folder that is there is meant by its name, brackets and all."""
    parts = glob.split("/")
    for count, part in enumerate(parts):
        folder = "/".join(parts[: count + 1])
        if _has_magic(part) and not fs.isdir(folder):
            return "/".join(parts[:count]), "/".join(parts[count:])
    return glob, ""


# Digests ----------------------------------------------------------------------------------------


def _pin_local(path: str) -> SourceFile:
    with Path(path).open("rb") as stream:
        before = _state(stream.fileno())
        entry = _cache_entry(f"file://{path}")
        remembered = _recall(entry, before)
        if remembered is not None:
            return SourceFile(url=path, sha256=remembered, size=before["size"])
        sha256, size = stream_sha256(stream)
        after = _state(stream.fileno())
    if before == after and time.time() - after["mtime_ns"] / 1e9 > SETTLED_SECONDS:
        _remember(entry, after, sha256)
    return SourceFile(url=path, sha256=sha256, size=size)


def _state(descriptor: int) -> dict[str, int]:
    stat = os.fstat(descriptor)
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}


def _pin_remote(fs: Any, path: str, url: str) -> SourceFile:
    info = fs.info(path)
    tags = {name: str(info[name]) for name in CONTENT_TAGS if info.get(name)}
    size = int(info.get("size") or 0)
    state = {"size": size, **tags}
    entry = _cache_entry(url)
    remembered = _recall(entry, state) if tags else None
    if remembered is not None:
        return SourceFile(url=url, sha256=remembered, size=size)
    sha256, size = file_sha256(whole(url))
    fs.invalidate_cache(path)
    after = fs.info(path)
    if tags and size == state["size"] and all(str(after.get(name)) == tag for name, tag in tags.items()):
        _remember(entry, state, sha256)  # only if it was the listed object that was read
    return SourceFile(url=url, sha256=sha256, size=size)


def _cache_entry(url: str) -> Path:
    return Path(os.environ.get("ALIGN_HOME") or ".align") / "digests" / f"{json_digest(url)[:40]}.json"


def _recall(entry: Path, state: dict[str, Any]) -> str | None:
    """The digest remembered for a file in this state; None for anything unknown, stale or damaged."""
    try:
        known = json.loads(entry.read_text(encoding="utf-8"))
        sha256 = known["sha256"] if known["state"] == state else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return sha256 if isinstance(sha256, str) and len(sha256) == 64 else None


def _remember(entry: Path, state: dict[str, Any], sha256: str) -> None:
    """Written whole by renaming, so that processes side by side never see half an entry."""
    partial = entry.with_suffix(f".{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(json.dumps({"sha256": sha256, "state": state}), encoding="utf-8")
            partial.replace(entry)
        finally:
            partial.unlink(missing_ok=True)
