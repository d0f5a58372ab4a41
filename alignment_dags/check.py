"""What a valid recipe names and this machine does not have: pools, data files, model folders, packages of suites, keys
and programs; and what the files that are here say against it: positions, and chat templates. No store, no hub."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.data.dataset_info import Wanted
from alignment.errors import BadInput, did_you_mean_beside, no_such
from alignment.recipe import Judge, ModelSource, PreferencePart, PreferenceSource, Recipe
from alignment.recipe.evaluation import section_of
from resources.compute import engines_of
from resources.pools import REMOTE, Pools

if TYPE_CHECKING:
    from alignment.data.readers import Record

EVAL_FILES = ("data", "few_shot_data", "reference_answers", "baseline_answers", "judge_prompts", "include_path")


def check_places(recipe: Recipe, pools: Pools, file: str) -> None:
    """Raises `BadInput` that names the recipe's file and key for the first pool, data file or model that is not there.

    Remote files are not asked for.
    """
    _look([*_places(recipe, pools), *_fits(recipe)], file)


def check_models(recipe: Recipe, file: str, config: Path | None = None) -> None:
    """Raises `BadInput` for a length that a model has no positions for, and for conversations without a chat template,
    as far as files here say it; `config` is a config.json in place of the model's own."""
    models = () if config is not None else _models(recipe)  # one that is missing is named by its own field
    _look([*models, *_fits(recipe, config)], file)


def _look(places: Iterable[tuple[str, Callable[[], Any]]], file: str) -> None:
    for field, look in places:
        try:
            look()
        except BadInput as error:
            told = f"{error.file}: {error.message}" if error.file else error.message
            raise BadInput(told, file=file, field=field) from error


def _places(recipe: Recipe, pools: Pools) -> Iterator[tuple[str, Callable[[], Any]]]:
    for stage, pool in recipe.pools.model_dump().items():
        yield f"pools.{stage}", partial(pools.__getitem__, pool)
    yield from _models(recipe)
    dataset = recipe.sft and recipe.sft.dataset
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


def _models(recipe: Recipe) -> Iterator[tuple[str, Callable[[], Any]]]:
    adopted = recipe.sft.adopt if recipe.sft else None
    yield from _model("base_model", recipe.base_model) if adopted is None else _model("sft.adopt", adopted)
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


# Suites, which are asked after a training ------------------------------------------------------------


def check_suites(recipe: Recipe, file: str) -> None:
    """Raises `BadInput` that names the recipe's file and key for the first suite that could not be asked or scored
    here: lm-eval has no such task, its scores cannot be compared item by item, or it needs a package that is not
    installed."""
    suites = recipe.evals.selected().items()
    _look(((section_of(name, suite), partial(_suite, recipe, name)) for name, suite in suites), file)


def _suite(recipe: Recipe, name: str) -> None:
    from eval.suites import suite_of
    from eval.suites.ifbench import IFBENCH, instructions

    if suite_of(recipe.evals, name) is IFBENCH:
        instructions()


def not_there_yet(recipe: Recipe, pools: Pools) -> list[str]:
    """A line for everything that a later step needs and this environment lacks, and may have by then: the suites' local
    files, the judge's key, the program that starts a server."""
    return [*missing_eval_files(recipe), *missing_here(recipe, pools)]


def missing_eval_files(recipe: Recipe) -> Iterator[str]:
    """A line for each local file of the suites that is not there."""
    for name, suite in recipe.evals.selected().items():
        for key in EVAL_FILES:
            path = getattr(suite, key, None)
            if isinstance(path, str) and "://" not in path and not Path(path).expanduser().exists():
                yield f"{section_of(name, suite)}.{key}: not there yet: {path}{did_you_mean_beside(path)}"


def missing_here(recipe: Recipe, pools: Pools) -> Iterator[str]:
    """A line for the judge's key, and one for each program that starts a server, that this environment lacks."""
    if recipe.judge is not None and lacks_key(recipe.judge):
        yield f"judge.api_key_env: {recipe.judge.api_key_env} is not set"
    if pools[recipe.pools.responses].launcher in REMOTE:
        return
    for field, engine in engines_of(recipe).items():
        if engine.command is not None and shutil.which(program := shlex.split(engine.command)[0]) is None:
            yield f"{field}.command: no program {program} here"


def lacks_key(judge: Judge) -> bool:
    """Whether a judge that asks for a key has none in this environment. One with its own address may need none."""
    return judge.kind != "rubric" and judge.base_url is None and not os.environ.get(judge.api_key_env)


# What the models' own files say ----------------------------------------------------------------------


def local_config(model: ModelSource) -> tuple[dict[str, Any], str] | None:
    """The configuration of a model whose files are here (a folder, a GGUF file, the embedded one), and where it was
    read; None for a model on the hub. Raises `BadInput` for files that hold none."""
    from alignment.models.checkpoint import read_config
    from alignment.models.gguf import gguf_config, is_gguf

    if model.hub is not None:
        return None
    if model.path is None:
        from alignment.quickstart.model import MAX_LENGTH, micro_config, micro_tokenizer

        return micro_config(micro_tokenizer(MAX_LENGTH)).to_dict(), "the embedded micro model"
    if is_gguf(model.path):
        return gguf_config(Path(model.path).expanduser()), f"the configuration in {model.path}"
    return read_config(model.path), f"config.json in {model.path}"


def lacks_template(model: ModelSource) -> bool:
    """Whether the tokenizer in a model's folder has no chat template, and the recipe gives it none. False where the
    files here do not say."""
    from alignment.models.checkpoint import has_chat_template
    from alignment.models.gguf import is_gguf

    if model.chat_template is not None or model.path is None or is_gguf(model.path):
        return False
    folder = Path(model.path).expanduser()
    known = (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file()
    return known and not has_chat_template(folder) and not any(folder.glob("*chat_template*"))


def _fits(recipe: Recipe, config: Path | None = None) -> Iterator[tuple[str, Callable[[], Any]]]:
    sft, reward_model, lengths = recipe.sft, recipe.reward_model, recipe.tokens.max_length
    start = (sft and sft.adopt) or recipe.base_model
    if sft is not None and sft.dataset is not None:
        yield "sft.max_length", partial(_length, sft.max_length, recipe.base_model, config)
        if lacks_template(recipe.base_model):
            yield "base_model.chat_template", partial(_conversations, sft_form(sft.dataset.files or ()))
    yield "tokens.max_length", partial(_length, lengths, start, config)
    if reward_model is not None and reward_model.adopt is not None:
        yield "tokens.max_length", partial(_length, lengths, reward_model.adopt, None, "the reward model's")
    if not lacks_template(start):
        return
    section = "base_model" if start is recipe.base_model else "sft.adopt"
    form = CHAT if recipe.tokens.plain_text == CHAT else preference_form(recipe.preferences)
    yield f"{section}.chat_template", partial(_conversations, form)
    for name, suite in recipe.evals.selected().items():
        if getattr(suite, "chat_template", None) is True:
            yield f"evals.{name}.chat_template", partial(_suite_template, section)


def _length(length: int, model: ModelSource, config: Path | None, whose: str = "the model's") -> None:
    from alignment.models.checkpoint import positions_of, read_config

    known = local_config(model) if config is None else (read_config(config), str(config))
    positions = None if known is None else positions_of(known[0])
    if positions is not None and length > positions:
        raise BadInput(f"{length} tokens are more than {whose} {positions} positions; {positions} is the most here")


CHAT = "chat"
"""The form of rows that are conversations, and the value of `tokens.plain_text` that makes conversations of texts."""
LOOK = 100
"""Records of a file among which the first valid row is looked for."""


def _conversations(form: str | None) -> None:
    from alignment.data.templates import GIVE_ONE

    if form == CHAT:
        raise BadInput(f"rows are conversations and the tokenizer has no chat template: {GIVE_ONE}")


def _suite_template(section: str) -> None:
    from alignment.data.templates import GIVE_ONE

    raise BadInput(f"the tokenizer has no chat template: leave this out, or under {section} {GIVE_ONE}")


def preference_form(source: PreferenceSource) -> str | None:
    """`chat` if a local file of preferences begins with a conversation, else `text`; None without such a file."""
    from alignment.data.dataset_info import reading_of
    from alignment.data.validate import Validation

    def first(url: str, records: Iterator[Record], part: PreferencePart) -> str | None:
        validation = Validation(reading=reading_of(url, part.reading()))
        return next((row.form for row in validation.accepted(records, url)), None)

    return _form(
        (url, partial(first, part=part)) for part in source.parts for url in _files(part.files or (), "preferences")
    )


def sft_form(files: Iterable[str]) -> str | None:
    """The same of demonstrations."""
    from alignment.data.demonstrations import normalise

    def first(url: str, records: Iterator[Record]) -> str | None:
        read = (normalise(record.value, url, record.source_row) for record in records if not record.problem)
        return next((row.form for row in read if not isinstance(row, str)), None)

    return _form((url, first) for url in _files(files, "demonstrations"))


def _form(files: Iterable[tuple[str, Callable[[str, Iterator[Record]], str | None]]]) -> str | None:
    from alignment.data.readers import read_records

    found = None
    for url, first in files:
        with suppress(BadInput):  # what makes something of the file says what is wrong with it
            form = first(url, islice(read_records(url), LOOK))
            if form == CHAT:
                return form
            found = form or found
    return found


def _files(patterns: Iterable[str], wanted: Wanted) -> Iterator[str]:
    from alignment.data.files import expand
    from assets.preference_shard import is_local

    for pattern in filter(is_local, patterns):
        with suppress(BadInput):
            yield from expand(pattern, wanted)


# Files ----------------------------------------------------------------------------------------------


def _data(pattern: str, wanted: Wanted) -> None:
    from alignment.data.files import expand
    from assets.preference_shard import is_local

    if is_local(pattern):
        expand(pattern, wanted)


def _file(path: str) -> None:
    if not Path(path).expanduser().is_file():
        raise BadInput(no_such("file", path), file=path)
