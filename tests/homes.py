"""Homes that are made once and copied: an empty one with its tables, and ones in which recipes were brought up to date.

All workers of a test session share them. What differs between tests is made by the test itself.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from alignment.recipe import Recipe
    from assets.building.upstream import Upstream

ELSEWHERE = ("ALIGN_STORE", "MLFLOW_TRACKING_URI", "ALIGN_RECIPES", "ALIGN_POOLS")
"""Variables that name what belongs to a home, or to a test that set them."""
PHASES = ("base", "shards", "reference", "train")


@contextmanager
def living_at(home: Path) -> Iterator[None]:
    """Meanwhile the project's home is this folder."""
    before = dict(os.environ)
    for name in ELSEWHERE:
        os.environ.pop(name, None)
    os.environ.update(ALIGN_HOME=str(home / "align"), DAGSTER_HOME=str(home / "dagster"))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def copy_home(source: Path, home: Path) -> None:
    """Puts a copy of a home in the place of what lies there; the paths that its databases hold follow, and two names
    of one file stay two names of one file."""
    copies: dict[int, str] = {}

    def copy(old: str, new: str) -> None:
        first = copies.setdefault(Path(old).stat().st_ino, new)
        shutil.copy2(old, new) if first == new else os.link(first, new)

    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(source, home, symlinks=True, copy_function=copy)
    for database in home.rglob("*.db"):
        with sqlite3.connect(database) as connection:
            _replace(connection, str(source), str(home))
        connection.close()
    if mlflow := sys.modules.get("mlflow.tracking._tracking_service.utils"):
        # by id of a run or a model, where its files are: a copy's ids are its source's, whose files may not change
        mlflow._artifact_repos_cache.clear()


def _replace(connection: sqlite3.Connection, old: str, new: str) -> None:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        for _, column, kind, *_ in connection.execute(f"PRAGMA table_info('{table}')").fetchall():
            if kind.upper().startswith(("TEXT", "VARCHAR", "CLOB")):
                change = f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)'
                connection.execute(change, (old, new, old))


class Homes:
    """Homes by name, made under `folder` when one is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        """The folder of that name, which `make` fills once, whichever worker comes first."""
        folder, whole = self.folder / name, self.folder / f"{name}.whole"
        with FileLock(self.folder / f"{name}.lock"):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a making that failed
                folder.mkdir()
                make(folder)
                whole.touch()
        return folder

    def put_empty(self, home: Path) -> None:
        """Puts a home without any run into the folder: Dagster's tables and MLflow's, which take seconds to make."""

        def make(folder: Path) -> None:
            import dagster as dg

            from resources.home import ensure_home
            from resources.mlflow import Tracking

            with living_at(folder):
                ensure_home()
                Tracking().client()
                with dg.DagsterInstance.get() as instance:
                    instance.get_runs()

        copy_home(self.made("empty", make), home)

    def put_finished(self, home: Path, recipes: list[Recipe], failure: str | None = None) -> None:
        """Puts a home into the folder in which the recipes were brought up to date, one after the other.

        The last one must fail in the words of `failure`, a regular expression, if that is given.
        """
        from alignment.digest import json_digest

        def make(folder: Path) -> None:
            import dagster as dg

            *earlier, last = recipes
            if earlier:
                self.put_finished(folder, earlier)
            else:
                self.put_empty(folder)
            with living_at(folder), pytest.raises(dg.Failure, match=failure) if failure else nullcontext():
                BringUpToDate()(last)

        name = json_digest([failure, *([recipe.model_dump(mode="json"), recipe.written] for recipe in recipes)])
        copy_home(self.made(name[:16], make), home)


class BringUpToDate:
    """What `align run` does, with every step in this process: a function of a recipe that returns its artifacts.

    `only` names the phases to run. `launched` lists (phase, nodes) of every Dagster run so far.
    """

    def __init__(self) -> None:
        from resources.home import ensure_home

        ensure_home()
        self.launched: list[tuple[str, list[str]]] = []

    def __call__(self, recipe: Recipe, only: Container[str] = PHASES) -> Upstream:
        import dagster as dg

        from alignment_dags.run.launch import launches
        from alignment_dags.run.run import follow_source
        from alignment_dags.run.workers import apply_pools
        from alignment_dags.run.workspace import Workspace
        from assets.building.factory import asset_key, asset_resources, build_asset
        from resources.pools import load_pools

        workspace = Workspace(recipe, load_pools())
        assets = [build_asset(node, recipe, workspace.pools) for node in workspace.nodes]
        with dg.DagsterInstance.get() as instance:
            apply_pools(instance, workspace.pools)
            follow_source(instance, workspace)
            for phase in workspace.phases:
                if phase.name not in only:
                    continue
                for tags, chosen in launches(instance, workspace, phase):
                    self.launched.append((phase.name, chosen))
                    dg.materialize(
                        assets,
                        instance=instance,
                        resources=asset_resources(),
                        selection=[asset_key(recipe.name, name) for name in chosen],
                        tags=tags,
                        run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
                    )
        return workspace.upstream()
