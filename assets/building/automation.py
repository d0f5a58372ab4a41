"""When a node is materialized automatically: the condition that Dagster's daemon evaluates."""

from __future__ import annotations

from typing import cast

import dagster as dg

AC = dg.AutomationCondition

# Not when the code version changed: that would score every shard again before a person has accepted the upgrade. A
# night makes these shards afterwards, or `align run` at any time: both compare keys.
changed = AC.newly_missing() | AC.any_deps_match(AC.data_version_changed())

on_new_data = cast(
    "dg.AutomationCondition[dg.AssetKey]",
    # Dagster's own since_last_handled forgets a change that happens while the requested run is in progress: an input
    # that changes A, B, A would leave its dependent at B. Here only a request handles a change, and never a newer one.
    changed.since(AC.newly_requested() & ~changed)
    & ~AC.any_deps_missing()
    & ~AC.any_deps_in_progress()
    & ~AC.in_progress(),
)
"""Once for each change (new, or another data version of an input), when all inputs are there."""
