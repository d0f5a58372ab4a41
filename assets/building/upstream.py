"""The current artifacts of upstream nodes, read once and then pinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from alignment.data.shards import shards_of
from alignment.data.withdrawal import RemainingShards, Withdrawn, read_withdrawn
from alignment.methods import method_of
from alignment.recipe.recipe import Recipe
from alignment.store import Artifact, Ref, Store

T = TypeVar("T")


class NotBuilt(LookupError):
    """An upstream node has no artifact yet."""

    def __init__(self, name: str, partition: str | None) -> None:
        super().__init__(f"{name}{f' [{partition}]' if partition else ''} has not been built yet")


class Upstream:
    """The current artifacts of one recipe's nodes, from the store's refs.

    Every ref is read once: a ref that moves while a node works does not change its inputs.
    """

    def __init__(self, store: Store, recipe: str) -> None:
        self.store = store
        self.recipe = recipe
        self._refs: dict[tuple[str, str | None], Ref | None] = {}
        self._shards: RemainingShards | None = None
        self._withdrawn: Withdrawn | None = None
        self._listed: set[str] = set()
        self._found: dict[str, object] = {}

    def ref(self, name: str, partition: str | None = None) -> Ref | None:
        """The ref of a node (of one shard of it), or None; read once."""
        place = (name, partition)
        if place not in self._refs:
            self._refs[place] = self.store.read_ref(self.recipe, name, partition)
        return self._refs[place]

    def get(self, name: str, partition: str | None = None) -> Artifact | None:
        """The artifact of a node (of one shard of it), or None when it was never built."""
        ref = self.ref(name, partition)
        return None if ref is None else ref.artifact

    def __call__(self, name: str, partition: str | None = None) -> Artifact:
        """The artifact of a node; raises `NotBuilt` when there is none."""
        artifact = self.get(name, partition)
        if artifact is None:
            raise NotBuilt(name, partition)
        return artifact

    def refs(self, name: str) -> dict[str, Ref]:
        """The refs of all of a node's partitions, by partition; read together, once."""
        if name not in self._listed:
            self._listed.add(name)
            for partition, ref in self.store.read_refs(self.recipe, name).items():
                self._refs.setdefault((name, partition), ref)
        return {
            partition: ref
            for (node, partition), ref in self._refs.items()
            if node == name and partition is not None and ref is not None
        }

    def shards(self, recipe: Recipe) -> RemainingShards:
        """Shard name to the request that makes it, withdrawals applied; the source is listed once.

        A method that takes labelled completions gets pairs as two of them.
        """
        if self._shards is None:
            split_pairs = method_of(recipe.dpo).data == "unpaired"
            listed = shards_of(recipe.preferences, recipe.seed, split_pairs=split_pairs)
            self._shards = RemainingShards(listed, self.withdrawn(), self._current_shard, self.store)
        return self._shards

    def _current_shard(self, shard: str) -> Artifact | None:
        self.refs("preference_shard")  # all at once
        return self.get("preference_shard", shard)

    def withdrawn(self) -> Withdrawn:
        """The rows and shards that were withdrawn from the recipe."""
        if self._withdrawn is None:
            self._withdrawn = read_withdrawn(self.store, self.recipe)
        return self._withdrawn

    def once(self, what: str, find: Callable[[], T]) -> T:
        """The result of `find`, which is called once for each name `what`."""
        if what not in self._found:
            self._found[what] = find()
        return cast(T, self._found[what])

    def mlflow_runs(self) -> dict[str, str]:
        """Key of every artifact read so far to the MLflow run that reported it."""
        return {ref.artifact.key: ref.mlflow_run_id for ref in self._refs.values() if ref and ref.mlflow_run_id}
