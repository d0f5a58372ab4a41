"""Records that were withdrawn are known again however a source is named and cut."""

from __future__ import annotations

import pytest

from alignment.data.shards import overlaps
from alignment.recipe import DataSource
from alignment.stages import SourceFile
from alignment.stages.preference_shard import ShardRequest


def file(url: str, sha256: str, part: int = 0, parts: int = 1) -> ShardRequest:
    return ShardRequest(file=SourceFile(url=url, sha256=sha256, size=1), part=part, parts=parts)


def hub(revision: str, part: int = 0, parts: int = 1, split: str = "train") -> ShardRequest:
    return ShardRequest(hub=DataSource(hub="o/d", split=split, revision=revision), part=part, parts=parts)


def day(number: int, seed: int = 0, days: int = 3) -> ShardRequest:
    return ShardRequest(embedded="quickstart", part=number, parts=days, seed=seed)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (file("/a", "x"), file("/b", "x"), True),
        (file("/a", "x"), file("/a", "y"), True),
        (file("/a", "x"), file("/b", "y"), False),
        (file("/a", "x", 0, 2), file("/b", "x", 1, 2), False),
        (file("/a", "x", 0, 2), file("/b", "x"), True),
        (file("/a", "x", 0, 2), file("/b", "x", 1, 3), True),
        (file("/a", "x", 0, 2), file("/b", "x", 2, 3), False),
        (hub("r1"), hub("r2", 1, 4), True),
        (hub("r1"), hub("r1", split="test"), False),
        (hub("r1"), file("/a", "x"), False),
        (day(1), day(1, days=5), True),
        (day(1), day(2), False),
        (day(1), day(1, seed=7), False),
        (day(1), file("/a", "x"), False),
    ],
)
def test_requests_overlap_where_they_read_records_in_common(one: ShardRequest, other: ShardRequest, same: bool) -> None:
    assert overlaps(one, other) is same
    assert overlaps(other, one) is same


def test_parts_overlap_exactly_where_their_records_do() -> None:
    """Against the records themselves, for a number of them that every cut divides."""

    def records(part: int, parts: int) -> set[int]:
        return set(range(60 * part // parts, 60 * (part + 1) // parts))

    cuts = [(part, parts) for parts in (1, 2, 3, 4, 5, 6) for part in range(parts)]
    for first in cuts:
        for second in cuts:
            shared = bool(records(*first) & records(*second))
            assert overlaps(file("/a", "x", *first), file("/b", "x", *second)) is shared
