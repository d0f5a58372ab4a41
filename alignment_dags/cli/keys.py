"""The page of all keys of a recipe and of pools.yaml, made from the JSON Schemas of the pydantic models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

START = """\
# Every key of a recipe

Written by `align recipes reference --out docs/recipe.md` from the definitions in `alignment/recipe/` and
`resources/pools.py`; change a description there and write the page again. Editors show the same texts from
`recipes/recipe.schema.json`.

A recipe is one YAML file. Unknown keys are refused by name. In texts, `${NAME}` and `${NAME:-default}` stand for
environment variables. Relative paths start at the folder that a command is run in, and for the daemon at the project.
`align recipes check FILE` says what is wrong in a recipe. Most keys are optional: a recipe needs `name`, `base_model`,
`sft` (but with `method: orpo`) and `preferences`, and `recipes/quickstart.yaml` shows them in use.
"""
SUITES = "What every suite has; a suite whose default is another says so in its own table."
POOLS = """\
The pools file (`recipes/pools.yaml`, or the file that `ALIGN_POOLS` names) says what there is to run on. It is the one
source for Dagster's limits (`align pools apply`), for placement and for `align plan`."""


def recipe_page() -> str:
    """All keys with type, range, default and meaning, as Markdown."""
    from alignment.recipe import Recipe, Suite
    from resources.pools import Pools

    suite = Suite.model_json_schema()
    return "\n".join(
        [
            START,
            *tables(Recipe.model_json_schema(), "The recipe", {"evals": ("Every suite in `evals`", SUITES, suite)}),
            *tables(Pools.model_json_schema(), "The pools file", {}, POOLS),
        ]
    )


def tables(
    schema: Schema, title: str, shared: dict[str, tuple[str, str, Schema]], about: str | None = None
) -> Iterator[str]:
    """A heading and a table for the document and for each section in it.

    `shared` maps a section to the common keys of the sections right below it (title, text, schema): a separate table.
    """
    definitions = schema.get("$defs", {})
    yield from table(f"## {title}", about or schema.get("description"), schema, set())
    common: set[str] = set()
    told: dict[str, set[str]] = {}
    for name, paths in places(schema).items():
        heading = "### " + ", ".join(f"`{path}`" for path in dict.fromkeys(paths))
        known = told.setdefault(paths[0], set())
        if known:  # the section may also be a list, whose parts have its keys and more
            heading += f", each {name.lower()} of a list"
        yield from table(heading, definitions[name].get("description"), definitions[name], common | known)
        known.update(rows(definitions[name]))
        if paths[0] in shared:
            below, text, base = shared[paths[0]]
            yield from table(f"### {below}", text, base, set())
            common = set(rows(base))


def places(schema: Schema) -> dict[str, list[str]]:
    """The name of every definition and the paths of its keys, each after the section that contains it."""
    paths: dict[str, list[str]] = {}

    def visit(part: Schema, path: str) -> None:
        for key, value in part.get("properties", {}).items():
            for name, below in references(value, f"{path}.{key}" if path else key):
                known = name in paths
                if below not in paths.setdefault(name, []):
                    paths[name].append(below)
                if not known:
                    visit(schema["$defs"][name], below)

    visit(schema, "")
    return paths


def references(value: Schema, path: str) -> Iterator[tuple[str, str]]:
    """Definitions that a key's value may have, and their paths; `NAME` is any key of a mapping."""
    if "$ref" in value:
        yield value["$ref"].rsplit("/", 1)[-1], path
    for choice in (*value.get("anyOf", ()), *value.get("oneOf", ())):
        yield from references(choice, path)
    if isinstance(item := value.get("items"), dict):
        yield from references(item, path)
    if isinstance(inner := value.get("additionalProperties"), dict):
        yield from references(inner, f"{path}.NAME")


def table(heading: str, about: str | None, part: Schema, left_out: set[str]) -> list[str]:
    """A section of the page, without the rows in `left_out`."""
    own = [row for row in rows(part) if row not in left_out]
    text = [" ".join((about or "").split()), ""]
    head = ["| key | value | default | meaning |", "|---|---|---|---|"] if own else []
    return [heading, "", *(text if about else []), *head, *own, *([""] if own else [])]


def rows(part: Schema) -> list[str]:
    """One row for each key, without keys that can only be null."""
    first = part.get("anyOf", [{}])[0]  # of a recipe: what it needs where it extends no preset
    required = (*part.get("required", ()), *first.get("required", ()))
    return [
        f"| `{key}` | {kind(value)} | {'required' if key in required else default(value)} | {meaning(value)} |"
        for key, value in part.get("properties", {}).items()
        if value.get("type") != "null"
    ]


def meaning(value: Schema) -> str:
    """A key's description, in one line of a Markdown table."""
    return " ".join(value["description"].split()).replace("|", "\\|")


def default(value: Schema) -> str:
    """A key's default as Markdown; a dash for none."""
    given = value.get("default")
    if (isinstance(given, dict | list) and "prefixItems" not in value) or "default" not in value:
        return "–" if not given else "its defaults"
    return f"`{given if given and isinstance(given, str) else json.dumps(given)}`"


def kind(value: Schema) -> str:
    """What a key takes, in words."""
    if choices := value.get("anyOf", value.get("oneOf")):
        return " or ".join(kind(choice) for choice in choices)
    if "enum" in value or "const" in value:
        return ", ".join(f"`{choice}`" for choice in value.get("enum", [value.get("const")]))
    if "$ref" in value:
        return "a section"
    match value.get("type"):
        case "array":
            if (each := value.get("prefixItems")) is not None:  # of a fixed length, all of one kind here
                return f"a list of {len(each)} ({kind(each[0])})"
            return f"a list ({kind(value['items'])})"
        case "object":
            inner = value.get("additionalProperties")
            return f"a mapping (name to {kind(inner)})" if isinstance(inner, dict) else "a mapping"
        case "boolean":
            return "`true`, `false`"
        case "null":
            return "null"
        case "string":
            return "a text"
        case "integer" | "number" as number:
            return " ".join(["a whole number" if number == "integer" else "a number", *bounds(value)])
        case other:
            raise ValueError(f"no words for a value of type {other}")


def bounds(value: Schema) -> Iterator[str]:
    """A number's limits, in words."""
    for name, words in (
        ("minimum", "from"),
        ("exclusiveMinimum", "above"),
        ("maximum", "to"),
        ("exclusiveMaximum", "below"),
    ):
        if name in value:
            yield f"{words} {value[name]}"
