"""The MLflow run of a materialization: one for each (asset, partition, artifact key).

A run is searched by its tag before it is made, so a retry, a resume and a second report use the same run.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.address import shown
from alignment.store import Commit
from resources.home import align_home, mlflow_page
from resources.mlflow_database import FILES
from resources.mlflow_values import (
    DAGSTER_RUNS_TAG,
    PARAM_LIMIT,
    dagster_runs_tag,
    overflow_files,
    upstream_tag,
    valid_name,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)
BATCH = 900
DIGEST_LIMIT = 36  # of a dataset in MLflow
REQUEST_TAG = "align.request"
RECIPE_TAG = "align.recipe"
REPORTED_TAG = "align.reported_at"
"""When a run was made, in nanoseconds since 1970."""
LIVE_TAG = "align.live_steps"
"""The last step of each metric that was logged while the artifact was made, as JSON."""
NOTE_TAG = "mlflow.note.content"
"""The tag that MLflow shows as a description, in Markdown."""
EXPERIMENT_NOTE = """\
Every result of the recipe `{0}`, and of recipes with the same `registry.experiment`, one run an artifact: base model,
SFT, preference shards, reference log-probs, policy, answers, scores, report and registration. A run starts and ends
with the making of its artifact, and holds its settings, numbers, commit record and files. The run `evaluation_report`
has the comparison as `report.html`. The tag `align.uri` is the artifact's address in the store.
"""


@dataclass(frozen=True)
class Report:
    """What a materialization reports to MLflow.

    `experiment` is the MLflow experiment, by default the recipe's name. `history` has a dict for each training step
    (`step`, and numbers by name). `upstream` maps an input's name to the MLflow run that reported it. `checkpoint` is
    true if the artifact is a model.
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
    experiment: str = ""

    @property
    def identity(self) -> str:
        """The value of the tag by which the run is found again."""
        return identity_of(self.recipe, self.asset, self.partition, self.commit.key)


def identity_of(recipe: str, asset: str, partition: str | None, key: str) -> str:
    """The value of the tag by which the run of an artifact is found again."""
    return "/".join([recipe, asset, partition or "-", key])


@dataclass(frozen=True)
class Opening:
    """What is known of an artifact's run while it is made: no digest, no address, and no numbers of the result."""

    recipe: str
    asset: str
    kind: str
    key: str
    stage: str
    dagster_run_id: str
    params: Mapping[str, Any]
    experiment: str = ""


@dataclass(frozen=True)
class Reported:
    """The MLflow run of a materialization, and the addresses at which a person opens it."""

    run_id: str
    experiment_id: str

    @property
    def url(self) -> str:
        """The page of the run."""
        return mlflow_page(f"experiments/{self.experiment_id}/runs/{self.run_id}")

    def file(self, name: str) -> str:
        """The page that shows a file of the run."""
        return mlflow_page(f"experiments/{self.experiment_id}/runs/{self.run_id}/artifacts/{name}")


def report_run(client: MlflowClient, report: Report) -> Reported:
    """Writes the run of a materialization; safe to repeat. A finished run only gets the Dagster run's id."""
    run = _run(client, report)
    run_id = str(run.info.run_id)
    if (added := dagster_runs_tag(run.data.tags, report.dagster_run_id)) is not None:
        client.set_tag(run_id, *added)
    if run.info.status != "FINISHED":
        _log_tags(client, run, report)
        _log_numbers(client, run_id, report, live_steps(run.data.tags))
        _log_inputs(client, run_id, report)
        with tempfile.TemporaryDirectory() as folder:
            texts = overflow_files(report.upstream, report.params)
            texts["commit.json"] = report.commit.model_dump_json(indent=1)
            for name, text in texts.items():
                Path(folder, name).write_text(text, encoding="utf-8")
            for path in [*(Path(folder, name) for name in texts), *report.files]:
                client.log_artifact(run_id, str(path))
        if report.checkpoint:
            _logged_model(client, report, run)
        client.set_terminated(run_id, "FINISHED", ended_at(report.commit))
    return Reported(run_id, str(run.info.experiment_id))


def open_run(client: MlflowClient, opening: Opening) -> Run:
    """The run of an artifact that is being made: the one that there is, opened again, or a new one."""
    identity = identity_of(opening.recipe, opening.asset, None, opening.key)
    tags = {
        REQUEST_TAG: identity,
        RECIPE_TAG: opening.recipe,
        "align.stage": opening.stage,
        "align.kind": opening.kind,
        "align.key": opening.key,
        "dagster.asset": f"{opening.recipe}/{opening.asset}",
        DAGSTER_RUNS_TAG: opening.dagster_run_id,
    }
    now = round(time.time() * 1000)
    experiment = opening.experiment or opening.recipe
    run = _found_or_made(client, experiment, opening.recipe, identity, opening.asset, tags, now)
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")
    _log_params(client, str(run.info.run_id), opening.params)
    return run


def run_page(run: Run) -> str:
    """The page of a run."""
    return Reported(str(run.info.run_id), str(run.info.experiment_id)).url


def live_steps(tags: Mapping[str, str]) -> dict[str, int]:
    """The last step of each metric that was logged while the artifact was made."""
    return {str(name): int(step) for name, step in json.loads(tags.get(LIVE_TAG) or "{}").items()}


def began_at(commit: Commit) -> int:
    """When the artifact began to be made, in milliseconds since 1970."""
    return int(datetime.fromisoformat(commit.started_at).timestamp() * 1000)


def ended_at(commit: Commit) -> int:
    """When the artifact was made, in milliseconds since 1970."""
    return began_at(commit) + round(commit.seconds * 1000)


def earliest(runs: Iterable[Run]) -> Run | None:
    """The run that was made first. A run's start is when its artifact began to be made, the same for all runs of an
    artifact, so a tag tells them apart; runs of version 0.1.0 have none, and started when they were reported."""
    return min(runs, key=_reported_at, default=None)


def _reported_at(run: Run) -> tuple[int, str]:
    return int(run.data.tags.get(REPORTED_TAG, run.info.start_time * 1_000_000)), str(run.info.run_id)


def _run(client: MlflowClient, report: Report) -> Run:
    """The earliest run with this identity, or a new run."""
    name, experiment = report.asset, report.experiment or report.recipe
    if report.partition:
        name += f" {report.partition}"
    tags, start = _tags(report), began_at(report.commit)
    return _found_or_made(client, experiment, report.recipe, report.identity, name, tags, start)


def _found_or_made(
    client: MlflowClient, experiment: str, recipe: str, identity: str, name: str, tags: Mapping[str, str], start: int
) -> Run:
    """The earliest run with this identity, or a new run in the experiment.

    A run that stands in an experiment of the recipe's own, from before it joined others, stays there.
    """
    place = _experiment(client, experiment)
    own = None if experiment == recipe else client.get_experiment_by_name(recipe)
    places = [place, *([str(own.experiment_id)] if own is not None else [])]
    by_identity = f"tags.`{REQUEST_TAG}` = '{identity}'"
    if (known := earliest(client.search_runs(places, by_identity))) is not None:
        return known
    shown_name = name if experiment == recipe else f"{recipe} {name}"
    created = client.create_run(place, start, {**tags, REPORTED_TAG: str(time.time_ns())}, shown_name)
    first = earliest(client.search_runs(places, by_identity))
    if first is not None and first.info.run_id != created.info.run_id:
        client.delete_run(created.info.run_id)
        return first
    return created


def _logged_model(client: MlflowClient, report: Report, run: Run) -> str:
    """The id of the checkpoint's logged model, made once. Its files stay in our store until it is registered."""
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


def _experiment(client: MlflowClient, name: str) -> str:
    """The id of the recipe's experiment. Without a server its files are in the project's home, not where a step
    runs."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        if experiment.lifecycle_stage != "active":
            log.warning("MLflow's experiment %s had been deleted; it is restored, with the runs it held", name)
            client.restore_experiment(experiment.experiment_id)
        if NOTE_TAG not in experiment.tags:  # of version 0.1.0
            client.set_experiment_tag(experiment.experiment_id, NOTE_TAG, EXPERIMENT_NOTE.format(name))
        return str(experiment.experiment_id)
    try:
        local = not client.tracking_uri.startswith("http")
        place = (align_home() / FILES / name).as_uri() if local else None
        return str(client.create_experiment(name, place, {NOTE_TAG: EXPERIMENT_NOTE.format(name)}))
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


def _log_tags(client: MlflowClient, run: Run, report: Report) -> None:
    """What was not known when the run was opened."""
    from mlflow.entities import RunTag

    missing = [RunTag(name, value) for name, value in _tags(report).items() if name not in run.data.tags]
    if missing:
        client.log_batch(run.info.run_id, tags=missing)


def _log_params(client: MlflowClient, run_id: str, settings: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    params = [Param(valid_name(name), shown(str(value))[:PARAM_LIMIT]) for name, value in settings.items()]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])


def _log_numbers(client: MlflowClient, run_id: str, report: Report, live: Mapping[str, int]) -> None:
    """The numbers of the result, and those of training steps that were not logged while it trained."""
    from mlflow.entities import Metric

    # with the artifact's own time a point that is written twice stays one point
    at = began_at(report.commit)
    metrics = [Metric(valid_name(name), float(value), at, 0) for name, value in report.metrics.items()]
    trained = ended_at(report.commit) if live else at  # after the points that were logged while it trained
    for record in report.history:
        step = int(record["step"])
        metrics += [
            Metric(name, float(value), trained, step)
            for name, value in record.items()
            if name != "step" and isinstance(value, int | float) and step > live.get(name, -1)
        ]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])
    _log_params(client, run_id, report.params)


def _log_inputs(client: MlflowClient, run_id: str, report: Report) -> None:
    """Logs each input as a dataset with its digest; of a manifest with thousands of shards only the first ones."""
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
