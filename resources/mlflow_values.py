"""Values that are too long for MLflow: it gets a valid, shorter value, and the whole value is in the same run."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Mapping
from typing import Any

PARAM_LIMIT, TAG_LIMIT, NAME_LIMIT = 500, 5000, 250
"""In characters: the lowest limits among servers in use."""
DAGSTER_RUNS_TAG = "dagster.run_ids"
UPSTREAM_FILE, PARAMS_FILE = "upstream_runs.json", "params.json"


def upstream_tag(upstream: Mapping[str, str]) -> str:
    """{input: MLflow run} as JSON; if that is too long, {"runs": number of runs, "file", "sha256" of the file's
    text}."""
    text = _json(upstream)
    if len(text) <= TAG_LIMIT:
        return text
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return _json({"runs": len(upstream), "file": UPSTREAM_FILE, "sha256": sha256})


def overflow_files(upstream: Mapping[str, str], params: Mapping[str, Any]) -> dict[str, str]:
    """File name to text, for values that tags and parameters cannot hold whole; empty if they hold everything."""
    files = {}
    if len(text := _json(upstream)) > TAG_LIMIT:
        files[UPSTREAM_FILE] = text
    if any(len(str(value)) > PARAM_LIMIT or valid_name(name) != name for name, value in params.items()):
        files[PARAMS_FILE] = json.dumps({name: str(value) for name, value in params.items()}, indent=1)
    return files


def truncated_tag(value: str) -> str:
    """The value of a model version's tag, cut to the limit. The registration's own run has the whole value."""
    more = " … (whole in commit.json of the registration's run)"
    return value if len(value) <= TAG_LIMIT else value[: TAG_LIMIT - len(more)] + more


def valid_name(name: str) -> str:
    """A metric's or parameter's name as MLflow accepts it: a path without empty or dotted parts, not too long."""
    path = "/".join(part for part in name.split("/") if part.strip(". ")) or "_"
    if path == name and posixpath.normpath(name) == name and len(name) <= NAME_LIMIT:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{path[: NAME_LIMIT - len(mark) - 1]}-{mark}"


def dagster_runs_tag(tags: Mapping[str, str], dagster_run: str) -> tuple[str, str] | None:
    """The tag (name, value) that adds a Dagster run to the runs that asked for an artifact; None if it is there
    already.

    Every night adds a run, so a full tag is followed by `dagster.run_ids.2` and so on.
    """
    number, name = 1, DAGSTER_RUNS_TAG
    while True:
        known = [run_id for run_id in tags.get(name, "").split(",") if run_id]
        if dagster_run in known:
            return None
        value = ",".join([*known, dagster_run])
        if len(value) <= TAG_LIMIT:
            return name, value
        number += 1
        name = f"{DAGSTER_RUNS_TAG}.{number}"


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), sort_keys=True)
