"""`align doctor`: whether this machine and its services can do the work, a line each, with what to do where not."""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from alignment.address import shown
from alignment.errors import BadInput, first_few
from alignment.recipe import Recipe, load_recipe
from alignment_dags.check import check_places, lacks_key
from alignment_dags.recipes import RECIPES, have_run, recipe_names
from resources.home import PROJECT, align_home, dagster_home, ensure_home, mlflow_ui, tracking_uri
from resources.pools import load_pools, pools_file

PACKAGES = ("torch", "transformers", "trl", "dagster", "mlflow", "pyarrow")
ENOUGH = 2 * 2**30
"""Bytes that a home should have free: less than one small checkpoint with its resumable state."""
HEARTBEAT = 90.0
"""Seconds after which Dagster's daemon counts as gone."""
LAST = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `state` is ok, bad, or note (nothing to mend)."""

    what: str
    state: str
    told: str
    remedy: str = ""


def doctor(judges: bool) -> dict[str, Any]:
    """`findings` [{what, state, told, remedy}] and whether all is `ok`. `judges` asks the recipes' judges too."""
    findings = [finding for look in LOOKS for finding in _look(look)]
    findings += _look(lambda: _judges(judges))
    return {"ok": all(one.state != "bad" for one in findings), "findings": [asdict(one) for one in findings]}


def _look(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a look finds; an error of it is a finding too, so that one broken service hides no other."""
    try:
        yield from look()
    except Exception as error:  # whatever a service raises is what a person wants to read here
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = (look.__name__ or "").strip("_<>")
        yield Finding("a check" if what == "lambda" else what, "bad", shown(first), "see the message")


def _versions() -> Iterator[Finding]:
    told = f"Python {sys.version.split()[0]}, alignment-dags {version('alignment-dags')}"
    found = [f"{name} {version(name)}" for name in PACKAGES if _is_installed(name)]
    yield Finding("versions", "ok", ", ".join([told, *found]))
    wrong = list(_unmet())
    if wrong:
        yield Finding("packages", "bad", first_few(wrong), "run `make setup`")


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _unmet() -> Iterator[str]:
    """Requirements of this package that the environment does not meet."""
    from packaging.requirements import Requirement

    for text in requires("alignment-dags") or ():
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        if not _is_installed(needed.name):
            yield f"{needed.name} is not installed"
        elif not needed.specifier.contains(version(needed.name), prereleases=True):
            yield f"{needed.name} {version(needed.name)} is not {needed.specifier}"


def _homes() -> Iterator[Finding]:
    ensure_home()
    for what, folder in (("ALIGN_HOME", align_home()), ("DAGSTER_HOME", dagster_home())):
        yield Finding(what, "ok", str(folder))
        closed = [str(path) for path in (folder, *folder.iterdir()) if not os.access(path, os.R_OK | os.W_OK)]
        if closed:
            yield Finding("permissions", "bad", f"cannot be read or written: {first_few(closed)}", "chown or chmod it")
    usage = shutil.disk_usage(align_home())
    free = f"{usage.free / 2**30:.1f} GiB free of {usage.total / 2**30:.1f} at {align_home()}"
    if usage.free < ENOUGH:
        yield Finding("disk", "bad", free, "run `align gc --dry-run`, or move ALIGN_HOME")
    else:
        yield Finding("disk", "ok", free)


def _store() -> Iterator[Finding]:
    from resources.store import ArtifactStore

    store = ArtifactStore().open()
    path = store.path(f".doctor-{uuid.uuid4().hex[:8]}")
    store.replace(path, b"ok")
    store.fs.rm_file(path)
    yield Finding("store", "ok", f"{store.shown} can be read and written")


def _mlflow() -> Iterator[Finding]:
    from resources.mlflow import Tracking

    tracking = Tracking(attempts=1)
    with tracking.translated_errors():
        tracking.client().search_experiments(max_results=1)
    yield Finding("mlflow", "ok", f"{shown(tracking_uri())} answers; its pages: {mlflow_ui()}")


def _dagster() -> Iterator[Finding]:
    import dagster as dg

    from resources.databases import dagster_instance

    with dagster_instance() as instance:
        limits = {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}
        yield Finding("dagster", "ok", f"storage in {dagster_home()} answers")
        wanted = {name: pool.slots for name, pool in load_pools().pools.items()}
        if limits != wanted:
            yield Finding("pool limits", "note", f"Dagster's differ from {pools_file()}", "run `align pools apply`")
        yield from _daemon(instance)
        failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])
        for record in instance.get_run_records(failed, limit=LAST):
            told = f"{record.dagster_run.job_name}: {_reason(instance, record.dagster_run.run_id)}"
            at = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.create_timestamp.timestamp()))
            yield Finding("last error", "note", f"{at} run {record.dagster_run.run_id[:8]} of {told}")


def _daemon(instance: Any) -> Iterator[Finding]:
    beats = instance.get_daemon_heartbeats().values()
    age = min((time.time() - beat.timestamp for beat in beats), default=None)
    if age is not None and age < HEARTBEAT:
        yield Finding("daemon", "ok", "Dagster's daemon is running")
        return
    examples = _examples()
    scheduled = [name for name, recipe in _recipes_that_load() if recipe.schedule is not None and name not in examples]
    if scheduled:
        told = f"is not running, and {', '.join(scheduled)} has a schedule"
        yield Finding("daemon", "bad", told, "start `make ui`, or `dagster-daemon run`")
    else:
        yield Finding("daemon", "note", "is not running; schedules and sensors need it", "start `make ui`")


def _reason(instance: Any, run_id: str) -> str:
    """Why a run failed, in one line, as `align run` says it."""
    from alignment_dags.run.launch import raise_failure

    try:
        raise_failure(instance, run_id)
    except Exception as failure:
        return str(failure).splitlines()[0]


def _recipes_that_load() -> Iterator[tuple[str, Recipe]]:
    for name, path in recipe_names().items():
        try:
            yield name, load_recipe(path)
        except BadInput:
            continue


def _examples() -> set[str]:
    """Names of the shipped recipes that nobody here has run or asked for: what they lack breaks nothing. None where the
    store does not answer, which is a finding of its own."""
    from resources.store import ArtifactStore

    if os.environ.get(RECIPES):
        return set()
    shipped = {name for name, path in recipe_names().items() if path.parent == PROJECT / "recipes"}
    try:
        return shipped - have_run(ArtifactStore().open())
    except Exception:
        return set()


def _pools() -> Iterator[Finding]:
    yield Finding("pools", "ok", f"{pools_file()}: {', '.join(load_pools().pools)}")


def _recipes() -> Iterator[Finding]:
    names = recipe_names()
    bad, examples = 0, _examples()
    for name, path in names.items():
        try:
            check_places(load_recipe(path), load_pools(), str(path))
        except BadInput as error:
            bad += 1
            state = "note" if name in examples else "bad"
            yield Finding("recipe", state, str(error), f"`align recipes check {path}`")
    yield Finding("recipes", "ok", f"{len(names) - bad} of {len(names)} are well-formed, with their files in place")


def _judges(ask: bool) -> Iterator[Finding]:
    """Whether each judge's key is set and, where asked, whether its endpoint answers."""
    for name, recipe in _recipes_that_load():
        judge = recipe.judge
        if judge is None or judge.kind == "rubric":
            continue
        where = f"{name}: {judge.model} at {judge.base_url or 'OpenAI'}"
        if lacks_key(judge):
            yield Finding("judge", "bad" if ask else "note", f"{where}: {judge.api_key_env} is not set", "set it")
        elif ask:
            yield from _ask(judge, where)


def _ask(judge: Any, where: str) -> Iterator[Finding]:
    from alignment.generation.openai_client import OpenAIClient

    brief = judge.model_copy(update={"retries": 0, "timeout_seconds": 10.0})
    try:
        with OpenAIClient(brief, str(judge.model), who="the judge", field="judge") as client:
            served = client.served()
    except BadInput as error:
        yield Finding("judge", "bad", f"{where}: {error}", "start it, or mend the recipe's judge")
        return
    if judge.model in served:
        yield Finding("judge", "ok", f"{where} answers")
    else:
        yield Finding("judge", "bad", f"{where} serves {first_few(served)}", "mend judge.model")


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (_versions, _homes, _store, _mlflow, _dagster, _pools, _recipes)


def show_doctor(result: dict[str, Any]) -> None:
    """Prints a line for each finding, with the remedy where there is one."""
    from alignment_dags.cli.output import columns, painted

    rows = [
        (one["state"], one["what"], one["told"] + (f" → {one['remedy']}" if one["remedy"] else ""))
        for one in result["findings"]
    ]
    print(painted(columns(("", "what", "found"), rows)))
