"""Whether two shard requests read the same records, whatever the shards are called and however a source is cut."""

from __future__ import annotations

from alignment.preferences.shard import ShardRequest


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
