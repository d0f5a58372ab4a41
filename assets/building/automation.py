"""When a node is made by itself: the condition that Dagster's daemon evaluates."""

from __future__ import annotations

from typing import cast

import dagster as dg

AC = dg.AutomationCondition

# Not where the code version changed: that would score every shard anew before a person has accepted the upgrade. A
# night makes those afterwards, or `align run` at any time: both go by keys.
changed = AC.newly_missing() | AC.any_deps_match(AC.data_version_changed())

on_new_data = cast(
    "dg.AutomationCondition[dg.AssetKey]",
    # Dagster's own since_last_handled forgets a change that comes while the run it asked for is under way: an input
    # that goes A, B, A would leave its dependent at B. Here only a request settles a change, and not one that is newer.
    changed.since(AC.newly_requested() & ~changed)
    & ~AC.any_deps_missing()
    & ~AC.any_deps_in_progress()
    & ~AC.in_progress(),
)
"""Once for each change of what goes in (new, or another data version), as soon as all is there."""
