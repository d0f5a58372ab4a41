"""Fixtures that many tests share, and the one rule about real data."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.homes import BringUpToDate, Homes

if TYPE_CHECKING:
    from alignment.recipe import Recipe
    from alignment.store import Artifact, Store
    from assets.building.upstream import Upstream

DEFAULT_REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of several test processes would wait for each other, spinning
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def real_data_folder() -> Path:
    return Path(os.environ.get("ALIGN_TEST_DATA") or DEFAULT_REAL_DATA)


# how long an example takes is the machine's business; hypothesis itself takes this view where CI is set, and only there
settings.register_profile(
    "any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("any machine")

STORING = {"store", "logprobs", "retention", "source", "resources"}
"""Folders of tests whose files lie in a place with an odd name, which is a pattern or an escape to some library."""


@pytest.fixture
def tmp_path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """pytest's own folder of a test; for what stores files, one inside it whose name globs and URLs misread."""
    if request.node.path.parent.name not in STORING:
        return tmp_path
    (odd := tmp_path / "[2026-11] é #1").mkdir()
    return odd


for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
    ignored = signal.getsignal(number) is signal.SIG_IGN  # as by a shell for its background jobs
    if ignored and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)  # processes that tests start and stop would inherit it

NEEDING = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whole runs come first, as they take longest; without the real data its tests are deselected and counted."""
    items.sort(key=lambda item: "pipeline" not in item.path.parts)
    if real_data_folder().is_dir():
        return
    needing = [item for item in items if item.get_closest_marker("real_data")]
    config.hook.pytest_deselected(items=needing)
    items[:] = [item for item in items if item not in needing]
    config.stash[NEEDING] = len(needing)
    if hasattr(config, "workeroutput"):
        config.workeroutput["needing"] = len(needing)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker tells the process that writes the summary, which collects nothing itself."""
    node.config.stash[NEEDING] = getattr(node, "workeroutput", {}).get("needing", 0)


IMPORTED = pytest.StashKey[int]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What has been imported stays until the end, so the garbage collector need not walk through it.

    Trainings and scorings ask for several whole collections. Without this, each walks through all objects of torch
    and Transformers: 0.4 s, more than half of the time of a tiny training.
    """
    if len(sys.modules) > item.config.stash.get(IMPORTED, 0) + 100:
        item.config.stash[IMPORTED] = len(sys.modules)
        gc.collect()
        gc.freeze()


PROJECT = Path(__file__).resolve().parents[1]
LISTING = pytest.StashKey[set[str]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[LISTING] = {path.name for path in PROJECT.iterdir()}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What a test leaves in the project's folder would be committed one day."""
    left = {path.name for path in PROJECT.iterdir() if not path.name.startswith(".")} - session.config.stash[LISTING]
    if left and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\ntests left files in the project's folder: {', '.join(sorted(left))}")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if count := config.stash.get(NEEDING, 0):
        terminalreporter.write_line(f"{count} tests on real data deselected: {real_data_folder()} is no folder")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data, as `shared/data/README.md` lays it out."""
    return real_data_folder()


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for every test: no test sees the project's, or another's."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("ALIGN_STORE", "MLFLOW_TRACKING_URI", "ALIGN_RECIPES", "ALIGN_POOLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALIGN_HOME", str(folder / "align"))
    monkeypatch.setenv("DAGSTER_HOME", str(folder / "dagster"))
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A bucket of a server on loopback that speaks S3, for this process and those it starts."""
    import fsspec
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"endpoint_url": f"http://{host}:{port}", "key": "key", "secret": "secret"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(f"FSSPEC_S3_{name.upper()}", value)
        patch.setitem(fsspec.config.conf, "s3", settings)
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for an artifact store, of both kinds that there are."""
    if request.param == "local":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    from alignment.store import Store

    return Store(str(tmp_path / "store"), cache=tmp_path / "cache")


@pytest.fixture
def commit_checkpoint(store: Store) -> Callable[..., Artifact]:
    """Commits a folder (or an empty one) as a checkpoint whose digest is its name."""
    from alignment.stages import Context, Request, Result, Stage, execute

    class CheckpointRequest(Request):
        name: str
        folder: str

    def commit(name: str, folder: Path | None = None) -> Artifact:
        def run(request: CheckpointRequest, context: Context) -> Result:
            if request.folder:
                shutil.copytree(request.folder, context.out, dirs_exist_ok=True)
            return Result(digest=name)

        stage = Stage("checkpoint", 1, CheckpointRequest, run)
        return execute(stage, CheckpointRequest(name=name, folder=str(folder or "")), store).artifact

    return commit


@pytest.fixture
def code_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place of this test's own from which Transformers imports the code that models bring."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)  # another test's


@pytest.fixture(scope="session")
def micro_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained micro Llama with its tokenizer and chat template, context 256."""
    from alignment.quickstart.model import build_micro_model

    folder = tmp_path_factory.mktemp("micro") / "model"
    build_micro_model(folder, seed=3)
    return folder


@pytest.fixture
def score_alone() -> Callable[..., float]:
    """The plain definition: (model, prompt ids, completion ids) to the completion's log-prob, one sequence, full
    logits, float64 sum."""

    def score(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> float:
        import torch

        ids = torch.tensor([[*prompt, *completion]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].double()
        return float(logits.log_softmax(-1).gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum())

    return score


@pytest.fixture(scope="session")
def align_command() -> list[str]:
    """How a process starts `align`; arguments follow."""
    return [sys.executable, "-c", "from alignment_dags.cli import main; main()"]


@pytest.fixture
def align_process(home: Path, align_command: list[str]) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """`align` as a person runs it, in a process of its own: exit code, the JSON object on stdout, and stderr.

    For commands that start Dagster runs: their processes are forked from a server that keeps the first home it saw.
    """

    def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
        told = subprocess.run([*align_command, *arguments, "--json"], capture_output=True, text=True, check=False)
        return told.returncode, json.loads(told.stdout or "{}"), told.stderr

    return run


@pytest.fixture
def align(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """The same in this process, which saves the imports: for every command that starts no Dagster run."""

    def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
        from alignment_dags.cli import main

        before = dict(os.environ)
        with (
            redirect_stdout(io.StringIO()) as out,
            redirect_stderr(io.StringIO()) as error,
            monkeypatch.context() as patch,
        ):
            patch.setattr(sys, "argv", ["align", *arguments, "--json"])
            try:
                main()
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
            finally:  # variables that a command sets for its own process
                os.environ.clear()
                os.environ.update(before)
        return code, json.loads(out.getvalue() or "{}"), error.getvalue()

    return run


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what all workers of this session use and nobody changes."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"


@pytest.fixture(scope="session")
def homes(shared_folder: Path) -> Homes:
    """Homes to copy: homes.py."""
    return Homes(shared_folder)


@pytest.fixture
def tables(home: Path, homes: Homes) -> None:
    """The test's home has its tables: for tests whose subject is what comes after them."""
    homes.put_empty(home)


@pytest.fixture
def bring_up_to_date(tables: None) -> BringUpToDate:
    """What `align run` does, with every step in this process, in the test's home: homes.py."""
    return BringUpToDate()


@pytest.fixture
def finished(home: Path, homes: Homes) -> Callable[..., Upstream]:
    """Begins a test with runs that are over: (recipes, failure) to what the last recipe has; `Homes.put_finished`.

    The test's home is replaced, so this is called before anything else.
    """

    def begin(*recipes: Recipe, failure: str | None = None) -> Upstream:
        from assets.building.upstream import Upstream
        from resources.store import ArtifactStore

        homes.put_finished(home, list(recipes), failure)
        return Upstream(ArtifactStore().open(), recipes[-1].name)

    return begin
