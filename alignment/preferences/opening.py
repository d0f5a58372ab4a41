"""Opens a data file wherever it lies, checks that it is the pinned one, and says plainly when it is not data."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeAlias

import fsspec
import pyarrow as pa

from alignment.errors import BadInput

GZIP_MAGIC = b"\x1f\x8b"
UTF8_BOM = b"\xef\xbb\xbf"
WEB_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
BUFFER = 1 << 18

Stream: TypeAlias = "io.BufferedReader[Any]"


class HashingReader(io.RawIOBase):
    """A binary stream that hashes what passes through it."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._sha = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._stream.read(len(buffer))
        self._sha.update(block)
        buffer[: len(block)] = block
        return len(block)

    def finish(self) -> str:
        """SHA-256 of the whole stream, what was not read yet included."""
        while self.read(BUFFER):
            pass
        return self._sha.hexdigest()


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Turns what can go wrong with a whole file into one line that names it."""
    try:
        yield
    except FileNotFoundError:
        raise BadInput("no such file", file=url) from None
    except IsADirectoryError:
        raise BadInput("is a folder, not a file", file=url) from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BadInput(f"the gzip data is damaged or cut short: {error}", file=url) from error
    except pa.ArrowException as error:
        raise BadInput(f"not readable as Parquet: {_first_line(error)}", file=url) from error
    except (OSError, ImportError) as error:
        raise BadInput(f"cannot be read: {_first_line(error)}", file=url) from error


@contextmanager
def open_stream(url: str, sha256: str | None = None) -> Iterator[Stream]:
    """The file's bytes, unzipped, to be read once from start to end.

    On leaving without an error the rest is read too and the file's SHA-256 must be `sha256`, if given.
    Raises `BadInput` naming the file.
    """
    with _open(url) as file:
        hashing = HashingReader(file)
        raw = io.BufferedReader(hashing, BUFFER)
        stream: Stream = raw
        if raw.peek(2)[:2] == GZIP_MAGIC:
            stream = io.BufferedReader(gzip.GzipFile(fileobj=raw), BUFFER)
        elif url.endswith(".gz"):
            raise BadInput("is named .gz but is not gzip", file=url)
        refuse_what_is_not_data(stream.peek(256)[:256], url)
        yield stream
        while raw.read(BUFFER):
            pass
        verify(url, hashing.finish(), sha256)


@contextmanager
def open_seekable(url: str, sha256: str | None = None) -> Iterator[BinaryIO]:
    """The file as it is, for formats that jump about in it; verified before the first read."""
    with _open(url) as file:
        if sha256 is not None:
            verify(url, HashingReader(file).finish(), sha256)
            file.seek(0)
        yield file


def verify(url: str, found: str, pinned: str | None) -> None:
    if pinned is not None and found != pinned:
        raise BadInput(f"has changed since it was pinned: sha256 is {found[:12]}…, was {pinned[:12]}…", file=url)


def refuse_what_is_not_data(head: bytes, url: str) -> None:
    """Raises `BadInput` for what downloads leave behind in place of data."""
    start = head.removeprefix(UTF8_BOM).lstrip().lower()
    if not head:
        raise BadInput("the file is empty", file=url)
    if start.startswith(WEB_PAGE):
        raise BadInput("is a web page, not data; was the download refused?", file=url)
    if start.startswith(LFS_POINTER):
        raise BadInput("is a Git LFS pointer, not the data; run `git lfs pull`", file=url)
    if head.startswith(UTF16_BOMS):
        raise BadInput("is UTF-16; save it as UTF-8", file=url)


@contextmanager
def _open(url: str) -> Iterator[BinaryIO]:
    with reading(url):
        try:
            opened = fsspec.open(url, "rb")
        except ValueError as error:  # fsspec's word for a protocol it does not know
            raise BadInput(_first_line(error), file=url) from error
        with opened as file:
            yield file


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
