"""A folder of your own lm-eval tasks (`include_path`): its YAML and Python files, pinned by content like data.

Only this folder is indexed, not lm-eval's own tasks. The pinned files are written out again where a task is opened, so
answers and scores always come from the bytes that the request names, also after somebody has edited the folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from alignment.data.files import pin_file
from alignment.data.readers import open_seekable
from alignment.errors import BadInput, first_few, no_such
from alignment.stages.stage import SourceFile
from eval.suites.lm_eval_tasks import index_folder, quiet, suite_of_entry
from eval.suites.suite import Suite

SUFFIXES = (".yaml", ".py")
"""What a task is made of: its YAML, and the Python files that `!function` names."""


def pin_tasks(folder: str) -> tuple[SourceFile, ...]:
    """The folder's task files, in the order of their names; raises `BadInput` for a folder without a YAML file."""
    place = Path(folder).expanduser()
    if not place.is_dir():
        is_file = "is a file, not a folder of tasks"
        raise BadInput(is_file if place.exists() else no_such("folder", folder), file=folder)
    files = sorted(
        path
        for path in place.rglob("*")
        if path.suffix in SUFFIXES and path.is_file() and not _is_hidden(path.relative_to(place))
    )
    if not any(path.suffix == ".yaml" for path in files):
        raise BadInput("holds no .yaml file, so no task of lm-eval", file=folder)
    return tuple(pin_file(str(path)) for path in files)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


@cache
def own_suite(name: str, files: tuple[SourceFile, ...]) -> Suite:
    """The suite of a task, tag or group in pinned task files.

    Raises `BadInput` for files that changed since they were pinned, for a name that none of them defines, and for a
    task whose scores cannot be compared item by item.
    """
    folder = _folder(files)
    _refuse_numbers_for_names(folder, _common(files))
    index = index_folder(folder)
    if name not in index:
        raise BadInput(_unknown(name, folder, index), file=_common(files), field=f"evals.lm_eval.{name}.include_path")
    try:
        with quiet():
            return suite_of_entry(name, index)
    except BadInput as error:
        problem = error.message.replace("lm-eval's ", "", 1)
        remedy = "; a metric of your own says `aggregation: mean` and `higher_is_better: true`"
        raise BadInput(
            problem + (remedy if "no metric that is a mean" in problem else ""), file=_common(files)
        ) from error


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
"""Kept for the life of the process, because opened tasks import their Python files late."""


@cache
def _folder(files: tuple[SourceFile, ...]) -> Path:
    """A folder with the pinned bytes, under their names below the files' common folder."""
    kept = tempfile.TemporaryDirectory(prefix="align-own-tasks-")
    _FOLDERS.append(kept)
    for file, name in zip(files, _names(files), strict=True):
        path = Path(kept.name) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_seekable(file.url, file.sha256) as stream:
            path.write_bytes(stream.read())
    return Path(kept.name)


def _common(files: Sequence[SourceFile]) -> str:
    return os.path.commonpath([str(Path(file.url).parent) for file in files])


def _names(files: Sequence[SourceFile]) -> list[str]:
    return [os.path.relpath(file.url, _common(files)) for file in files]


def _refuse_numbers_for_names(folder: Path, shown: str) -> None:
    """lm-eval sorts the names of tasks, and fails on one that YAML reads as a number."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in sorted(folder.rglob("*.yaml")):
        about: Any = None
        with suppress(Exception), quiet():  # a file that cannot be read is named where a task is missing
            about = load_yaml(path, resolve_func=False)
        for key in ("task", "group"):
            if isinstance(about, dict) and isinstance(about.get(key), int | float):
                problem = f"the name of a {key} is a text: put {about[key]} in quotes"
                raise BadInput(problem, file=f"{shown}/{path.relative_to(folder)}", field=key)


def _unknown(name: str, folder: Path, index: dict[str, Any]) -> str:
    """Why no task has this name; lm-eval itself passes over a YAML file that it cannot read without a word."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in sorted(folder.rglob("*.yaml")):
        try:
            with quiet():
                load_yaml(path, resolve_func=False)
        except Exception as error:  # of another library: any error is the file's
            first = (str(error) or type(error).__name__).splitlines()[0].replace(f"{folder}/", "")
            return f"no task '{name}'; {path.relative_to(folder)} cannot be read: {first}"
    return f"no task '{name}' in this folder; it has {first_few(sorted(index)) or 'none'}"
