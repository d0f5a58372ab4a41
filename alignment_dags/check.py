"""What a valid recipe names and this machine does not have: pools, data files, model folders. No store, no hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from alignment.data.dataset_info import Wanted
from alignment.errors import BadInput, first_few
from alignment.recipe import ModelSource, Recipe
from resources.pools import Pools

EVAL_FILES = ("data", "few_shot_data", "reference_answers", "baseline_answers", "judge_prompts", "include_path")


def check_places(recipe: Recipe, pools: Pools, file: str) -> None:
    """Raises `BadInput` that names the recipe's file and key for the first pool, data file or model that is not there.

    Remote files are not asked for.
    """
    for field, look in _places(recipe, pools):
        try:
            look()
        except BadInput as error:
            told = f"{error.file}: {error.message}" if error.file else error.message
            raise BadInput(told, file=file, field=field) from error


def _places(recipe: Recipe, pools: Pools) -> Iterator[tuple[str, Callable[[], Any]]]:
    for stage, pool in recipe.pools.model_dump().items():
        yield f"pools.{stage}", partial(pools.__getitem__, pool)
    adopted, dataset = (recipe.sft.adopt, recipe.sft.dataset) if recipe.sft else (None, None)
    yield from _model("base_model", recipe.base_model) if adopted is None else _model("sft.adopt", adopted)
    for pattern in (dataset and dataset.files) or ():
        yield "sft.dataset.files", partial(_data, pattern, "demonstrations")
    for pattern in recipe.preferences.file_patterns:
        yield "preferences.files", partial(_data, pattern, "preferences")
    for name, sampled in (("generate", recipe.generate), ("rounds", recipe.rounds), ("on_policy", recipe.on_policy)):
        for pattern in (sampled and sampled.prompts.files) or ():
            yield f"{name}.prompts.files", partial(_data, pattern, "preferences")
        for key in ("generator", "weak"):
            if isinstance(model := getattr(sampled, key, None), ModelSource):
                yield from _model(f"{name}.{key}", model)
    if recipe.reward_model is not None and recipe.reward_model.adopt is not None:
        yield from _model("reward_model.adopt", recipe.reward_model.adopt)


def _model(field: str, model: ModelSource) -> Iterator[tuple[str, Callable[[], Any]]]:
    from alignment.models.checkpoint import read_config
    from alignment.models.gguf import check_gguf, is_gguf

    if model.path is not None and is_gguf(model.path):
        yield f"{field}.path", partial(check_gguf, Path(model.path).expanduser())
    elif model.path is not None:
        yield f"{field}.path", partial(read_config, model.path)
    if model.chat_template is not None and model.chat_template.endswith(".jinja"):
        yield f"{field}.chat_template", partial(_file, model.chat_template)


def _data(pattern: str, wanted: Wanted) -> None:
    from alignment.data.files import expand
    from assets.preference_shard import is_local

    if is_local(pattern):
        expand(pattern, wanted)


def _file(path: str) -> None:
    if not Path(path).expanduser().is_file():
        raise BadInput("no such file", file=path)


def missing_eval_files(recipe: Recipe) -> list[str]:
    """A line that names the local files of the suites that are not there, if any; evaluation comes last, and may find
    them then."""
    suites = recipe.evals.selected()
    missing = [
        path
        for suite in suites.values()
        for key in EVAL_FILES
        if isinstance(path := getattr(suite, key, None), str) and "://" not in path
        if not Path(path).expanduser().exists()
    ]
    return [f"evals: not there yet: {first_few(missing)}"] if missing else []
