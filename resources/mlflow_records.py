"""Commit records read back from MLflow, which alone is enough to tell a model's lineage."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from alignment.errors import BadInput
from alignment.store import Artifact, Commit, MissingArtifact
from resources.home import without_userinfo
from resources.tracking import REGISTRATION_TAG, Tracking

FINISHED = "attributes.status = 'FINISHED'"  # a run still being written has no record yet


class MlflowRecords:
    """Commit records as MLflow holds them: each materialization's run carries its own."""

    def __init__(self, tracking: Tracking) -> None:
        with tracking.told():
            self.client = tracking.client()
            self.experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]

    def run_ids(self, keys: list[str]) -> dict[str, str]:
        """Artifact key to the id of the run that reported it first, for those that were reported."""
        found: dict[str, str] = {}
        for key in keys:
            runs = self.client.search_runs(
                self.experiments,
                f"tags.`align.key` = '{key}' and {FINISHED}",
                order_by=["attributes.start_time ASC"],
                max_results=1,
            )
            found.update((key, str(run.info.run_id)) for run in runs)
        return found

    def registration(self, model: str, wanted: str) -> Commit:
        from mlflow.exceptions import MlflowException

        try:
            if wanted.isdigit():
                version = self.client.get_model_version(model, wanted)
            else:
                version = self.client.get_model_version_by_alias(model, wanted)
        except MlflowException as error:
            told = without_userinfo(f"MLflow has no '{model}' with version or alias '{wanted}': {error}")
            raise BadInput(told) from None
        return self._record(f"tags.`align.key` = '{version.tags[REGISTRATION_TAG]}'")

    def commit_of(self, artifact: Artifact) -> Commit:
        return self._record(f"tags.`align.key` = '{artifact.key}' and tags.`align.kind` = '{artifact.kind}'")

    def _record(self, tags: str) -> Commit:
        runs = self.client.search_runs(self.experiments, f"{tags} and {FINISHED}", max_results=1)
        if not runs:
            raise MissingArtifact(f"MLflow has no run with {tags}")
        with tempfile.TemporaryDirectory() as folder:
            path = self.client.download_artifacts(runs[0].info.run_id, "commit.json", folder)
            return Commit.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
