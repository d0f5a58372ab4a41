"""Which shards a recipe's preference source has, and the request that makes each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from alignment.data.dataset_info import reading_of
from alignment.data.files import expand_all, modified, pin_file, size
from alignment.data.hub import DEFAULT_SPLIT, pin_hub
from alignment.data.mixing import Mix
from alignment.data.readers import data_suffix
from alignment.digest import json_digest
from alignment.errors import BadInput, named_in
from alignment.recipe.data import DEFAULT_READING, NamedSource, PreferencePart, PreferenceSource, Reading
from alignment.stages.preference_shard import ShardRequest
from alignment.stages.stage import SourceFile
from alignment.store import Artifact

EMBEDDED_DAYS = 3


@dataclass(frozen=True)
class Part:
    """Where one shard comes from: `part` of `parts` of a file, or a request that needs nothing looked at.

    `reading` and the `seed` that draws rows are those of a file; a request has its own.
    """

    part: int
    parts: int
    url: str | None = None
    whole: ShardRequest | None = None
    reading: Reading = DEFAULT_READING
    seed: int = 0


class Shards(Mapping[str, ShardRequest]):
    """Shard name → request, in the source's order. Names are known at once; a file is pinned when it is asked for.

    Asking raises `BadInput` for a file that cannot be read.
    """

    def __init__(self, parts: dict[str, Part], split_pairs: bool = False) -> None:
        self._parts = parts
        self._split_pairs = split_pairs
        self._pinned: dict[str, SourceFile] = {}

    def __getitem__(self, name: str) -> ShardRequest:
        place = self._parts[name]
        if place.whole is not None:
            cut = {"part": place.part, "parts": place.parts, "split_pairs": self._split_pairs}
            return place.whole.model_copy(update=cut)
        url = str(place.url)
        if url not in self._pinned:
            self._pinned[url] = pin_file(url)
        return ShardRequest(
            file=self._pinned[url],
            part=place.part,
            parts=place.parts,
            seed=place.seed,
            reading=reading_of(url, place.reading),
            split_pairs=self._split_pairs,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def modified(self, name: str) -> float | None:
        """When the shard's file was last written, in seconds since the epoch; None where that is not known."""
        url = self._parts[name].url
        return None if url is None else modified(url)

    def file(self, name: str) -> tuple[str, int | None] | None:
        """The URL of the shard's file and its size in bytes, where that is known; None for what is no file."""
        url = self._parts[name].url
        return None if url is None else (url, size(url))


def shards_of(source: PreferenceSource, seed: int = 0, *, split_pairs: bool = False) -> Shards:
    """The source's shards as they are now; `seed` counts for embedded data and for rows that are drawn, and
    `split_pairs` makes two rows of each pair.

    A file's shard bears its name without suffix, led by its folder's where two clash; a hub split's the
    split's; embedded shards are `day-1`, `day-2`, …. A source cut in n adds `-00001-of-0000n`. A name too long for a
    file's ends in its digest. Where there are several sources, the source's name leads.
    Raises `BadInput` if files or the hub's data set cannot be found.
    """
    parts = {_led(part, name): place for part in source.parts for name, place in _places(part, seed).items()}
    return Shards(parts, split_pairs)


def _led(part: PreferencePart, name: str) -> str:
    return (
        f"{part.name}-{shortened(name, LONGEST_NAME - len(part.name) - 1)}" if isinstance(part, NamedSource) else name
    )


def _places(source: PreferencePart, seed: int) -> dict[str, Part]:
    parts, reading = source.split_into, source.reading()
    if source.embedded is not None:
        days = EMBEDDED_DAYS if parts == 1 else parts
        generated = ShardRequest(embedded=source.embedded, seed=seed, reading=reading)
        return {f"day-{day + 1}": Part(day, days, whole=generated) for day in range(days)}
    drawn = 0 if reading.max_rows is None else seed
    if source.hub is not None:
        pinned = pin_hub(source)
        name, request = safe(str(pinned.split)), ShardRequest(hub=pinned, seed=drawn, reading=reading)
        return {part_name(name, part, parts): Part(part, parts, whole=request) for part in range(parts)}
    with named_in("preferences.files"):
        urls = expand_all(source.files or [], "preferences")
    if not urls:
        raise BadInput("names no file", field="preferences.files")
    return {
        part_name(name, part, parts): Part(part, parts, url=url, reading=reading, seed=drawn)
        for name, url in zip(shard_names(urls), urls, strict=True)
        for part in range(parts)
    }


LONGEST_NAME = 241
"""Bytes that a shard's quoted name may take: a file system takes 255, and `.json` and a passing suffix stand behind."""
NAME_DIGEST = 10


def names_on_the_hub(source: PreferenceSource) -> list[str]:
    """The shards of a source on the hub, which need not be asked for that, and those of other sources beside it."""
    names = []
    for part in source.parts:
        split = safe(part.split or DEFAULT_SPLIT)
        own = [part_name(split, index, part.split_into) for index in range(part.split_into)]
        names += [_led(part, name) for name in (_places(part, 0) if part.hub is None else own)]
    return names


def mixes_of(source: PreferenceSource, shards: Mapping[str, Artifact], seed: int) -> tuple[Mix, ...]:
    """How many rows of each source are kept, where a recipe bounds them over several shards, or of what is not left out
    for another reason, or weighs sources.

    A source that has no shard, as they are withdrawn or not built, sets no scale for the others' weights. Raises
    `BadInput` where two of these sources hold the same shard, whose rows would count for one of them only.
    """
    mixes: list[Mix] = []
    taken: dict[str, str] = {}
    for part in source.parts:
        lead, weight, keep = "", None, None
        if isinstance(part, NamedSource):
            lead, weight, keep = f"{part.name}-", part.weight, part.keep_rows
        own = [one for name, one in shards.items() if name.startswith(lead)]
        bounds = [most for most in (part.max_rows, keep) if most is not None]
        # a source of one shard was drawn when the shard was made
        if own and (weight is not None or keep is not None or (bounds and len(own) > 1)):
            digests = tuple(sorted(artifact.digest for artifact in own))
            if twice := sorted({taken[digest] for digest in digests if digest in taken}):
                raise BadInput(
                    f"sources {twice[0]} and {lead[:-1]} hold the same rows, which count once: take one of them out",
                    field="preferences",
                )
            taken |= dict.fromkeys(digests, lead[:-1])
            mixes.append(Mix(shards=digests, weight=weight, max_rows=min(bounds, default=None), seed=seed))
    return tuple(mixes)


def part_name(name: str, part: int, parts: int) -> str:
    """The name of a shard's part, counted from 0, within the longest name that a file system takes."""
    suffix = "" if parts == 1 else f"-{part + 1:05d}-of-{parts:05d}"
    return shortened(name, LONGEST_NAME - len(suffix)) + suffix


def shortened(name: str, room: int) -> str:
    """The name, or as much of it as `room` bytes take when quoted, with its digest in place of the rest."""
    if len(quote(name, safe="")) <= room:
        return name
    first = name
    while len(quote(first, safe="")) > room - NAME_DIGEST - 1:
        first = first[:-1]
    return f"{first.rstrip('-.')}-{json_digest(name)[:NAME_DIGEST]}"


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


# Whether two shard requests read the same records, whatever the shards are called and however a source is cut.


def overlaps(one: ShardRequest, other: ShardRequest) -> bool:
    """Whether two requests have records in common: of one content, or of one place in the source.

    A file is known by what it holds and by where it lies, the other sources by their names.
    """
    if one.embedded is not None or other.embedded is not None:
        return (one.embedded, one.seed, one.part) == (other.embedded, other.seed, other.part)
    if one.hub is not None and other.hub is not None:
        same = (one.hub.hub, one.hub.config, one.hub.split) == (other.hub.hub, other.hub.config, other.hub.split)
    elif one.file is not None and other.file is not None:
        same = one.file.sha256 == other.file.sha256 or one.file.url == other.file.url
    else:
        return False
    return same and cuts_overlap(one, other)


def cuts_overlap(one: ShardRequest, other: ShardRequest) -> bool:
    """Whether part p of n, the records from p/n to (p + 1)/n of a source, has any that part q of m has."""
    return (
        one.part * other.parts < (other.part + 1) * one.parts and other.part * one.parts < (one.part + 1) * other.parts
    )
