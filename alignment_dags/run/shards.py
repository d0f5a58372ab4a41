"""Dropping shards that the source has no more: partitions go, and so does what they pointed to in the recipe."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

from alignment.store import Store
from assets.building.factory import asset_key, shards_definition

WITHDRAWN = "withdrawn"
"""The data version of a shard that is gone."""


def drop(instance: dg.DagsterInstance, store: Store, recipe_name: str, shards: Iterable[str]) -> None:
    """Takes shards out of a recipe. Artifacts stay in the store, so a shard that comes back is found, not made.

    Dagster forgets a partition's name, never its history: the last word in it says that the shard was withdrawn,
    so that the same content, come back, counts as new for what is built from it. The ref goes last: killed before,
    the next look finds the shard gone again and repeats all of it.
    """
    partitions = shards_definition(recipe_name).name
    assert partitions is not None
    for shard in shards:
        instance.delete_dynamic_partition(partitions, shard)
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                asset_key(recipe_name, "preference_shard"),
                description="Withdrawn: the source has it no more.",
                partition=shard,
                tags={"dagster/data_version": WITHDRAWN},
            )
        )
        store.remove_ref(recipe_name, "preference_shard", shard)
