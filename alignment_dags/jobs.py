"""A phase's job by name, for the processes that have to load it again."""

from __future__ import annotations

import dagster as dg

from alignment_dags.definitions import defs, return_definitions
from alignment_dags.run.workspace import job_name


def load_job(recipe_name: str, phase_name: str) -> dg.JobDefinition:
    """The job of a recipe's phase, for the process that runs it."""
    found = return_definitions(recipe_name) if phase_name == "return" else defs
    return found.resolve_job_def(job_name(recipe_name, phase_name))
