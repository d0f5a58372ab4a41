"""What is wrong in a recipe, a pools file or a request, in plain words: from pydantic's errors to one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from alignment.errors import did_you_mean

BRANCH = re.compile(
    r"(literal|list|dict|tuple|set|function-\w+|constrained-\w+|nullable)\[.*\]|int|float|str|bool|none"
)
"""How pydantic names a branch of a union in an error's location. It is no key of the file."""
KINDS = {
    "bool": "true or false",
    "date": "a date such as 2026-11-28",
    "date_from_datetime": "a date such as 2026-11-28",
    "dict": "a mapping of keys to values",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "model": "a section with keys of its own",
    "model_attributes": "a section with keys of its own",
    "string": "a text",
    "tuple": "a list",
}
"""First words of pydantic's error types, and what was expected."""
LIMITS = {"greater_than": ("gt", "above"), "greater_than_equal": ("ge", "at least"), "less_than": ("lt", "below")}
LIMITS["less_than_equal"] = ("le", "at most")


def fault(error: ValidationError, model: type[BaseModel]) -> tuple[str | None, str]:
    """The key of the first mistake, and what is wrong with it. Keys that are missing are all named.

    No value that a person wrote is repeated, because it may be an address with a password.
    """
    mistakes = [(_keys(found["loc"], model), found) for found in error.errors()]
    first, found = mistakes[0]
    if found["type"] == "missing":
        others = [keys for keys, other in mistakes[1:] if other["type"] == "missing"]
        more = len(mistakes) - 1 - len(others)
        told = "missing" + (f"; missing too: {', '.join(map(_dotted, others))}" if others else "")
    else:
        keyed = [list(same) for _, same in groupby(mistakes, key=lambda mistake: mistake[0])]
        told, more = " or ".join(_branches([other for _, other in keyed[0]], first, model)), len(keyed) - 1
    return (_dotted(first) if first else None), told + (f" (and {more} more)" if more else "")


def _dotted(keys: Sequence[str]) -> str:
    return ".".join(keys)


def _keys(location: Sequence[int | str], model: type[BaseModel]) -> tuple[str, ...]:
    """The location of an error without the names of a union's branches."""
    keys: list[str] = []
    for part in map(str, location):
        inside = _models_at(model, keys)
        fields = {name for one in inside for name in one.model_fields}
        is_class = any(part == below.__name__ for one in inside for below in _models_in(one))
        if part in fields or not (BRANCH.fullmatch(part) or is_class):
            keys.append(part)
    return tuple(keys)


def _models_in(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The model itself, and the models that its fields may hold."""
    yield model
    for field in model.model_fields.values():
        yield from _models_of(field.annotation)


def _models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_of(inner)


def _models_at(model: type[BaseModel], keys: Sequence[str]) -> list[type[BaseModel]]:
    """The models that may stand under these keys; the name of a mapping's entry leads to the same models."""
    models = [model]
    for key in keys:
        known = [one for one in models if key in one.model_fields]
        models = [below for one in known for below in _models_of(one.model_fields[key].annotation)] if known else models
    return models


def _branches(found: Sequence[Any], keys: tuple[str, ...], model: type[BaseModel]) -> list[str]:
    """What is wrong with one key, by the branches of its type; a branch that is of another kind adds what it takes."""
    told = list(dict.fromkeys(_words(one, keys, model) for one in found))
    expected = [words.removeprefix("must be ") for words in told if words.startswith("must be ")]
    return told[:1] if len(expected) != len(told) else ["must be " + expected[0], *expected[1:]]


def _words(found: Any, keys: tuple[str, ...], model: type[BaseModel]) -> str:
    kind, context = str(found["type"]), found.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key" + _other_key(keys, model)
    if kind == "value_error":
        return str(found["msg"]).removeprefix("Value error, ")
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'|([\w.]+)(?=,| or|$)", str(context["expected"]))
        names = [quoted or bare for quoted, bare in choices if (quoted or bare) != "or"]
        given = found["input"] if isinstance(found["input"], str) else ""
        return f"must be one of {', '.join(names)}" + did_you_mean(given, names)
    if kind == "string_pattern_mismatch":
        return "is not of the right form" + _described(keys, model)
    if kind in LIMITS:
        name, words = LIMITS[kind]
        return f"must be {words} {context[name]:g}"
    if kind == "none_required":
        return "unknown key"  # a section that takes away a key of the section it is made from
    if kind == "too_long":
        return f"must have {context['max_length']} values at most"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind == "int_from_float":
        return "must be a whole number"
    if kind == "finite_number":
        return "must be a finite number"
    if kind == "string_unicode":
        return "holds half of a surrogate pair, which is not a character"
    known = next((words for name, words in KINDS.items() if kind in (f"{name}_type", f"{name}_parsing")), None)
    if known is not None:
        return f"must be {known}"
    # of a type that has no words of ours yet
    return str(found["msg"]).replace("Input should be", "must be", 1).replace("Input should", "must", 1)


def _other_key(keys: tuple[str, ...], model: type[BaseModel]) -> str:
    """The key that was meant: this very name in one other section, or one of the section with nearly this name."""
    *section, key = keys
    around = _models_at(model, section)
    written = {name: field.alias or name for one in around for name, field in one.model_fields.items()}
    if key in written:  # a key of another spelling of the section, which has another name here
        return f"; did you mean {written[key]}?"
    below = [
        ".".join((*section, name, key))
        for one in around
        for name, field in one.model_fields.items()
        if any(key in inner.model_fields for inner in _models_of(field.annotation))
    ]
    if len(below) == 1:  # this very name rather than one that is nearly it
        return f"; did you mean {below[0]}?"
    return did_you_mean(key, list(written.values()))


def _described(keys: tuple[str, ...], model: type[BaseModel]) -> str:
    """What the definition says of a key, to its first full stop."""
    *section, key = keys
    for one in _models_at(model, section):
        if key in one.model_fields and (about := one.model_fields[key].description):
            return f": {about.partition('.')[0]}"
    return ""
