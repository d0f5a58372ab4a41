"""The Postgres-backed home, on a real server: runs, events and pools are there, and nowhere else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.launcher.base import LaunchRunContext

from alignment_dags.run.workers import apply_pools
from resources.home import PROJECT, ensure_home
from resources.pools import load_pools

WORKER_JOB = Path(__file__).parents[1] / "alignment_dags" / "worker_job.py"
FOLDER = "WORKER_TEST_FOLDER"
SHIPPED = PROJECT / "deploy" / "dagster-postgres.yaml"


@dg.asset(pool="local")
def answer() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"dagster/row_count": 42}, data_version=dg.DataVersion("v1"))


@pytest.fixture
def instance(postgres: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    for name, value in postgres.items():
        monkeypatch.setenv(name, value)
    folder = home / "dagster"
    folder.mkdir(parents=True)
    shutil.copy(SHIPPED, folder / "dagster.yaml")
    ensure_home()
    return dg.DagsterInstance.get()


def rows(postgres: dict[str, str], query: str) -> list[tuple[object, ...]]:
    import psycopg2

    names = {"host": "HOST", "port": "PORT", "dbname": "DB", "user": "USERNAME", "password": "PASSWORD"}
    connection = psycopg2.connect(**{name: postgres[f"DAGSTER_PG_{last}"] for name, last in names.items()})
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())
    finally:
        connection.close()


def test_the_settings_are_those_of_the_top_level_with_another_storage() -> None:
    ours = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    storage = ours.pop("storage")
    assert ours == yaml.safe_load((PROJECT / "dagster.yaml").read_text(encoding="utf-8"))
    place = storage["postgres"]["postgres_db"]
    assert all(set(place[name]) == {"env"} for name in ("hostname", "port", "db_name", "username", "password"))


def test_runs_events_and_pools_are_in_postgres(
    postgres: dict[str, str], instance: dg.DagsterInstance, home: Path
) -> None:
    with instance:
        limits = apply_pools(instance, load_pools())
        done = dg.materialize([answer], instance=instance)
        assert done.success
        event = instance.get_latest_materialization_event(answer.key)
        assert event is not None
        assert event.asset_materialization is not None
        assert event.asset_materialization.metadata["dagster/row_count"].value == 42
        claimed = [instance.event_log_storage.claim_concurrency_slot("local", "run", step) for step in ("a", "b")]
        assert [claim.is_claimed for claim in claimed] == [True, False]
        instance.event_log_storage.free_concurrency_slots_for_run("run")
    assert dict(rows(postgres, 'SELECT concurrency_key, "limit" FROM concurrency_limits')) == limits
    of_run = f"WHERE run_id = '{done.run_id}'"
    assert rows(postgres, f"SELECT status FROM runs {of_run}") == [("SUCCESS",)]
    kinds = {kind for (kind,) in rows(postgres, f"SELECT dagster_event_type FROM event_logs {of_run}")}
    assert {"ASSET_MATERIALIZATION", "STEP_SUCCESS", "PIPELINE_SUCCESS"} <= kinds
    assert not list((home / "dagster").rglob("*.db"))


def test_a_run_worker_finds_postgres_by_its_environment(
    postgres: dict[str, str], instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    (tmp_path / "go").touch()
    with instance:
        job = ReconstructableJob.for_file(str(WORKER_JOB), "waiting")
        origin = job.get_python_origin()
        run = instance.create_run_for_job(
            job.get_definition(), job_code_origin=origin, status=dg.DagsterRunStatus.STARTING
        )
        command_line = str(instance.get_ref())
        instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
        instance.run_launcher.join(timeout=600)
        done = instance.get_run_by_id(run.run_id)
        assert done is not None
        assert done.status == dg.DagsterRunStatus.SUCCESS, instance.run_launcher.get_run_worker_debug_info(run)
    assert os.environ["DAGSTER_PG_PASSWORD"] not in command_line
