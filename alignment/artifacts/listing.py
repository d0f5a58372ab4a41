"""What a store holds beyond one key: the refs of a stage in every recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote

from alignment.artifacts.refs import Ref
from alignment.artifacts.store import Store


@dataclass(frozen=True)
class Named:
    """A ref with whose it is; `partition` is None for a stage without partitions."""

    recipe: str
    partition: str | None
    ref: Ref


def refs_of(store: Store, stage: str, *, partitioned: bool = False) -> Iterator[Named]:
    """Every recipe's refs of a stage; a ref that moves meanwhile is given as it is found."""
    pattern = store.path("refs", "*", stage, "*.json") if partitioned else store.path("refs", "*", f"{stage}.json")
    depth = len(PurePosixPath(store.path("refs")).parts)
    for path in sorted(str(path) for path in store.fs.glob(pattern)):
        place = PurePosixPath(path)
        recipe, partition = place.parts[depth], unquote(place.stem) if partitioned else None
        ref = store.read_ref(recipe, stage, partition)
        if ref is not None:
            yield Named(recipe, partition, ref)
