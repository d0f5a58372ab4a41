"""One look at a source: which shards it has, which can be read, and the key each should be made under."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from alignment.errors import BadInput
from alignment.recipe import Recipe
from assets.building.node import Node
from assets.building.upstream import Upstream

LOOK_SECONDS = 30.0
"""Reading new content stops after this long and goes on at the next look, before Dagster gives up on the sensor."""


@dataclass
class Seen:
    """The shards of a source, in its order; every name is in exactly one of the three."""

    keys: dict[str, str] = field(default_factory=dict)
    """Shard → key of the request that makes it from what the source holds now."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Shard → why it is left for the next look."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Shard → what keeps us from reading it."""

    withdrawn: dict[str, str] = field(default_factory=dict)
    """Listed shards that are left out, as somebody withdrew them or what they hold → why; in none of the three."""

    @property
    def names(self) -> set[str]:
        """Everything that was seen, read or not."""
        return {*self.keys, *self.waiting, *self.unreadable}


def observe(recipe: Recipe, node: Node, upstream: Upstream, budget: float = LOOK_SECONDS) -> Seen:
    """The source as it is now, seen through the node that makes shards. Raises `BadInput` if it cannot be listed."""
    seen = Seen()
    until = time.monotonic() + budget
    shards = upstream.shards(recipe)
    seen.withdrawn.update(shards.withdrawn)
    refs = upstream.refs(node.name)
    for name in shards:
        if time.monotonic() > until:
            seen.waiting[name] = "not read yet"
            continue
        try:
            written = shards.modified(name)
            # by distance, as a clock that goes before ours must not keep a file out for ever
            if written is not None and abs(time.time() - written) < recipe.preferences.settle_seconds:
                seen.waiting[name] = "may still be being written"
            else:
                request = node.request(upstream, name)
                key = node.stage.key(request)
                made = refs.get(name)
                if made is None or made.artifact.key != key:
                    node.object_to(request, None)
                seen.keys[name] = key
        except BadInput as error:
            seen.unreadable[name] = str(error)
    return seen
