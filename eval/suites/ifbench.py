"""IFBench (Pyatkin et al. 2025): 58 instructions that models were not trained on, each with a checker of its own.

The checkers are the authors', as the package `if-verifiable` ships them. It is not among our dependencies; without it
the suite is refused before anything is asked. An item counts if all its instructions are followed. `loose` (the
authors' headline) also accepts the answer without its first line, its last line, or its asterisks.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module, metadata
from typing import Any

from alignment.errors import BadInput
from eval.suites.lm_eval_tasks import quiet, seeded
from eval.suites.suite import Item, Suite

PACKAGE = "if-verifiable"
REGISTRY = "if_verifiable.ifbench.instructions_registry"
RESOURCE = re.compile(r"nltk\.download\('(\w+)'\)")
STRICT, LOOSE = "prompt_level_strict_acc", "prompt_level_loose_acc"


@cache
def instructions() -> dict[str, Any]:
    """The checkers by instruction id; raises `BadInput` if the package, or one that it needs, is not installed."""
    try:
        with quiet():
            return dict(import_module(REGISTRY).INSTRUCTION_DICT)
    except ImportError as error:
        lacking = (error.name or PACKAGE).partition(".")[0].replace("if_verifiable", PACKAGE)
        problem = f"IFBench is scored by its authors' checkers, and the package {lacking} is not installed"
        raise BadInput(f"{problem}: pip install {PACKAGE}", field="evals.ifbench") from error


def checkers() -> str:
    """The package and version of the checkers, which scores depend on; empty if it is not installed."""
    try:
        return f"{PACKAGE} {metadata.version(PACKAGE)}"
    except metadata.PackageNotFoundError:
        return ""


def prepare(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its key as text, and the prompt as the only turn."""
    prepared = record | {"turns": [record.get("prompt")]}
    return prepared | {"key": str(record["key"])} if isinstance(record.get("key"), int) else prepared


def variants(answer: str) -> list[str]:
    """The texts of which one has to follow an instruction for `loose`."""
    lines = answer.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [text for shape in (answer, *cut) for text in (shape, shape.replace("*", ""))]


def follows(item: Item, place: int, texts: list[str]) -> bool:
    """Whether one of the texts follows the item's instruction at this place."""
    kind = item.fields["instruction_id_list"][place]
    checker = instructions()[kind](kind)
    checker.build_description(**{k: v for k, v in item.fields["kwargs"][place].items() if v is not None})
    if "prompt" in (checker.get_instruction_args() or {}):
        checker.build_description(prompt=item.fields["prompt"])
    return any(text.strip() and checker.check_following(text) for text in texts)


def classify(item: Item, answer: str) -> tuple[dict[str, float], dict[str, Any]]:
    """1 if the answer follows all instructions of its item; and which of them it follows, strictly."""
    kinds = item.fields["instruction_id_list"]
    try:
        with quiet(), seeded():
            strict = [follows(item, place, [answer]) for place in range(len(kinds))]
            loose = [strict[place] or follows(item, place, variants(answer)) for place in range(len(kinds))]
    except LookupError as error:  # NLTK's, in several lines with colours
        if (named := RESOURCE.search(str(error))) is None:
            raise
        raise BadInput(
            f"IFBench's checkers need NLTK's {named[1]}, which is not installed: run "
            f"`python -m nltk.downloader {named[1]}`, or put it into a folder named nltk_data beside the data file"
        ) from error
    followed = [kind for kind, right in zip(kinds, strict, strict=True) if right]
    outcome = "followed" if all(strict) else "followed_loosely" if all(loose) else "not_followed"
    values = {LOOSE: float(all(loose)), STRICT: float(all(strict))}
    return values, {"class": outcome, "instructions": kinds, "followed": followed, "by": checkers()}


IFBENCH = Suite(
    name="ifbench",
    title="IFBench",
    fields={"key": str, "prompt": str, "instruction_id_list": list, "kwargs": list, "turns": list},
    id_field="key",
    metrics=(LOOSE, STRICT),
    task=None,
    prepare=prepare,
    classify=classify,
    classifier="ifbench",
    checkers=checkers,
    instructions=instructions,
)
