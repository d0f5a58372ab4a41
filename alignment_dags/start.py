"""`align init`: a first recipe from a model and a file of preferences, written for a person to go on with."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from alignment.errors import BadInput, be, counted, did_you_mean, did_you_mean_beside, first_few
from alignment.methods import METHOD, METHODS
from alignment.recipe import ModelSource, Reading
from alignment.recipe.data import Column
from alignment_dags.check import CHAT, lacks_template, local_config, sft_form
from alignment_dags.recipes import recipe_names
from resources.home import PROJECT

FIRST_CHOICE = {"paired": "dpo", "unpaired": "kto"}
"""The method that is proposed for a kind of rows, where `METHODS` has it; else the first that takes them."""
LARGE = 1_000_000_000
"""Parameters from which a LoRA adapter is proposed, as full training takes 16 bytes a parameter."""
SMALL = 100_000_000
"""Parameters up to which float32 is proposed; a larger model is trained in bfloat16."""
FEW_ROWS = 2_000
"""With fewer rows than this more of them are held out, so that there is something to measure."""
MEASURED = 60
"""Rows that are to be held out of few, at most `MOST_HELD_OUT` of them: fewer show no difference that is not huge."""
MOST_HELD_OUT = 0.3


def start(
    model: str, data: list[str], name: str | None, out: Path | None, sft: str | None, columns: Sequence[str] = ()
) -> dict[str, Any]:
    """Writes a recipe and returns `file`, `name`, `method`, `rows`, `kind`, what the data had `quarantined`, the
    command that `checks` it, and a `note` on it or None.

    `model` is a checkpoint's folder, a GGUF file or an id on the hub; without `sft`, conversations to fine-tune on
    first, it is taken as the SFT checkpoint. `columns` are `NAME=COLUMN`, for data in none of the known forms. Raises
    `BadInput` for data that no method takes, a name that another recipe has, and a file that is there already.
    """
    from alignment.data.check import check_files, joined_note

    mapped = columns_of(columns)
    model_source(model)  # a model that is not there is said before anything of the data
    checked = check_files(data, Reading(columns=mapped))
    checks = f"align prefs check {shlex.join(data)}"
    if not checked["accepted"]:
        told = "; ".join(dict.fromkeys(checked["advice"].values()))
        written = ", here with --column NAME=COLUMN for each" if "preferences.columns" in told else ""
        why = f"{told}{written}" if told else f"`{checks}` says why"
        raise BadInput(f"no valid row; {why}", file=", ".join(data))
    kind = str(checked["kind"])
    able = [name for name, loss in METHOD.names.items() if loss in METHODS and METHODS[loss].data == kind]
    if not able:
        raise BadInput(f"holds {kind} rows, and no method of this version takes them", file=", ".join(data))
    method = FIRST_CHOICE[kind] if FIRST_CHOICE[kind] in able else able[0]
    name = name or re.sub(r"\W+", "_", Path(data[0]).stem.lower(), flags=re.ASCII).strip("_0123456789") or "mine"
    path = out or Path(f"{name}.yaml")
    if path.exists():
        raise BadInput("is there already, and is not overwritten; give another --out or --name", file=str(path))
    if (known := recipe_names().get(name)) is not None:
        raise BadInput(f"'{name}' is the name of {known}; give another", field="--name")
    forms = {"text"} if checked["texts"] else set()
    forms |= {CHAT} if checked["texts"] < checked["accepted"] or (sft and sft_form([sft]) == CHAT) else set()
    text = recipe_text(name, model, data, sft, method, checked["accepted"], forms, mapped)
    _write(path, schema_line(path) + text)
    if mapped:
        checks = f"align prefs check {shlex.quote(str(path))}"
    return {
        "file": str(path),
        "name": name,
        "method": method,
        "kind": kind,
        "rows": checked["accepted"],
        "quarantined": checked["quarantined"],
        "checks": checks,
        "note": None if "\n  plain_text: chat" in text else joined_note(checked),
    }


def columns_of(given: Sequence[str]) -> dict[Column, str]:
    """`NAME=COLUMN` each as `preferences.columns` has it; raises `BadInput` for a name that is none of its keys."""
    known = get_args(Column)
    found: dict[Column, str] = {}
    for one in given:
        name, equals, column = one.partition("=")
        if not equals or not column or name not in known:
            told = did_you_mean(name, known) or f"; names are {', '.join(known)}"
            raise BadInput(f"'{one}': expected NAME=COLUMN, such as prompt=question{told}", field="--column")
        found[cast(Column, name)] = column
    return found


def schema_line(recipe: Path) -> str:
    """The comment by which editors find the recipe's schema, for a recipe within the project; empty elsewhere, as a
    path of this machine means nothing where the recipe goes next."""
    schema = PROJECT / "recipes" / "recipe.schema.json"
    folder = recipe.expanduser().resolve().parent
    if not folder.is_relative_to(PROJECT.resolve()) or not schema.is_file():
        return ""
    named = Path(os.path.relpath(schema.resolve(), folder)).as_posix()
    return f"# yaml-language-server: $schema={named}\n"


def _write(path: Path, text: str) -> None:
    """Writes the recipe, if it is a valid one; nothing stays of one that is not."""
    import yaml

    from alignment.recipe import parse_recipe

    parse_recipe(yaml.safe_load(text), str(path), os.environ)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise BadInput(f"cannot be written: {error.strerror}", file=str(path)) from error


def recipe_text(
    name: str,
    model: str,
    data: list[str],
    sft: str | None,
    method: str,
    rows: int,
    forms: set[str],
    columns: Mapping[Column, str],
) -> str:
    """The recipe as YAML with comments; `forms` are those of its rows, text and chat.

    Raises `BadInput` for a folder that holds no model.
    """
    import json

    source = model_source(model)
    parameters, positions = _size(source)
    longest = min(positions or 2048, 2048)
    templated = CHAT in forms and lacks_template(source)
    small = parameters is not None and parameters <= SMALL
    precision = "float32" if small else "bfloat16"
    batch = max(1, min(32, rows // 8))
    start_at = f"dataset: {{files: [{json.dumps(sft)}]}}" if sft else f"adopt:{_model(source, templated and 4)}"
    about = "" if parameters is None else f" # {parameters:,} parameters"
    lora = (
        "" if parameters is None or parameters < LARGE else "  lora: {rank: 16, alpha: 32} # trains a small adapter\n"
    )
    chat = _plain_text(source, templated) if "text" in forms else ""
    mapped = f"\n  columns: {json.dumps(columns)}" if columns else ""
    lines = f"""\
# Made by `align init`. `align recipes reference` explains every key.
name: {name}

base_model:{about if templated else ""}{_model(source, templated and 2)}{"" if templated else about}
sft:{"" if sft else " # the model is the start and the reference as it is"}
  {start_at}
{f"  max_length: {longest} # a longer conversation is dropped and counted" if sft else ""}
{f"  precision: {precision}" if sft else ""}

preferences:
  files: {json.dumps(data)} # {counted(rows, "valid row")}{mapped}
held_out_fraction: {held_out(rows):g} # of the prompts; measured, never trained on

tokens:
  max_length: {longest} # a longer row is dropped and counted
{chat}
reference:
  precision: {precision}

optimise: # learning_rate and beta have the method's usual values
  method: {method}
  batch_size: {batch}
  precision: {precision}
{lora}
# What is measured beside the held-out rows. Add suites, and a gate that decides what is registered:
#   evals: {{ifeval: {{hub: google/IFEval, split: train, limit: 100}}}} # or {{ifeval: {{data: FILE}}}}
#   gate: default
evals:
  precision: {precision}
gate: none
"""
    return re.sub(r"\n\n\n+", "\n\n", lines)


def held_out(rows: int) -> float:
    """The share of prompts that is proposed to be held out."""
    return 0.02 if rows >= FEW_ROWS else round(max(0.1, min(MOST_HELD_OUT, MEASURED / rows)), 2)


def _model(source: ModelSource, indent: int) -> str:
    """The model behind its key: in one line, or indented with a chat template below it. JSON is YAML, with every quote
    in place."""
    import json

    from alignment.data.templates import PLAIN_TEMPLATE

    if not indent:
        return f" {json.dumps(source.model_dump(exclude_unset=True))}"
    lines = (
        f"path: {json.dumps(source.path)}",
        "# the rows are conversations and the model has no chat template: this one is in plain words",
        f"chat_template: {json.dumps(PLAIN_TEMPLATE)}",
    )
    return "".join(f"\n{' ' * indent}{line}" for line in lines)


def _plain_text(source: ModelSource, templated: bool) -> str:
    """How rows of plain strings are written for the model: in its chat template, if it has one."""
    from alignment.models.checkpoint import has_chat_template
    from alignment.models.gguf import is_gguf

    why = "the rows are plain texts, and the model has a chat template"
    if templated:
        return f"  plain_text: chat # {why}\n"
    if source.hub is not None or is_gguf(str(source.path)):
        return "  # plain_text: chat # for a model with a chat template: the rows are plain texts\n"
    if source.path is None or has_chat_template(Path(source.path).expanduser()):
        return f"  plain_text: chat # {why}\n"
    return ""


def model_source(model: str) -> ModelSource:
    """What a recipe says of a model that was named by a folder, a GGUF file or an id on the hub."""
    from alignment.models.gguf import check_gguf, is_gguf

    folder = Path(model).expanduser()
    if folder.is_dir():
        return ModelSource(path=model)
    if is_gguf(model):
        check_gguf(folder)
        return ModelSource(path=model)
    if model == "micro":
        return ModelSource(embedded="micro")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not folder.parent.is_dir():
        return ModelSource(hub=model)
    told = "no such folder, and no id on the hub (OWNER/NAME)"
    raise BadInput(told + did_you_mean_beside(model), file=model)


def _size(source: ModelSource) -> tuple[int | None, int | None]:
    """Parameters and positions of a model whose files are here; None for what they do not say."""
    from alignment.models.checkpoint import positions_of
    from alignment.models.size import parameter_counts

    if (known := local_config(source)) is None:
        return None, None
    return parameter_counts(known[0])[0], positions_of(known[0])


def show_start(result: dict[str, Any]) -> None:
    """Prints what was written, what the plan says of it, and what to do next."""
    dropped = (
        f", {result['quarantined']} {be(result['quarantined'])} not; why: `{result['checks']}`"
        if result["quarantined"]
        else ""
    )
    print(f"{result['file']}: recipe {result['name']}, method: {result['method']}")
    print(f"{result['rows']:,} {result['kind']} {'row is' if result['rows'] == 1 else 'rows are'} valid{dropped}")
    if result["note"]:
        print(f"note: {result['note']}")
    if result["plan"]:
        print("memory a device: " + first_few(result["plan"], ", "))
    print(f"next: align run {shlex.quote(result['file'])}")
