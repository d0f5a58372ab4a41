"""Which shards a recipe's preference source has, and the request that makes each."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath

from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.preferences.hub import pin_hub
from alignment.preferences.records import data_suffix
from alignment.preferences.shard import ShardRequest
from alignment.recipe import PreferenceSource
from alignment.sources import pin_files

EMBEDDED_DAYS = 3


def shards_of(source: PreferenceSource, seed: int = 0) -> dict[str, ShardRequest]:
    """Shard name → request, in the source's order; `seed` counts for embedded data only.

    A file's shard bears its name without suffix, led by its folder's where two clash; a hub split's the
    split's; embedded shards are `day-1`, `day-2`, …. A source cut in n adds `-00001-of-0000n`.
    Raises `BadInput` if files or the hub's data set cannot be found.
    """
    if source.embedded is not None:
        days = EMBEDDED_DAYS if source.split_into == 1 else source.split_into
        return {
            f"day-{day + 1}": ShardRequest(embedded=source.embedded, part=day, parts=days, seed=seed)
            for day in range(days)
        }
    if source.hub is not None:
        pinned = pin_hub(source)
        whole = {safe(str(pinned.split)): ShardRequest(hub=pinned)}
    else:
        files = pin_files(source.files or [])
        if not files:
            raise BadInput("names no file", field="preferences.files")
        names = shard_names([file.url for file in files])
        whole = {name: ShardRequest(file=file) for name, file in zip(names, files, strict=True)}
    return {
        part_name(name, part, source.split_into): request.model_copy(update={"part": part, "parts": source.split_into})
        for name, request in whole.items()
        for part in range(source.split_into)
    }


def part_name(name: str, part: int, parts: int) -> str:
    return name if parts == 1 else f"{name}-{part + 1:05d}-of-{parts:05d}"


def shard_names(urls: list[str]) -> list[str]:
    """A distinct name for each of several distinct URLs: as short as it can be, the same in any order."""
    depths = [1] * len(urls)
    while True:
        names = [_name(url, depth) for url, depth in zip(urls, depths, strict=True)]
        counts = Counter(names)
        clashing = [index for index, name in enumerate(names) if counts[name] > 1]
        if not clashing:
            return names
        deeper = [index for index in clashing if depths[index] <= len(_parts(urls[index]))]
        if not deeper:  # same folders and stem: only characters that names cannot hold, or the suffix, differ
            digests = [json_digest(url)[:8] for url in urls]
            return [f"{name}-{tag}" if counts[name] > 1 else name for name, tag in zip(names, digests, strict=True)]
        for index in deeper:
            depths[index] += 1


def _parts(url: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(url.partition("://")[2] or url).parts if part != "/")


def _name(url: str, depth: int) -> str:
    """The last `depth` parts of a path, the file's suffix left off unless all parts are used up."""
    parts = _parts(url)
    file = parts[-1]
    suffix = data_suffix(file)
    if suffix is not None and depth <= len(parts):
        file = file[: file.lower().rindex(suffix)] or file
    return safe("-".join((*parts[-depth:-1], file)))


def safe(name: str) -> str:
    """A name that a partition key and a file name can both hold."""
    return re.sub(r"\.{2,}", ".", re.sub(r"[^\w.\-]+", "-", name)).strip("-.") or "shard"
