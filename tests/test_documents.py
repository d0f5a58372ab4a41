"""What the documents name is there: files, modules, commands with their options, make targets, recipe keys, links."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from pydantic import BaseModel

from alignment.recipe import Recipe, parse_recipe
from alignment_dags.cli.app import app
from eval.suites import SUITES
from resources.pools import declares_pools, parse_pools

PROJECT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md"), *PROJECT.glob("examples/**/*.md")])
PACKAGES = ("alignment", "eval", "resources", "assets", "alignment_dags", "benchmarks", "tests")
EXAMPLES = {"my_pairs.jsonl", "my_recipe.yaml", "recipe.yaml", "mine.yaml"}
FLOORS = ("alignment", "eval", "resources", "assets", "alignment_dags")
README = (PROJECT / "README.md").read_text(encoding="utf-8")
SMALLEST = {"name": "small"} | {name: {"embedded": "micro"} for name in ("base_model", "preferences")}


class Place(NamedTuple):
    """Code in a document, and where it stands."""

    document: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(PROJECT)}:{self.line}: {self.text}"


@cache
def pieces(document: Path) -> tuple[tuple[Place, ...], tuple[Place, ...], str]:
    """Inline code, lines of fenced blocks, and the prose without either."""
    inline: list[Place] = []
    fenced: list[Place] = []
    prose: list[str] = []
    inside = False
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            inside = not inside
        elif inside:
            fenced.append(Place(document, number, line))
        else:
            inline += [Place(document, number, code) for code in re.findall(r"`([^`]+)`", line)]
            prose.append(re.sub(r"`[^`]*`", "", line))
    return tuple(inline), tuple(fenced), "\n".join(prose)


def inline() -> Iterator[Place]:
    return (place for document in DOCUMENTS for place in pieces(document)[0])


def code() -> Iterator[Place]:
    return (place for document in DOCUMENTS for part in pieces(document)[:2] for place in part)


@cache
def sources() -> str:
    files = [path for floor in FLOORS for path in (PROJECT / floor).rglob("*.py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in [*files, PROJECT / "pyproject.toml"])


def test_every_path_is_there() -> None:
    tops = {path.name for path in PROJECT.iterdir() if not path.name.startswith(".")}
    wrong = []
    for place in code():
        for word in place.text.replace(",", " ").split():
            path = word.rstrip(":")
            if "<" in path or "://" in path or not re.fullmatch(r"[\w.*{}-]+(/[\w.*{}-]*)+", path):
                continue
            if path.split("/")[0] in tops and not any(any(PROJECT.glob(one)) for one in braces(path.rstrip("/"))):
                wrong.append(str(place))
    assert not wrong


def braces(path: str) -> list[str]:
    """`a/{b,c}.py` as a shell reads it."""
    match = re.search(r"\{([^}]*)\}", path)
    return [path] if match is None else [path.replace(match[0], one) for one in match[1].split(",")]


def test_every_source_file_that_is_named_alone_is_there() -> None:
    names = {path.name for path in PROJECT.rglob("*") if not {".venv", ".git"} & set(path.parts)}
    named = [place for place in inline() if re.fullmatch(r"\w[\w.-]*\.(py|md|toml|lock|yaml|json|txt)", place.text)]
    known = names | EXAMPLES | set(re.findall(r"[\w.-]+\.\w+", sources()))
    assert [str(place) for place in named if place.text not in known] == []


def test_the_tree_in_the_readme_is_the_house() -> None:
    block = next(block for block in README.split("```") if block.startswith("\nalignment/"))
    names = [
        (len(line) - len(line.lstrip()), line.split()[0]) for line in block.splitlines() if re.match(r" {0,2}\w", line)
    ]
    top, told = "", dict[str, set[str]]()
    for indent, name in names:
        top = top if indent else name
        told.setdefault(top, set()).update({name} if indent else set())
    for top, rooms in told.items():
        there = {f"{path.name}/" for path in (PROJECT / top).iterdir() if path.is_dir() and path.name != "__pycache__"}
        assert rooms == there or (not rooms and top.strip("/") not in FLOORS), top
    packages = {f"{path.parent.name}/" for path in PROJECT.glob("*/__init__.py")}
    assert told.keys() >= packages | {"recipes/", "deploy/", "tests/", "docs/"}


def test_the_readme_names_every_stage_and_it_stands_in_its_file() -> None:
    for point in entry_points(group="alignment_dags.stages"):
        assert re.search(rf"\b{point.name}\b", README), point.name
        assert point.module.rsplit(".", 1)[-1] == point.name


def test_the_main_metrics_are_those_of_the_suites() -> None:
    text = (PROJECT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| (\w+) \| `(\w+/[\w,-]+)` \|$", text, re.MULTILINE))
    assert told == {name: f"{name}/{suite.headline}" for name, suite in SUITES.items()}


def test_what_is_not_there_is_seen() -> None:
    assert is_there("alignment.store.Store") and is_there("alignment_dags.alerts") and not is_there("alignment.stores")
    assert not is_there("eval.suites.catalogue.NOTHING")
    assert is_key("evals.generate.api_key_env") and is_key("dpo.lora.rank") and not is_key("dpo.gamma")
    command = typer.main.get_command(app)
    assert not [*problems(command, "align prefs withdraw r.yaml --row-id ID --reason '…'  # or --shard NAME")]
    assert [*problems(command, "align prefs burn r.yaml")] == ["align prefs has no burn"]
    assert [*problems(command, "align run r.yaml --fast")] == ["align run has no --fast"]


def test_every_module_is_there() -> None:
    pattern = re.compile(rf"\b(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+")
    wrong = [
        str(place)
        for place in code()
        for name in pattern.findall(place.text)
        if not (re.search(r"\.(py|md|json|yaml|txt)$", name) or is_there(name))
    ]
    assert not wrong


def is_there(name: str) -> bool:
    """A module, a name that a module binds, or a name that the sources themselves write in quotes (a logger)."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        base = PROJECT.joinpath(*parts[:length])
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if path.is_file():
            if length == len(parts) or parts[length] in bound_in(path):
                return True
            break
    return f'"{name}"' in sources()


def bound_in(path: Path) -> set[str]:
    """Names that a module defines or imports."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    return names


def test_every_module_that_is_run_can_be_run() -> None:
    named = [(place, name) for place in code() for name in re.findall(r"python -m ([\w.]+)", place.text)]
    ours = [(place, PROJECT.joinpath(*name.split("."))) for place, name in named if name.split(".")[0] in PACKAGES]
    assert len(ours) > 3
    assert [
        str(p) for p, base in ours if not ((base / "__main__.py").is_file() or base.with_suffix(".py").is_file())
    ] == []


def test_every_command_is_there_with_the_options_that_are_given() -> None:
    command = typer.main.get_command(app)
    wrong = [f"{place} ({problem})" for place in code() for problem in problems(command, place.text)]
    assert not wrong


def problems(command: Any, text: str) -> Iterator[str]:
    for line in re.findall(r"(?:^|[\s$(])(align [a-z].*)", text):
        words = shlex.split(line.split(" #")[0].split("|")[0].replace("'", ""), comments=True)[1:]
        current, path = command, "align"
        while words and hasattr(current, "commands"):
            if words[0] not in current.commands and hasattr(current, "default"):  # a verb that may be left out
                words.insert(0, current.default)
            name = words.pop(0)
            if name not in current.commands:
                yield f"{path} has no {name}"
                return
            current, path = current.commands[name], f"{path} {name}"
        known = {option for parameter in current.params for option in parameter.opts}
        yield from (f"{path} has no {word}" for word in words if re.match(r"--[a-z]", word) and word not in known)


def commands(command: Any, path: str = "align") -> Iterator[tuple[str, Any]]:
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{path} {name}") if hasattr(inner, "commands") else [(f"{path} {name}", inner)]


def test_every_command_stands_on_its_page_and_says_what_it_does_in_one_sentence() -> None:
    page = (PROJECT / "docs" / "commands.md").read_text(encoding="utf-8")
    table = re.sub(r"`(align \w+) (\w+)`((?:, `\w+`)+)", _spelled_out, page.split("## Exit codes")[0])
    for name, command in commands(typer.main.get_command(app)):
        assert re.search(rf"`{name}\b", table), name
        about = " ".join(command.help.split())
        assert len(about) < 125 and about.endswith("."), f"{name}: {about}"


def _spelled_out(match: re.Match[str]) -> str:
    group, first, others = match.groups()
    return " ".join(f"`{group} {name}`" for name in [first, *re.findall(r"\w+", others)])


def test_every_make_target_is_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = [(place, target) for place in code() for target in re.findall(r"^\s*make ([a-z]+)\b", place.text)]
    assert {target for _, target in named} >= {"quickstart", "test", "ui"}
    assert [str(place) for place, target in named if target not in targets] == []


def test_every_recipe_key_is_there() -> None:
    """Of dotted keys: one name alone may be anything."""
    dotted = re.compile(rf"({'|'.join(Recipe.model_fields)})(\.(?!yaml)[a-z_]+)+")
    assert [str(place) for place in inline() if dotted.fullmatch(place.text) and not is_key(place.text)] == []


def is_key(text: str) -> bool:
    model: Any = Recipe
    for name in text.split("."):
        fields = [kind.model_fields[name] for kind in models_in(model) if name in kind.model_fields]
        if not fields:
            return False
        model = fields[0].annotation
    return True


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in models_in(part)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_piece_of_a_recipe_is_well_formed(document: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        piece = yaml.safe_load(block)
        if declares_pools(piece) and all(isinstance(pool, dict) for pool in piece["pools"].values()):
            parse_pools(piece, document)
        elif set(piece) <= set(Recipe.model_fields):
            parse_recipe(SMALLEST | {"sft": {"dataset": {"embedded": "micro"}}} | piece, document.name, {})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    text = pieces(document)[2]
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            wrong.append(target)
    assert not wrong


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
