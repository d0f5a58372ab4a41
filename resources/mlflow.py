"""MLflow: one run per (asset, partition, artifact key), and model versions found by the policy's digest.

A run is searched by its tag before it is made, so a retry, a resume and a second report meet in one
run. All of it happens after the artifact is committed: losing MLflow never loses work.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg
from filelock import FileLock

from alignment.address import shown
from alignment.errors import BadInput
from alignment.store import Artifact, Commit, MissingArtifact
from alignment.store.commit import read_record
from resources import mlflow_model
from resources.home import align_home, mlflow_ui, tracking_uri
from resources.mlflow_values import (
    DAGSTER_RUNS_TAG,
    PARAM_LIMIT,
    dagster_runs_tag,
    files_of,
    shortened,
    upstream_tag,
    usable,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel


T = TypeVar("T")

BATCH = 900
MODELS_A_PAGE = 100
DIGEST_LIMIT = 36  # of a dataset in MLflow
REQUEST_TAG = "align.request"
POLICY_TAG = "align.policy_digest"
RECIPE_TAG = "align.recipe"
REGISTRATION_TAG = "align.registration_key"
ERASED_TAG = "align.erased"
"""On a version whose files were taken away: when and why."""
CHAMPION = "champion"


class TrackingUnreachable(BadInput):
    """The MLflow a person named did not answer, tries included; the artifact is safe and the next run only reports."""


@dataclass(frozen=True)
class Report:
    """What one materialization tells MLflow.

    `history` holds one dict a step (key `step`, others numbers); `upstream` maps an input's name to the
    MLflow run that reported it; `checkpoint` says that the artifact is a model.
    """

    recipe: str
    asset: str
    partition: str | None
    commit: Commit
    uri: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    dagster_run_id: str
    history: list[dict[str, Any]] = field(default_factory=list)
    upstream: Mapping[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    checkpoint: bool = False

    @property
    def identity(self) -> str:
        return "/".join([self.recipe, self.asset, self.partition or "-", self.commit.key])


class ModelTaken(BadInput):
    """Another recipe registers under this model name; its champion is not ours to replace."""


@dataclass(frozen=True)
class Reported:
    """The MLflow run of a materialization, and where a person opens it."""

    run_id: str
    url: str


class Tracking(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The tracking server. `attempts` tries with doubling pauses, from `pause` seconds, before giving up."""

    uri: str = ""
    attempts: int = 4
    pause: float = 1.0

    def client(self) -> MlflowClient:
        import mlflow

        # MLflow's own retries would hold a step for many minutes before we can say why
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        uri = self.uri or tracking_uri()
        mlflow.set_tracking_uri(uri)  # the registry resolves a logged model by the process's default, not the client's
        if not uri.startswith("http"):
            _make_tables(uri)
        return mlflow.MlflowClient(uri)

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Turns whatever MLflow raises into `TrackingUnreachable` that names the server."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            # without the error itself, whose own text may hold the server's password and would be recorded with it
            problem = f"MLflow at {shown(self.uri or tracking_uri())}: {error}"
            raise TrackingUnreachable(problem) from None

    def report(self, report: Report) -> Reported:
        """Writes the materialization's run, whole; safe to repeat."""
        return self._tried(lambda: self._report(report))

    def _tried(self, work: Callable[[], T]) -> T:
        """What `work` returns, tried again while MLflow does not answer."""
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

    def _report(self, report: Report) -> Reported:
        client = self.client()
        run = self._run(client, report)
        run_id = str(run.info.run_id)
        if (added := dagster_runs_tag(run.data.tags, report.dagster_run_id)) is not None:
            client.set_tag(run_id, *added)
        if run.info.status != "FINISHED":
            _log_numbers(client, run_id, report)
            _log_inputs(client, run_id, report)
            with tempfile.TemporaryDirectory() as folder:
                texts = files_of(report.upstream, report.params)
                texts["commit.json"] = report.commit.model_dump_json(indent=1)
                for name, text in texts.items():
                    Path(folder, name).write_text(text, encoding="utf-8")
                for path in [*(Path(folder, name) for name in texts), *report.files]:
                    client.log_artifact(run_id, str(path))
            if report.checkpoint:
                self.external_model(client, report, run)
            client.set_terminated(run_id, "FINISHED")
        return Reported(run_id, f"{mlflow_ui()}/#/experiments/{run.info.experiment_id}/runs/{run_id}")

    def _run(self, client: MlflowClient, report: Report) -> Run:
        """The run of this identity: the earliest there is, or a new one."""
        experiment = _experiment(client, report.recipe)
        by_identity = f"tags.`{REQUEST_TAG}` = '{report.identity}'"
        if runs := client.search_runs([experiment], by_identity, order_by=["attributes.start_time ASC"], max_results=1):
            return runs[0]
        name = f"{report.asset} {report.partition}" if report.partition else report.asset
        created = client.create_run(experiment, run_name=name, tags=_tags(report))
        earliest = client.search_runs([experiment], by_identity, order_by=["attributes.start_time ASC"], max_results=1)
        if earliest and earliest[0].info.run_id != created.info.run_id:
            client.delete_run(created.info.run_id)
            return earliest[0]
        return created

    def external_model(self, client: MlflowClient, report: Report, run: Run) -> str:
        """The checkpoint as an MLflow logged model whose files stay in our store until it is registered; made once."""
        from mlflow.entities import LoggedModelOutput

        experiment, run_id = run.info.experiment_id, run.info.run_id
        models = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'", max_results=1)
        if models:
            return str(models[0].model_id)
        model = client.create_logged_model(
            experiment_id=experiment,
            name=report.asset.replace("/", "-"),
            source_run_id=run_id,
            model_type="checkpoint",
            params={"key": report.commit.key},
            tags={
                "mlflow.model.isExternal": "true",
                "align.uri": report.uri,
                "align.digest": report.commit.digest,
                "align.key": report.commit.key,
            },
        )
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return str(model.model_id)

    def register(
        self, recipe: str, model_name: str, policy: Commit, tags: Mapping[str, str], fetch: Callable[[], Path]
    ) -> str:
        """The registered version of a policy, made if there is none, with its files, `tags` and the alias `champion`.

        `fetch` gives a local folder with the policy's files; it is asked only where MLflow has none of them yet.
        """
        version = self._tried(lambda: self._version(recipe, model_name, policy))
        self.publish(model_name, version, policy, fetch)
        self._tried(lambda: self._promote(model_name, version, {RECIPE_TAG: recipe, POLICY_TAG: policy.digest, **tags}))
        return version

    def publish(self, model_name: str, version: str, policy: Commit, fetch: Callable[[], Path]) -> bool:
        """Sees to it that MLflow has the files of a version, for whoever loads it; False where it has no such version.

        Versions that were registered before MLflow was given any files have none.
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

        state = self._tried(read_state)
        if state is None:
            return False
        model_id, published = state
        if not published:
            folder = fetch()  # outside of the tries: what the store says is not MLflow's fault

            def put() -> None:
                client = self.client()
                mlflow_model.publish(client, model_id, folder, policy)
                if ERASED_TAG in client.get_model_version(model_name, version).tags:
                    client.delete_model_version_tag(model_name, version, ERASED_TAG)

            self._tried(put)
        return True

    def unpublish(self, why: Mapping[str, str]) -> None:
        """Takes away the files of every version of some policies; `why` maps their digests to what a reader is told."""

        def work() -> None:
            client = self.client()
            for model in _registered_models(client):
                for version in client.search_model_versions(f"name = '{model.name}'"):
                    reason = why.get(version.tags.get(POLICY_TAG, ""))
                    if reason is not None and version.tags.get(ERASED_TAG) != reason:
                        mlflow_model.unpublish(client, _model_id(version))
                        client.set_model_version_tag(model.name, version.version, ERASED_TAG, reason)

        self._tried(work)

    def _promote(self, model_name: str, version: str, tags: Mapping[str, str]) -> None:
        client = self.client()
        for name, value in tags.items():
            client.set_model_version_tag(model_name, version, name, shortened(value))
        client.set_registered_model_alias(model_name, CHAMPION, version)

    def _version(self, recipe: str, model_name: str, policy: Commit) -> str:
        from mlflow.exceptions import MlflowException

        client = self.client()
        try:
            client.create_registered_model(model_name)
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
        return self._new_version(client, model_name, policy) if version is None else version

    def aliased(self, model_name: str, alias: str = CHAMPION) -> tuple[str, dict[str, str]] | None:
        """The version that an alias is on, with its tags; None where there is no such model or alias."""
        from mlflow.exceptions import MlflowException

        def work() -> tuple[str, dict[str, str]] | None:
            try:
                aliased = self.client().get_model_version_by_alias(model_name, alias)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise
            return str(aliased.version), dict(aliased.tags)

        return self._tried(work)

    def aliased_policies(self) -> set[str]:
        """Digests of the policies whose version carries any alias, in any registered model."""

        def work() -> set[str]:
            client = self.client()
            versions = [
                client.get_model_version(model.name, version)
                for model in _registered_models(client)
                for version in set(model.aliases.values())
            ]
            return {version.tags.get(POLICY_TAG, "") for version in versions} - {""}

        return self._tried(work)

    def _new_version(self, client: MlflowClient, model_name: str, policy: Commit) -> str:
        """A version from the logged model of the run that reported the policy."""
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, f"tags.`align.key` = '{policy.key}' and attributes.status = 'FINISHED'")
        outputs = runs[0].outputs.model_outputs if runs and runs[0].outputs else []
        if not outputs:
            raise TrackingUnreachable(f"MLflow holds no finished run of policy {policy.key}; materialize it again")
        model_id, run_id = outputs[0].model_id, runs[0].info.run_id
        tags = {POLICY_TAG: policy.digest}
        made = client.create_model_version(
            model_name, source=f"models:/{model_id}", run_id=run_id, model_id=model_id, tags=tags
        )
        return str(made.version)


def _model_id(version: ModelVersion) -> str:
    """The logged model that a version of ours was made from."""
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


@cache
def _make_tables(uri: str) -> None:
    """Opens a database once, alone: two first openings at once both create its tables, and one fails."""
    from mlflow import MlflowClient

    align_home().mkdir(parents=True, exist_ok=True)
    with FileLock(align_home() / "mlflow.lock"):
        MlflowClient(uri).search_experiments(max_results=1)


def _experiment(client: MlflowClient, name: str) -> str:
    """The recipe's experiment; without a server its files lie in the project's home, not where a step runs."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    try:
        local = not client.tracking_uri.startswith("http")
        place = (align_home() / "mlartifacts" / name).as_uri() if local else None
        return str(client.create_experiment(name, artifact_location=place))
    except MlflowException:  # another step made it first
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def _tags(report: Report) -> dict[str, str]:
    commit = report.commit
    tags = {
        REQUEST_TAG: report.identity,
        RECIPE_TAG: report.recipe,
        "align.stage": commit.stage,
        "align.kind": commit.kind,
        "align.key": commit.key,
        "align.digest": commit.digest,
        "align.uri": report.uri,
        "align.code_version": str(commit.code_version),
        "dagster.asset": f"{report.recipe}/{report.asset}",
        "dagster.partition": report.partition or "",
        "dagster.data_version": commit.digest,
        DAGSTER_RUNS_TAG: report.dagster_run_id,
        "align.upstream_runs": upstream_tag(report.upstream),
    }
    return {name: value for name, value in tags.items() if value}


def _log_numbers(client: MlflowClient, run_id: str, report: Report) -> None:
    from mlflow.entities import Metric, Param

    # the artifact's own time, so that a point written twice is one point
    at = int(datetime.fromisoformat(report.commit.started_at).timestamp() * 1000)
    metrics = [Metric(usable(name), float(value), at, 0) for name, value in report.metrics.items()]
    for record in report.history:
        step = int(record["step"])
        metrics += [
            Metric(name, float(value), at, step)
            for name, value in record.items()
            if name != "step" and isinstance(value, int | float)
        ]
    params = [Param(usable(name), shown(str(value))[:PARAM_LIMIT]) for name, value in report.params.items()]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])


def _log_inputs(client: MlflowClient, run_id: str, report: Report) -> None:
    """Each input as a dataset with its digest; of a manifest's thousands of shards only the first are shown."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    inputs = []
    for name, artifact in list(report.commit.inputs.items())[:BATCH]:
        source = {"kind": artifact.kind, "key": artifact.key, "attempt": artifact.attempt}
        dataset = Dataset(artifact.kind, artifact.digest[:DIGEST_LIMIT], "alignment-dags", json.dumps(source))
        tags = [InputTag(MLFLOW_DATASET_CONTEXT, name), InputTag("align.key", artifact.key)]
        inputs.append(DatasetInput(dataset, tags))
    if inputs:
        client.log_inputs(run_id, inputs)


# Commit records read back from MLflow, which alone is enough to tell a model's lineage.

FINISHED = "attributes.status = 'FINISHED'"  # a run still being written has no record yet


class MlflowRecords:
    """Commit records as MLflow holds them: each materialization's run carries its own."""

    def __init__(self, tracking: Tracking) -> None:
        with tracking.translated_errors():
            self.client = tracking.client()
            self.experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]

    def run_ids(self, keys: list[str]) -> dict[str, str]:
        """Artifact key to the id of the run that reported it first, for those that were reported."""
        run_ids: dict[str, str] = {}
        for key in keys:
            runs = self.client.search_runs(
                self.experiments,
                f"tags.`align.key` = '{key}' and {FINISHED}",
                order_by=["attributes.start_time ASC"],
                max_results=1,
            )
            run_ids.update((key, str(run.info.run_id)) for run in runs)
        return run_ids

    def registration(self, model: str, wanted: str) -> Commit:
        from mlflow.exceptions import MlflowException

        try:
            if wanted.isdigit():
                version = self.client.get_model_version(model, wanted)
            else:
                version = self.client.get_model_version_by_alias(model, wanted)
        except MlflowException as error:
            raise BadInput(f"MLflow has no '{model}' with version or alias '{wanted}': {error}") from None
        return self._record(f"tags.`align.key` = '{version.tags[REGISTRATION_TAG]}'")

    def commit_of(self, artifact: Artifact) -> Commit:
        return self._record(f"tags.`align.key` = '{artifact.key}' and tags.`align.kind` = '{artifact.kind}'")

    def _record(self, tags: str) -> Commit:
        runs = self.client.search_runs(self.experiments, f"{tags} and {FINISHED}", max_results=1)
        if not runs:
            raise MissingArtifact(f"MLflow has no run with {tags}")
        with tempfile.TemporaryDirectory() as folder:
            path = self.client.download_artifacts(runs[0].info.run_id, "commit.json", folder)
            return read_record(Commit, Path(path).read_text(encoding="utf-8"), f"{runs[0].info.run_id}/commit.json")
