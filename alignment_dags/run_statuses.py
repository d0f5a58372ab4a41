"""Which statuses a Dagster run has before it ends."""

from __future__ import annotations

import dagster as dg

BEGUN = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
"""A process has it, or should have."""
UNFINISHED = [dg.DagsterRunStatus.QUEUED, *BEGUN]
