"""Any of lm-eval's tasks or groups of tasks as a suite, by its name.

lm-eval's own index of all tasks takes ten seconds to build. The name of a task nearly always begins with the name of
its folder, so only that folder is indexed; if the task is not in it, folders whose files contain the name are indexed.
"""

from __future__ import annotations

import ast
import importlib.util
import logging
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from alignment.errors import BadInput, causes, first_few
from eval.suites.suite import Item, StockTask, Suite

# lm-eval is called without its messages and downloads, and with fixed seeds.


@contextmanager
def seeded() -> Iterator[None]:
    """Fixes the seeds meanwhile: IFEval draws a random letter for an item, and detects languages by sampling."""
    from langdetect import DetectorFactory

    state, seed = random.getstate(), DetectorFactory.seed
    random.seed(0)
    DetectorFactory.seed = 0
    try:
        yield
    finally:
        random.setstate(state)
        DetectorFactory.seed = seed


@contextmanager
def quiet() -> Iterator[None]:
    """Meanwhile no progress bars, messages or downloads; IFEval's module downloads sentence data when it is
    imported."""
    import datasets
    import nltk

    logger = logging.getLogger("lm_eval")
    level, download, bars = logger.level, nltk.download, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)  # IFEval logs an error, with the text, for every answer in an unknown language
    nltk.download = lambda *_, **__: False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        nltk.download = download
        if bars:
            datasets.enable_progress_bars()


def root_cause(error: BaseException) -> str:
    """The first cause of an error of another library, in one line."""
    cause = causes(error)[-1]
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"


OUTPUTS = ("generate_until", "multiple_choice", "loglikelihood")


@cache
def stock_suite(name: str) -> Suite:
    """The suite of a task or group of lm-eval.

    A tag is taken as a group if its tasks can be. Raises `BadInput` for an unknown name, for a task whose scores cannot
    be compared item by item, and for a task whose code needs a package that is not installed.
    """
    index = _index_of(name)
    return suite_of_entry(name, index, _tagged(name) if index[name].kind.name == "TAG" else None)


def suite_of_entry(name: str, index: dict[str, Any], tagged: list[Any] | None = None) -> Suite:
    """The suite of a task, tag or group of an index; `tagged` are all entries of a tag, which may be in other folders
    too."""
    if index[name].kind.name != "TAG":
        return _suite_of(name, _tasks_behind(name, index))
    entries = _tasks_behind(name, index) if tagged is None else tagged
    try:
        return _suite_of(name, entries)
    except BadInput as error:
        names = first_few(sorted(entry.name for entry in entries))
        why = error.message.removesuffix("; name them one by one")
        raise BadInput(
            f"lm-eval's {name} is a tag on {len(entries)} tasks, and {why}; name those you want: {names}"
        ) from error


def _suite_of(name: str, entries: list[Any]) -> Suite:
    members = [_task(entry) for entry in entries]
    metrics = [_metrics(entry.cfg) for entry in entries]
    counted = [metric for metric in metrics[0][0] if all(metric in names for names, _ in metrics)]
    if metrics[0][0] and not counted:
        raise BadInput(f"the tasks of lm-eval's group {name} have no metric in common; name them one by one")
    if not counted:
        others = ", ".join(metrics[0][1]) or "none"
        raise BadInput(f"lm-eval's {name} has no metric that is a mean over items where more is better ({others})")
    if len({task.output for task in members}) > 1:
        raise BadInput(f"lm-eval's {name} mixes texts and log-likelihoods; name its tasks one by one")
    _check_packages(name, entries)
    single = members[0] if len(members) == 1 else None
    return Suite(
        name=name,
        title=name,
        fields={},
        id_field=None,
        metrics=tuple(counted),
        task=single,
        turns=1 if members[0].output == "generate_until" else 0,
        members={} if single else _by_subset(name, members),
        left_out=tuple(metrics[0][1]),
    )


def slug(text: str) -> str:
    """A subset's name as lm-eval and the hub write it: "Counting & Probability" is counting_and_probability."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower().replace("&", " and ")).strip("_")


def _tasks_folder() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "tasks"


def _index_of(name: str) -> dict[str, Any]:
    """lm-eval's index of the folder that has a task or group of this name."""
    for folder in _folders(_tasks_folder(), name):
        index = index_folder(folder)
        if name in index:
            return index
    raise BadInput(f"no suite '{name}': lm-eval has no task or group of this name")


@cache
def index_folder(folder: Path) -> dict[str, Any]:
    """lm-eval's index of the tasks, tags and groups in one folder, by name."""
    with quiet():
        from lm_eval.tasks import TaskManager

        return dict(TaskManager(include_path=str(folder), include_defaults=False).task_index)


def _folders(root: Path, name: str) -> Iterator[Path]:
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    near = [path for path in folders if name.startswith(path.name)]
    yield from sorted(near, key=lambda path: -len(path.name))
    for path in folders:
        if path not in near and any(name in file.read_text(encoding="utf-8") for file in path.rglob("*.yaml")):
            yield path


def _tagged(tag: str) -> list[Any]:
    """lm-eval's entries of all tasks with a tag; they may be in several folders."""
    found: dict[str, Any] = {}
    for folder in _folders(_tasks_folder(), tag):
        index = index_folder(folder)
        entry = index.get(tag)
        if entry is not None and entry.kind.name == "TAG":
            found |= {task.name: task for task in _tasks_behind(tag, index)}
    return list(found.values())


FUNCTION = re.compile(r"!function\s+([A-Za-z_]\w*)\.\w+")
INCLUDE = re.compile(r"^include:\s*[\"']?([^\s\"']+)", re.MULTILINE)


def _check_packages(name: str, entries: Sequence[Any]) -> None:
    """Raises `BadInput` if a task's code needs a package that is not installed.

    lm-eval imports the code when it opens a task, after a model was trained. Only a module that names a package which
    is not there is imported here, because it may do without the package.
    """
    for module in sorted({path for entry in entries for path in _modules(Path(entry.yaml_path))}):
        lacking = [package for package in _imported(module) if importlib.util.find_spec(package) is None]
        if not lacking:
            continue
        spec = importlib.util.spec_from_file_location(f"lm_eval_task_{module.parent.name}", module)
        assert spec is not None and spec.loader is not None
        try:
            with quiet():
                spec.loader.exec_module(importlib.util.module_from_spec(spec))
        except ImportError as error:
            needed = ", ".join(sorted(lacking))
            problem = f"lm-eval's {name} needs the package {needed}, which is not installed here"
            raise BadInput(f"{problem}: install it in this environment, or take another task") from error


def _modules(file: Path) -> set[Path]:
    """The Python files whose functions a task's YAML names, its included files' too."""
    text = file.read_text(encoding="utf-8")
    found = {path for name in FUNCTION.findall(text) if (path := file.parent / f"{name}.py").is_file()}
    for other in INCLUDE.findall(text):
        if (included := file.parent / other).is_file():
            found |= _modules(included)
    return found


@cache
def _imported(module: Path) -> frozenset[str]:
    """The packages that a Python file names in its imports, wherever they stand."""
    names: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another's code, such as escapes that Python no longer likes
        tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return frozenset(names)


def _tasks_behind(name: str, index: dict[str, Any]) -> list[Any]:
    """lm-eval's entries of all tasks of a task, tag or group, each once."""
    entry = index.get(name) or _index_of(name)[name]
    kind = entry.kind.name
    if kind == "TAG":
        children: list[Any] = sorted(entry.tags)
    elif kind == "GROUP":
        children = entry.cfg["task"] if isinstance(entry.cfg["task"], list) else [entry.cfg["task"]]
    elif kind == "TASK":
        return [entry]
    else:
        raise BadInput(f"lm-eval's {name} is a program of its own, which cannot be given other data")
    for child in children:
        if not isinstance(child, str):
            raise BadInput(f"lm-eval's group {name} changes the tasks in it; name them one by one")
    return list({task.name: task for child in children for task in _tasks_behind(child, index)}.values())


def _task(entry: Any) -> StockTask:
    cfg, name = entry.cfg, entry.name
    if cfg.get("output_type", "generate_until") not in OUTPUTS:
        raise BadInput(f"lm-eval's {name} measures {cfg['output_type']}, which is not compared item by item")
    for key, problem in (
        ("unsafe_code", "runs the code that a model writes"),
        ("doc_to_image", "shows images"),
        ("doc_to_audio", "plays sounds"),
    ):
        if cfg.get(key):
            raise BadInput(f"lm-eval's {name} {problem}, which is not supported")
    if int(cfg.get("repeats") or 1) > 1:
        raise BadInput(f"lm-eval's {name} asks each item {cfg['repeats']} times, which is not supported")
    split = cfg.get("test_split") or cfg.get("validation_split")
    if split is None:
        raise BadInput(f"lm-eval's {name} has no split to test on")
    few_shot = cfg.get("fewshot_config") or {}
    examples = (few_shot.get("split"), cfg.get("fewshot_split"), cfg.get("training_split"), cfg.get("validation_split"))
    place = Path(entry.yaml_path)
    return StockTask(
        name=name,
        yaml=str(place.relative_to(_tasks_folder()) if place.is_relative_to(_tasks_folder()) else place),
        split=split,
        few_shot_split=next((name_of_split for name_of_split in examples if name_of_split), split),
        output=cfg.get("output_type", "generate_until"),
        num_fewshot=int(cfg.get("num_fewshot") or 0),
        own_examples="samples" in few_shot and not few_shot.get("split"),
        subset=cfg.get("dataset_name"),
        processed="process_docs" in cfg,
    )


def _metrics(cfg: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the metrics that are means over items where more is better, and of all other metrics, as in scores."""
    from lm_eval.api.metrics import mean
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, get_metric_aggregation, is_higher_better

    output = cfg.get("output_type", "generate_until")
    listed = cfg.get("metric_list") or [{"metric": name} for name in DEFAULT_METRIC_REGISTRY[output]]
    filters = [entry["name"] for entry in cfg.get("filter_list") or [{"name": "none"}]]
    counted: list[str] = []
    left_out: list[str] = []
    for entry in listed:
        name = Path(str(entry["metric"])).suffix.lstrip(".") or str(
            entry["metric"]
        )  # a function's path ends in its name
        is_mean = entry["aggregation"] == "mean" if "aggregation" in entry else get_metric_aggregation(name) is mean
        more = entry["higher_is_better"] if "higher_is_better" in entry else is_higher_better(name)
        names = [name if kind == "none" else f"{name},{kind}" for kind in filters]
        (counted if is_mean and more else left_out).extend(names)
    return counted, left_out


def _by_subset(name: str, members: list[StockTask]) -> dict[str, StockTask]:
    by_subset = {slug(task.subset or task.name.removeprefix(f"{name}_")): task for task in members}
    if len(by_subset) < len(members):
        raise BadInput(f"the tasks of lm-eval's group {name} are on the same items; name them one by one")
    return by_subset


# The task of a group that an item belongs to, such as a subject of MMLU or a type of problem of MATH.

SUBSET = "subset"
COLUMNS = (SUBSET, "subject", "type", "config", "category", "task")
"""Columns that may name an item's subset; the first column that names a subset for all items is used."""


def tasks_of(suite: Suite, items: Sequence[Item]) -> list[tuple[StockTask, list[int]]]:
    """The suite's tasks that have items, each with their positions.

    Raises `BadInput` if the items of a group do not name the task that they belong to.
    """
    if suite.task is not None:
        return [(suite.task, list(range(len(items))))]
    names = subsets(suite, [item.fields for item in items])
    return [
        (task, positions)
        for subset, task in suite.members.items()
        if (positions := [position for position, name in enumerate(names) if name == subset])
    ]


def subsets(suite: Suite, records: Sequence[dict[str, Any]]) -> list[str]:
    """The subset that each record names, as the group spells it; raises `BadInput`."""
    named: dict[str, int] = {}
    for column in COLUMNS:
        names = [slug(str(record.get(column))) for record in records]
        wrong = next((row for row, name in enumerate(names) if name not in suite.members), None)
        if wrong is None:
            return names
        if wrong:
            named[column] = wrong
    if named:
        column, row = max(named.items(), key=lambda item: item[1])
        raise BadInput(f"{records[row].get(column)!r} is not a subset of {suite.name}", row=row + 1, field=column)
    known = ", ".join(list(suite.members)[:3])
    raise BadInput(f"{suite.name} is a group of tasks: each item names its own ({known}, …) as {', '.join(COLUMNS)}")
