"""Dagster's pool limits, made equal to what pools.yaml declares."""

from __future__ import annotations

import dagster as dg

from resources.pools import Pools


def apply_pools(instance: dg.DagsterInstance, pools: Pools) -> dict[str, int]:
    """Sets every pool's limit and drops limits of pools that are gone; returns the limits. Safe to repeat."""
    storage = instance.event_log_storage
    wanted = {name: pool.slots for name, pool in pools.pools.items()}
    known = {pool.name for pool in storage.get_pool_limits()}
    for name in known - set(wanted):
        storage.delete_concurrency_limit(name)
    for name, slots in wanted.items():
        storage.set_concurrency_slots(name, slots)
    return wanted
