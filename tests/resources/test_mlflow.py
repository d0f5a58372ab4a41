"""MLflow: one run a materialization, whatever is repeated, interrupted or raced."""

from __future__ import annotations

import hashlib
import json
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from alignment.store import Artifact, Commit
from resources.home import mlflow_ui
from resources.mlflow import MlflowRecords, ModelTaken, Tracking, TrackingUnreachable
from resources.mlflow_database import prepare
from resources.mlflow_runs import NOTE_TAG, REPORTED_TAG, Report
from resources.mlflow_values import dagster_runs_tag, valid_name


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    """In a folder of its own, where MLflow leaves the files of experiments that name no other place."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Tracking(uri=f"sqlite:///{folder / 'mlflow.db'}", attempts=1)


def report(key: str = "k" * 40, **changed: object) -> Report:
    shard = Artifact(kind="preference_shard", key="s" * 40, attempt="a", digest="e" * 64)
    commit = Commit(
        kind="policy_checkpoint",
        key=key,
        attempt="a",
        digest="d" * 64,
        stage="policy_checkpoint",
        code_version=1,
        inputs={"shard": shard},
        files={},
        summary={"rows": 3},
        environment={},
        started_at="2026-01-01T00:00:00+00:00",
        seconds=1.0,
    )
    plain = Report(
        recipe="recipe",
        asset="policy_checkpoint",
        partition=None,
        commit=commit,
        uri="file:///store/policy",
        params={"beta": 0.1},
        metrics={"rows": 3},
        dagster_run_id="dagster-1",
        history=[{"step": 1, "loss": 0.69}, {"step": 2, "loss": 0.5}],
        checkpoint=True,
    )
    return replace(plain, **changed)  # type: ignore[arg-type]


def runs(client: MlflowClient, key: str) -> list[object]:
    experiment = client.get_experiment_by_name("recipe")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], f"tags.`align.key` = '{key}'"))


def test_a_report_holds_numbers_history_inputs_tags_and_the_checkpoint(tracking: Tracking, tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    file.write_text("{}")
    client = tracking.client()
    run = client.get_run(tracking.report(report("a" * 40, files=[file])).run_id)
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (1767225600000, 1767225601000), "as the artifact was made"
    assert run.data.params["beta"] == "0.1"
    assert [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "loss")] == [
        (1, 0.69),
        (2, 0.5),
    ]
    assert run.data.tags["dagster.asset"] == "recipe/policy_checkpoint"
    assert run.data.tags["dagster.data_version"] == "d" * 64
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("preference_shard", "e" * 36)
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == {"commit.json", "verdict.json"}
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert model.tags["align.uri"] == "file:///store/policy"


def test_links_open_the_pages_for_training(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_MLFLOW_UI", "http://mlflow.example")
    reported = tracking.report(report("a" * 40))
    place = f"http://mlflow.example/#/experiments/{reported.experiment_id}/runs/{reported.run_id}"
    assert reported.url == f"{place}?workflowType=machine_learning"
    assert reported.file("report.html") == f"{place}/artifacts/report.html?workflowType=machine_learning"


def test_an_experiment_says_what_it_holds_also_one_of_an_earlier_version(tracking: Tracking) -> None:
    client = tracking.client()
    client.create_experiment("earlier")
    for name in ("recipe", "earlier"):
        tracking.report(report("u" * 40, recipe=name))
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        assert experiment.tags[NOTE_TAG].startswith(f"Every result of the recipe `{name}`")
    assert experiment is not None
    client.set_experiment_tag(experiment.experiment_id, NOTE_TAG, "a person's words")
    tracking.report(report("v" * 40, recipe="earlier"))
    assert client.get_experiment(experiment.experiment_id).tags[NOTE_TAG] == "a person's words"


def test_recipes_of_one_experiment_stand_side_by_side_and_earlier_runs_stay_where_they_are(tracking: Tracking) -> None:
    client = tracking.client()
    alone = tracking.report(report("x" * 40, recipe="derived"))
    again = tracking.report(report("x" * 40, recipe="derived", experiment="recipe"))
    assert again.run_id == alone.run_id, "one run an artifact, whatever the recipe says later"
    new = tracking.report(report("y" * 40, recipe="derived", experiment="recipe"))
    base = tracking.report(report("y" * 40))
    assert new.experiment_id == base.experiment_id != alone.experiment_id and new.run_id != base.run_id
    assert client.get_run(new.run_id).info.run_name == "derived policy_checkpoint"
    assert client.get_run(base.run_id).info.run_name == "policy_checkpoint"


def test_a_run_of_an_earlier_version_stays_the_run_of_its_artifact(tracking: Tracking) -> None:
    client = tracking.client()
    run_id = tracking.report(report("w" * 40)).run_id
    client.delete_tag(run_id, REPORTED_TAG)
    assert tracking.report(report("w" * 40, dagster_run_id="dagster-2")).run_id == run_id
    assert MlflowRecords(tracking).run_ids(["w" * 40]) == {"w" * 40: run_id}


def test_reporting_again_adds_the_dagster_run_and_nothing_else(tracking: Tracking) -> None:
    first = tracking.report(report("b" * 40)).run_id
    second = tracking.report(report("b" * 40, dagster_run_id="dagster-2")).run_id
    assert first == second
    client = tracking.client()
    assert len(runs(client, "b" * 40)) == 1
    assert client.get_run(first).data.tags["dagster.run_ids"] == "dagster-1,dagster-2"
    assert len(client.get_metric_history(first, "loss")) == 2


def test_what_a_tag_or_a_parameter_has_no_room_for_is_whole_in_a_file_of_the_run(
    tracking: Tracking, tmp_path: Path
) -> None:
    upstream = {f"shards.day-{number:04d}": f"{number:032x}" for number in range(300)}
    template = "{% for message in messages %}" * 100
    client = tracking.client()

    def held(key: str, **changed: object) -> tuple[dict[str, str], dict[str, str], Path]:
        run = client.get_run(tracking.report(report(key * 40, **changed)).run_id)
        folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path / key)))
        return run.data.tags, run.data.params, folder

    few = dict(list(upstream.items())[:10])
    tags, _, folder = held("4", upstream=few)
    assert json.loads(tags["align.upstream_runs"]) == few
    assert {path.name for path in folder.iterdir()} == {"commit.json"}

    tags, params, folder = held("5", upstream=upstream, params={"pin.chat_template": template})
    about, text = json.loads(tags["align.upstream_runs"]), (folder / "upstream_runs.json").read_text()
    assert json.loads(text) == upstream
    assert about == {
        "runs": 300,
        "file": "upstream_runs.json",
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    assert template.startswith(params["pin.chat_template"])
    assert json.loads((folder / "params.json").read_text()) == {"pin.chat_template": template}


def test_a_thousand_dagster_runs_are_all_kept(tracking: Tracking) -> None:
    asked = [f"{number:08d}-0000-0000-0000-000000000000" for number in range(1000)]
    tags: dict[str, str] = {}
    for run in [*asked, *asked[::50]]:
        added = dagster_runs_tag(tags, run)
        tags |= dict([added] if added else [])
    assert [run for value in tags.values() for run in value.split(",")] == asked
    client = tracking.client()
    run_id = tracking.report(report("6" * 40, dagster_run_id=asked[0])).run_id
    for name, value in tags.items():
        client.set_tag(run_id, name, value)
    tracking.report(report("6" * 40, dagster_run_id="another"))
    known = client.get_run(run_id).data.tags
    assert sum("another" in value.split(",") for name, value in known.items() if name.startswith("dagster.run")) == 1


def test_numbers_whose_names_are_no_paths_or_too_long_are_reported(tracking: Tracking) -> None:
    names = ["dropped/prompt /of nothing", "dropped/../x", "reasons//empty", "ends/", "/starts", "r/" + "long " * 80]
    client = tracking.client()
    report_ = report("7" * 40, metrics=dict.fromkeys(names, 1.0), params=dict.fromkeys(names, "p"))
    run = client.get_run(tracking.report(report_).run_id)
    assert len(run.data.metrics) == len({valid_name(name) for name in names}) + 1 == len(names) + 1  # and the loss
    assert valid_name("metrics/exact_match_strict-match/value") == "metrics/exact_match_strict-match/value"


def test_a_long_reason_does_not_keep_a_person_from_promoting(tracking: Tracking, micro_folder: Path) -> None:
    item = report("8" * 40)
    item = replace(item, commit=item.commit.model_copy(update={"digest": "8" * 64}))
    tracking.report(item)
    tracking.register("recipe", "reasoned", item.commit, {"align.promotion": "because " * 30_000}, lambda: micro_folder)
    _, tags = tracking.aliased("reasoned") or ("", {})
    assert tags["align.promotion"].startswith("because because")
    assert tags["align.promotion"].endswith("(whole in commit.json of the registration's run)")


def test_an_interrupted_report_is_finished_in_the_same_run(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", killed)
        with pytest.raises(KeyboardInterrupt):
            tracking.report(report("c" * 40))
    client = tracking.client()
    (left,) = runs(client, "c" * 40)
    assert left.info.status == "RUNNING"  # type: ignore[attr-defined]
    done = tracking.report(report("c" * 40, dagster_run_id="dagster-2")).run_id
    assert client.get_run(done).data.tags["dagster.run_ids"] == "dagster-1,dagster-2"
    (one,) = runs(client, "c" * 40)
    assert one.info.run_id == done  # type: ignore[attr-defined]
    assert one.info.status == "FINISHED"  # type: ignore[attr-defined]
    assert len(client.get_metric_history(done, "loss")) == 2


def test_of_two_that_race_the_earliest_run_stays(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    client = tracking.client()
    original = MlflowClient.create_run
    other: list[str] = []

    def beaten(self: MlflowClient, experiment: str, at: int, tags: dict[str, str], name: str) -> object:
        """Just before, another process makes one; both start when the artifact did."""
        if not other:
            earlier = original(self, experiment, at, tags | {REPORTED_TAG: str(int(tags[REPORTED_TAG]) - 1)}, name)
            other.append(earlier.info.run_id)
        return original(self, experiment, at, tags, name)

    monkeypatch.setattr(MlflowClient, "create_run", beaten)
    assert tracking.report(report("f" * 40)).run_id == other[0]
    assert len(runs(client, "f" * 40)) == 1


def test_a_policy_is_registered_once_and_becomes_champion(tracking: Tracking, micro_folder: Path) -> None:
    one, two = report("1" * 40), report("2" * 40)
    other = replace(two, commit=two.commit.model_copy(update={"digest": "o" * 64}))
    versions = []
    for number, item in enumerate((one, one, other, one)):
        tracking.report(item)
        tags = {"align.number": str(number)}
        versions.append(tracking.register("recipe", "model", item.commit, tags, lambda: micro_folder))
    assert versions == ["1", "1", "2", "1"]
    champion = tracking.client().get_model_version_by_alias("model", "champion")
    assert str(champion.version) == "1"
    assert champion.tags["align.policy_digest"] == "d" * 64
    assert champion.tags["align.number"] == "3", "a version that is promoted again tells of its last promotion"


def test_no_alias_is_moved_to_a_version_whose_files_mlflow_did_not_get(
    tracking: Tracking, micro_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, cut_short = report("4" * 40), report("5" * 40)
    cut_short = replace(cut_short, commit=cut_short.commit.model_copy(update={"digest": "5" * 64}))
    for item in (good, cut_short):
        tracking.report(item)
    tracking.register("recipe", "whole", good.commit, {}, lambda: micro_folder)

    def register() -> str:
        return tracking.register("recipe", "whole", cut_short.commit, {}, lambda: micro_folder)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifact", killed)
        with pytest.raises(KeyboardInterrupt):
            register()
    assert tracking.aliased("whole") == ("1", tracking.client().get_model_version("whole", "1").tags)
    assert register() == "2", "the version of the first try"
    assert [path.path for path in tracking.client().list_logged_model_artifacts(model_of("whole", "2", tracking))] == [
        "MLmodel",
        "components",
        "conda.yaml",
        "model",
        "python_env.yaml",
        "requirements.txt",
    ]


def model_of(name: str, version: str, tracking: Tracking) -> str:
    return str(tracking.client().get_model_version(name, version).source).removeprefix("models:/")


def test_a_policy_whose_run_and_model_were_deleted_is_reported_and_registered_again(
    tracking: Tracking, micro_folder: Path
) -> None:
    item = report("6" * 40)
    tracking.report(item)

    def register() -> str:
        return tracking.register("recipe", "deleted", item.commit, {}, lambda: micro_folder, lambda: item)

    assert register() == "1"
    client = tracking.client()
    (run,) = runs(client, "6" * 40)
    client.delete_run(run.info.run_id)  # type: ignore[attr-defined]
    client.delete_registered_model("deleted")
    with pytest.raises(TrackingUnreachable, match="restore the deleted run there, or run `align promote`"):
        tracking.register("recipe", "deleted", item.commit, {}, lambda: micro_folder)
    assert register() == "1"
    (again,) = runs(client, "6" * 40)
    assert again.info.status == "FINISHED" and again.data.metrics["loss"] == 0.5  # type: ignore[attr-defined]
    assert tracking.aliased("deleted") is not None


def test_a_deleted_experiment_is_restored_with_its_runs(tracking: Tracking) -> None:
    item = report("7" * 40, recipe="gone")
    first = tracking.report(item)
    client = tracking.client()
    experiment = client.get_experiment_by_name("gone")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    assert tracking.report(item) == first, "the run that was there, and no other"
    assert tracking.report(report("8" * 40, recipe="gone")).run_id != first.run_id


def test_aliases_of_all_registered_models_are_seen(
    tracking: Tracking, micro_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.mlflow.MODELS_A_PAGE", 1)
    for number in range(3):
        item = report(f"{number}f" * 20)
        item = replace(item, commit=item.commit.model_copy(update={"digest": f"p{number}" * 32}))
        tracking.report(item)
        tracking.register("recipe", f"paged-{number}", item.commit, {}, lambda: micro_folder)
    assert {f"p{number}" * 32 for number in range(3)} <= tracking.aliased_policies()


def test_a_model_of_another_recipe_is_not_taken_over(tracking: Tracking, micro_folder: Path) -> None:
    item = report("3" * 40)
    tracking.report(item)
    tracking.register("recipe", "theirs", item.commit, {}, lambda: micro_folder)
    with pytest.raises(ModelTaken, match="belongs to recipe recipe"):
        tracking.register("other", "theirs", item.commit, {}, lambda: micro_folder)


def test_a_server_that_does_not_answer_is_said_after_the_tries() -> None:
    with pytest.raises(TrackingUnreachable, match=r"MLflow at http://127\.0\.0\.1:9"):
        Tracking(uri="http://127.0.0.1:9", attempts=2, pause=0.0).report(report())


def test_a_server_that_goes_while_records_are_read_is_said_and_not_that_a_version_is_missing(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = MlflowRecords(tracking)

    def no_answer(*_: object, **__: object) -> None:
        raise MlflowException("no answer:\n<html>\n", TEMPORARILY_UNAVAILABLE)

    for name in ("search_runs", "get_model_version", "get_model_version_by_alias"):
        monkeypatch.setattr(records.client, name, no_answer)
    policy = Artifact(kind="policy_checkpoint", key="k" * 40, attempt="a", digest="d" * 64)
    asked = (lambda: records.run_ids(["k" * 40]), lambda: records.commit_of(policy))
    for ask in (*asked, lambda: records.registration("m", "1"), lambda: records.registration("m", "champion")):
        with pytest.raises(TrackingUnreachable, match=r"^MLflow at sqlite:.*: no answer: <html>$"):
            ask()


@pytest.mark.parametrize(
    ("address", "secret"),
    [
        ("http://team:s3@cr3t@127.0.0.1:9", "cr3t"),
        ("http://team:s3/cr3t@127.0.0.1:9", "cr3t"),
        ("http://127.0.0.1:9?token=s3cr3t", "s3cr3t"),
    ],
)
def test_the_servers_password_stands_in_no_error_and_no_link(
    monkeypatch: pytest.MonkeyPatch, address: str, secret: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(TrackingUnreachable) as refused:
        Tracking(attempts=1).report(report())
    told = "".join(traceback.format_exception(refused.value))
    assert "MLflow at http://127.0.0.1:9: " in told
    assert secret not in told
    assert mlflow_ui() == "http://127.0.0.1:9"


def test_files_follow_a_home_that_was_moved_or_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old [1] %20", tmp_path / "new [2] %20"

    def live_in(home: Path) -> MlflowClient:
        monkeypatch.setenv("ALIGN_HOME", str(home))
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        prepare.cache_clear()
        return Tracking(attempts=1).client()

    def places(client: MlflowClient) -> list[str]:
        return sorted(unquote(str(run.info.artifact_uri)).removeprefix("file://") for run in runs(client, "k" * 40))

    client = live_in(old)
    Tracking(attempts=1).report(report(uri=f"file://{old}/store/policy_checkpoint/k"))
    assert places(client)[0].startswith(f"{old}/mlartifacts/recipe/")
    shutil.copytree(old, new)
    before = sorted(old.rglob("*"))

    client = live_in(new)
    (place,) = places(client)
    assert place.startswith(f"{new}/mlartifacts/recipe/")
    (run,) = runs(client, "k" * 40)
    assert run.data.tags["align.uri"] == f"file://{new}/store/policy_checkpoint/k"
    assert Path(client.download_artifacts(run.info.run_id, "commit.json", str(tmp_path))).is_file()
    Tracking(attempts=1).report(report(key="n" * 40))
    assert sorted(old.rglob("*")) == before, "nothing new where the home was"
    assert live_in(new).get_run(run.info.run_id).info.artifact_uri == run.info.artifact_uri
    prepare.cache_clear()
