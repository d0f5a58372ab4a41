"""MLflow as a Dagster resource: the runs of materializations, and registered model versions by the policy's digest.

MLflow is called after the artifact is committed, so an error of MLflow never loses work.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

from alignment.address import shown
from alignment.errors import BadInput
from alignment.store import Artifact, Commit, MissingArtifact
from alignment.store.commit import read_record
from resources import mlflow_model
from resources.databases import words_of
from resources.home import mlflow_ui, tracking_uri
from resources.mlflow_database import prepare
from resources.mlflow_runs import RECIPE_TAG, Report, Reported, earliest, report_run
from resources.mlflow_values import (
    truncated_tag,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel


T = TypeVar("T")
log = logging.getLogger(__name__)

MODELS_A_PAGE = 100
MAX_DESCRIPTION = 5000
"""Characters that MLflow's tables keep of a version's description."""
POLICY_TAG = "align.policy_digest"
REGISTRATION_TAG = "align.registration_key"
ERASED_TAG = "align.erased"
"""A version's tag that says when and why its files were erased."""
CHAMPION = "champion"
MODEL_NOTE = """\
The policies that the gate of the recipe `{0}` passed, or that a person promoted. The alias `champion` is on the version
in use. A version's tags say who promoted it and why; `align lineage` leads from it back to its rows.
"""


class TrackingUnreachable(BadInput):
    """MLflow did not answer, or refused, after all attempts. The artifact is committed, and the next run only
    reports."""


class ModelTaken(BadInput):
    """The model name belongs to another recipe, whose champion must not be replaced."""


class Tracking(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The tracking server. A call is tried `attempts` times, with pauses that start at `pause` seconds and double."""

    uri: str = ""
    attempts: int = 4
    pause: float = 1.0

    def client(self) -> MlflowClient:
        """A client of the server; tables of a new local database are created first."""
        import mlflow

        # MLflow's own retries would block a step for many minutes without a message
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        uri = self.uri or tracking_uri()
        mlflow.set_tracking_uri(uri)  # the registry resolves a logged model by the process's default, not the client's
        if not uri.startswith("http"):
            prepare(uri)
        return mlflow.MlflowClient(uri)

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Turns every error of MLflow into a `TrackingUnreachable` that names the server."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            # `from None`: the original error may contain the server's password, and Dagster would record it
            problem = f"MLflow at {shown(self.uri or tracking_uri())}: {words_of(error)}"
            raise TrackingUnreachable(problem) from None

    def report(self, report: Report) -> Reported:
        """Writes the run of a materialization; safe to repeat. Raises `TrackingUnreachable`."""
        return self._retry(lambda: report_run(self.client(), report))

    def _retry(self, work: Callable[[], T]) -> T:
        """The result of `work`, which is tried again while MLflow does not answer."""
        pause = self.pause
        for left in reversed(range(self.attempts)):
            try:
                with self.translated_errors():
                    return work()
            except TrackingUnreachable:
                if not left:
                    raise
                time.sleep(pause)
                pause *= 2
        raise AssertionError("attempts is at least 1")

    def register(
        self,
        recipe: str,
        model_name: str,
        policy: Commit,
        tags: Mapping[str, str],
        fetch: Callable[[], Path],
        lost: Callable[[], Report] | None = None,
    ) -> str:
        """Registers a policy: its version has the files and `tags`, and the alias `champion` moves to it.

        Returns the version, which is made if there is none. `fetch` gives a local folder with the policy's files; it is
        called only if MLflow does not have them. `lost` gives what the policy's own run reports, for an MLflow where
        somebody deleted that run. Raises `ModelTaken` and `TrackingUnreachable`.
        """
        version = self._retry(lambda: self._version(recipe, model_name, policy, lost))
        self.publish(model_name, version, policy, fetch)
        self._retry(lambda: self._promote(model_name, version, {RECIPE_TAG: recipe, POLICY_TAG: policy.digest, **tags}))
        return version

    def publish(self, model_name: str, version: str, policy: Commit, fetch: Callable[[], Path]) -> bool:
        """Gives MLflow the files of a version, if it does not have them; returns False if there is no such version.

        Version 0.1.0 registered versions without files.
        """

        from mlflow.exceptions import MlflowException

        def read_state() -> tuple[str, bool] | None:
            client = self.client()
            try:
                model_id = _model_id(client.get_model_version(model_name, version))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
            return model_id, mlflow_model.is_published(client, model_id)

        state = self._retry(read_state)
        if state is None:
            return False
        model_id, published = state
        if not published:
            folder = fetch()  # not inside `_retry`: an error of the store is not an error of MLflow

            def put() -> None:
                client = self.client()
                mlflow_model.publish(client, model_id, folder, policy)
                if ERASED_TAG in client.get_model_version(model_name, version).tags:
                    client.delete_model_version_tag(model_name, version, ERASED_TAG)

            self._retry(put)
        return True

    def describe(self, model_name: str, version: str, text: str, files: Mapping[str, str], report_key: str) -> None:
        """Makes the page of a version read like a card: `text` is Markdown, to which links to the card's `files` and to
        the report are added. Safe to repeat, and nothing if there is no such version."""
        from mlflow.exceptions import MlflowException

        def work() -> None:
            client = self.client()
            try:
                page = client.get_model_version(model_name, version)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return
                raise
            description = _description(client, page, text, files, report_key)
            there = {file.path for file in client.list_logged_model_artifacts(_model_id(page))}
            if page.description == description and files.keys() <= there:
                return
            with tempfile.TemporaryDirectory() as folder:
                for name, content in files.items():
                    Path(folder, name).write_text(content, encoding="utf-8")
                    client.log_model_artifact(_model_id(page), str(Path(folder, name)))
            client.update_model_version(model_name, version, description)  # last: it says that the files are there

        self._retry(work)

    def unpublish(self, why: Mapping[str, str]) -> None:
        """Removes the files of every version of some policies. `why` maps a policy's digest to the text of the
        version's tag."""

        def work() -> None:
            client = self.client()
            for model in _registered_models(client):
                for version in client.search_model_versions(f"name = '{model.name}'"):
                    reason = why.get(version.tags.get(POLICY_TAG, ""))
                    if reason is not None and version.tags.get(ERASED_TAG) != reason:
                        mlflow_model.unpublish(client, _model_id(version))
                        client.set_model_version_tag(model.name, version.version, ERASED_TAG, reason)

        self._retry(work)

    def _promote(self, model_name: str, version: str, tags: Mapping[str, str]) -> None:
        client = self.client()
        for name, value in tags.items():
            client.set_model_version_tag(model_name, version, name, truncated_tag(value))
        client.set_registered_model_alias(model_name, CHAMPION, version)

    def _version(self, recipe: str, model_name: str, policy: Commit, lost: Callable[[], Report] | None) -> str:
        from mlflow.exceptions import MlflowException

        client = self.client()
        try:
            client.create_registered_model(model_name, description=MODEL_NOTE.format(recipe))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = client.search_model_versions(f"name = '{model_name}'")
        owners = {owner for version in versions if (owner := version.tags.get(RECIPE_TAG, recipe)) != recipe}
        if owners:
            raise ModelTaken(f"registered model '{model_name}' belongs to recipe {', '.join(sorted(owners))}")
        version = next(
            (str(candidate.version) for candidate in versions if candidate.tags.get(POLICY_TAG) == policy.digest), None
        )
        return self._new_version(client, model_name, policy, lost) if version is None else version

    def aliased(self, model_name: str, alias: str = CHAMPION) -> tuple[str, dict[str, str]] | None:
        """The version that has an alias, with its tags; None if there is no such model or alias."""
        from mlflow.exceptions import MlflowException

        def work() -> tuple[str, dict[str, str]] | None:
            try:
                aliased = self.client().get_model_version_by_alias(model_name, alias)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise
            return str(aliased.version), dict(aliased.tags)

        return self._retry(work)

    def aliased_policies(self) -> set[str]:
        """Digests of all policies with an alias, in any registered model."""

        def work() -> set[str]:
            client = self.client()
            versions = [
                client.get_model_version(model.name, version)
                for model in _registered_models(client)
                for version in set(model.aliases.values())
            ]
            return {version.tags.get(POLICY_TAG, "") for version in versions} - {""}

        return self._retry(work)

    def _new_version(
        self, client: MlflowClient, model_name: str, policy: Commit, lost: Callable[[], Report] | None
    ) -> str:
        """A version from the logged model of the run that reported the policy.

        A run that was deleted, alone or with its experiment, is reported again: its artifact is current, so that no
        later run would do it.
        """
        found = _logged_model_of(client, policy)
        if found is None and lost is not None:
            log.warning("MLflow holds no finished run of policy %s any more: it is reported again", policy.key)
            report_run(client, lost())
            found = _logged_model_of(client, policy)
        if found is None:
            raise TrackingUnreachable(
                f"MLflow holds no finished run of policy {policy.key}: restore the deleted run there, or run"
                " `align promote` for its version, which reports it again"
            )
        model_id, run_id = found
        tags = {POLICY_TAG: policy.digest}
        made = client.create_model_version(
            model_name, source=f"models:/{model_id}", run_id=run_id, model_id=model_id, tags=tags
        )
        return str(made.version)


def _description(client: MlflowClient, page: ModelVersion, text: str, files: Mapping[str, str], report_key: str) -> str:
    """A version's description with its links, no longer than MLflow keeps."""
    logged = client.get_logged_model(_model_id(page))
    place = f"{mlflow_ui()}/#/experiments/{logged.experiment_id}/models/{logged.model_id}/artifacts"
    links = [f"[{name}]({place})" for name in files]
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments, f"tags.`align.key` = '{report_key}' and {FINISHED}", max_results=1):
        links.append(f"[report]({mlflow_ui()}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts)")
    digest = hashlib.sha256("".join(files.values()).encode()).hexdigest()[:8]  # so that another card is seen
    end = f"\n\nThe whole card: {', '.join(links)} ({digest})."
    room = MAX_DESCRIPTION - len(end)
    if len(text) > room:
        text = text[:room].rpartition("\n")[0]  # whole lines: half a table shows as text
    return text + end


def _logged_model_of(client: MlflowClient, policy: Commit) -> tuple[str, str] | None:
    """The ids of the logged model and the run of a policy that was reported; None where there is none."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`align.key` = '{policy.key}' and attributes.status = 'FINISHED'")
    outputs = runs[0].outputs.model_outputs if runs and runs[0].outputs else []
    return (str(outputs[0].model_id), str(runs[0].info.run_id)) if outputs else None


def _model_id(version: ModelVersion) -> str:
    """The id of the logged model that a version was made from."""
    return str(version.source).removeprefix("models:/")


def _registered_models(client: MlflowClient) -> Iterator[RegisteredModel]:
    """All registered models, page by page."""
    token: str | None = None
    while True:
        page = client.search_registered_models(max_results=MODELS_A_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


# Commit records read back from MLflow. A model's lineage can be read from MLflow alone.

FINISHED = "attributes.status = 'FINISHED'"  # an unfinished run may have no record yet


class MlflowRecords:
    """The commit records in MLflow: the run of each materialization holds its own."""

    def __init__(self, tracking: Tracking) -> None:
        self.tracking = tracking
        with tracking.translated_errors():
            self.client = tracking.client()
            self.experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]

    def run_ids(self, keys: list[str]) -> dict[str, str]:
        """Artifact key to the id of the first run that reported it; keys that were never reported are left out."""
        run_ids: dict[str, str] = {}
        for key in keys:
            first = earliest(self._runs(f"tags.`align.key` = '{key}'"))
            if first is not None:
                run_ids[key] = str(first.info.run_id)
        return run_ids

    def _runs(self, tags: str) -> list[Run]:
        with self.tracking.translated_errors():
            return list(self.client.search_runs(self.experiments, f"{tags} and {FINISHED}"))

    def registration(self, model: str, wanted: str) -> Commit:
        """The registration's commit record of a version (digits) or alias; raises `BadInput` if there is none."""
        from mlflow.exceptions import MlflowException

        with self.tracking.translated_errors():
            try:
                if wanted.isdigit():
                    version = self.client.get_model_version(model, wanted)
                else:
                    version = self.client.get_model_version_by_alias(model, wanted)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                problem = f"MLflow has no '{model}' with version or alias '{wanted}': {words_of(error)}"
                raise BadInput(problem) from None
        return self._record(f"tags.`align.key` = '{version.tags[REGISTRATION_TAG]}'")

    def commit_of(self, artifact: Artifact) -> Commit:
        """The commit record of an artifact; raises `MissingArtifact` if no finished run has it."""
        return self._record(f"tags.`align.key` = '{artifact.key}' and tags.`align.kind` = '{artifact.kind}'")

    def _record(self, tags: str) -> Commit:
        runs = self._runs(tags)
        if not runs:
            raise MissingArtifact(f"MLflow has no run with {tags}")
        with tempfile.TemporaryDirectory() as folder, self.tracking.translated_errors():
            path = self.client.download_artifacts(runs[0].info.run_id, "commit.json", folder)
            return read_record(Commit, Path(path).read_text(encoding="utf-8"), f"{runs[0].info.run_id}/commit.json")
