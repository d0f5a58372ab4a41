"""From a model version back to its rows, from the store's commit records or from MLflow; each alone is enough."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignment.artifacts import Artifact, Commit, MissingArtifact, Store
from alignment.errors import BadInput
from resources.store import ArtifactStore
from resources.tracking import CHAMPION, Tracking

CommitOf = Callable[[Artifact], Commit]


def lineage_of(model: str, source: str = "store") -> dict[str, Any]:
    """The lineage of MODEL, MODEL@alias or MODEL@version as plain data.

    `tree` nests every artifact's inputs down to base model and source files' rows; `shards` lists the
    preference shards with row digests and counts.
    """
    name, _, wanted = model.partition("@")
    wanted = wanted or CHAMPION
    if source == "store":
        store = ArtifactStore().open()
        registration, commit_of = _from_store(store, name, wanted), store.commit_of
    elif source == "mlflow":
        records = MlflowRecords(Tracking())
        registration, commit_of = records.registration(name, wanted), records.commit_of
    else:
        raise BadInput("is 'store' or 'mlflow'", field="--from")
    commits: dict[str, Commit] = {}
    tree = _tree(registration, commit_of, commits)
    return {
        "model": name,
        "version": str(registration.summary["version"]),
        "tree": tree,
        "shards": shards(commits),
        "environment": commits[registration.inputs["policy"].key].environment,
    }


def _tree(commit: Commit, commit_of: CommitOf, seen: dict[str, Commit]) -> dict[str, Any]:
    seen[commit.key] = commit
    return {
        "stage": commit.stage,
        "kind": commit.kind,
        "key": commit.key,
        "digest": commit.digest,
        "code_version": commit.code_version,
        "inputs": {
            name: _tree(seen.get(artifact.key) or commit_of(artifact), commit_of, seen)
            for name, artifact in sorted(commit.inputs.items())
        },
    }


def shards(commits: dict[str, Commit]) -> list[dict[str, Any]]:
    """The shards that the manifest of the policy names, each with its row digest and number of rows."""
    manifests = [commit for commit in commits.values() if commit.stage == "preference_manifest"]
    return [
        {"name": name.removeprefix("shards."), "digest": artifact.digest, "rows": commits[artifact.key].summary["rows"]}
        for manifest in manifests
        for name, artifact in sorted(manifest.inputs.items())
        if name.startswith("shards.")
    ]


def _from_store(store: Store, model: str, wanted: str) -> Commit:
    """The registration behind an alias or version, by the store alone: its champion is the recipe's current ref."""
    registrations = [
        commit
        for commit in store.commits("registered_model")
        if commit.summary.get("registered") and commit.summary["model"] == model
    ]
    if not registrations:
        raise BadInput(f"no registered model '{model}' in {store.url}")
    if wanted == CHAMPION:
        return max(registrations, key=lambda commit: (commit.started_at, int(commit.summary["version"])))
    for commit in registrations:
        if str(commit.summary["version"]) == wanted:
            return commit
    versions = ", ".join(sorted(str(commit.summary["version"]) for commit in registrations))
    raise BadInput(f"model '{model}' has no version or alias '{wanted}'; versions: {versions}")


class MlflowRecords:
    """Commit records as MLflow holds them: each materialization's run carries its own."""

    def __init__(self, tracking: Tracking) -> None:
        self.client = tracking.client()
        self.experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]

    def registration(self, model: str, wanted: str) -> Commit:
        from mlflow.exceptions import MlflowException

        try:
            if wanted.isdigit():
                version = self.client.get_model_version(model, wanted)
            else:
                version = self.client.get_model_version_by_alias(model, wanted)
        except MlflowException as error:
            raise BadInput(f"MLflow has no '{model}' with version or alias '{wanted}'") from error
        return self._record(f"tags.`align.key` = '{version.tags['align.registration_key']}'")

    def commit_of(self, artifact: Artifact) -> Commit:
        return self._record(f"tags.`align.key` = '{artifact.key}' and tags.`align.kind` = '{artifact.kind}'")

    def _record(self, tags: str) -> Commit:
        runs = self.client.search_runs(self.experiments, tags, max_results=1)
        if not runs:
            raise MissingArtifact(f"MLflow has no run with {tags}")
        with tempfile.TemporaryDirectory() as folder:
            path = self.client.download_artifacts(runs[0].info.run_id, "commit.json", folder)
            return Commit.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
