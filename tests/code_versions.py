"""Keeps stages' code versions honest: `python -m tests.code_versions` after a change to what a stage reaches.

The record beside this file holds, for every stage, its code version and a digest of the definitions that it reaches:
functions, classes and constants, followed by name from `STAGE`. File names, places, imports, comments and docstrings
are not in the digest, so moving a definition flags no stage. A stage whose version was raised is recorded anew; one
whose definitions changed without that needs `--no-effect "why results cannot change"`, which stays in the record.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from functools import cache, cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from alignment.data.embedded import GROUP

PROJECT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_suffix(".json")
PACKAGES = ("alignment", "eval")
PLUMBING = ("alignment.store", "alignment.stages.stage", "alignment.stages.execute", "alignment.errors")
"""Carries requests and files, and decides no value in them: the tests of the store and of `execute` hold that."""
DATA = (".jinja", ".json", ".jsonl", ".yaml")
PLUG_IN = "embedded"
"""The function that looks an entry point up by name: who calls it reaches all that such packages offer."""


class Definition(NamedTuple):
    module: str
    name: str


class Module:
    """A source file as its definitions by name, and what its imports bind."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.tree = ast.parse(path.read_text(encoding="utf-8"))

    @cached_property
    def definitions(self) -> dict[str, list[ast.stmt]]:
        """Name to the statements that bind it; what binds none (a call, a condition) stands under the empty name."""
        found: dict[str, list[ast.stmt]] = {}
        for statement in self.tree.body:
            if not isinstance(statement, ast.Import | ast.ImportFrom):
                for name in bound_by(statement) or [""]:
                    found.setdefault(name, []).append(statement)
        return found

    @cached_property
    def imports(self) -> dict[str, tuple[str, str | None]]:
        """Local name to (module, name in it), or to (module, None) for the module itself; lazy imports included."""
        found: dict[str, tuple[str, str | None]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {(a.asname or a.name.split(".")[0]): (a.name, None) for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {(a.asname or a.name): (node.module, a.name) for a in node.names}
        return found


def bound_by(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [node.id for target in targets if target for node in ast.walk(target) if isinstance(node, ast.Name)]


class Sources:
    """The packages below a folder, and what can be reached in them."""

    def __init__(
        self, root: Path, packages: tuple[str, ...], plumbing: tuple[str, ...] = (), plug_ins: tuple[str, ...] = ()
    ) -> None:
        self.root, self.packages, self.plumbing, self.plug_ins = root, packages, plumbing, plug_ins
        self.modules: dict[str, Module | None] = {}
        # most definitions are reached by many stages: what each names and means is looked up once
        self.named: dict[Definition, list[Definition]] = {}
        self.meanings: dict[Definition, set[bytes]] = {}

    def module(self, name: str) -> Module | None:
        """The module of that name; None where it is not of these packages."""
        if name not in self.modules:
            base = self.root.joinpath(*name.split("."))
            paths = [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]
            ours = name.split(".")[0] in self.packages and paths
            self.modules[name] = Module(name, paths[0]) if ours else None
        return self.modules[name]

    def reached(self, module: str, name: str = "STAGE") -> set[Definition]:
        """Every definition that one can come to, itself included."""
        seen: set[Definition] = set()
        waiting = [Definition(module, name)]
        while waiting:
            current = waiting.pop()
            home = self.module(current.module)
            is_plumbing = any(f"{current.module}.".startswith(f"{part}.") for part in self.plumbing)
            if home is None or is_plumbing or current in seen:
                continue
            if current.name not in home.definitions:
                if (handed_on := self.resolve(home, current.name)) != current:
                    waiting.append(handed_on)
                continue
            seen.add(current)
            if current.name == PLUG_IN:
                waiting += [
                    Definition(plug_in, offered) for plug_in in self.plug_ins for offered in self.offers(plug_in)
                ]
            if current not in self.named:
                self.named[current] = [*dict.fromkeys(self.named_in(home, home.definitions[current.name]))]
            waiting += [Definition(current.module, ""), *self.named[current]]
        return seen

    def offers(self, plug_in: str) -> list[str]:
        """What a package that an entry point names lists in `__all__`."""
        home = self.module(plug_in)
        assert home is not None
        (listed,) = home.definitions["__all__"]
        assert isinstance(listed, ast.Assign)
        return list(ast.literal_eval(listed.value))

    def named_in(self, home: Module, statements: list[ast.stmt]) -> Iterator[Definition]:
        for node in (node for statement in statements for node in ast.walk(statement)):
            if isinstance(node, ast.Name):
                yield self.resolve(home, node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module, inner = home.imports.get(node.value.id, ("", None))
                place = module if inner is None else f"{module}.{inner}"
                if (found := self.module(place)) is not None:
                    yield self.resolve(found, node.attr)

    def resolve(self, home: Module, name: str) -> Definition:
        """Where a name that a module uses is defined; imports that hand it on are followed."""
        if name not in home.definitions and name in home.imports:
            module, inner = home.imports[name]
            if inner is not None and (found := self.module(module)) is not None:
                return self.resolve(found, inner)
        return Definition(home.name, name)

    def digest(self, module: str, name: str = "STAGE") -> str:
        """Digest over the meaning of everything reached, and of the data files that it names."""
        meanings: set[bytes] = set()
        for definition in self.reached(module, name):
            if definition not in self.meanings:
                self.meanings[definition] = self.meanings_of(definition)
            meanings |= self.meanings[definition]
        sha = hashlib.sha256()
        for part in sorted(meanings):
            sha.update(hashlib.sha256(part).digest())
        return sha.hexdigest()

    def meanings_of(self, definition: Definition) -> set[bytes]:
        """What a definition's statements mean, and the data files beside it that they name."""
        home = self.module(definition.module)
        assert home is not None
        meanings: set[bytes] = set()
        for statement in home.definitions[definition.name]:
            named = {node.value for node in ast.walk(statement) if isinstance(node, ast.Constant)}
            meanings.add(meaning(statement).encode())
            folders = (home.path.parent, home.path.parent.parent / "templates")
            data = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
            meanings |= {path.read_bytes() for path in data if path.suffix in DATA and path.name in named}
        return meanings


def meaning(statement: ast.stmt) -> str:
    """A definition without comments, layout, docstrings and imports."""
    copy = ast.parse(ast.unparse(statement))
    for node in ast.walk(copy):
        for field in ("body", "orelse", "finalbody"):
            if isinstance(parts := getattr(node, field, None), list):
                setattr(node, field, [part for part in parts if not says_nothing(part)])
    return ast.dump(copy)


def says_nothing(part: ast.stmt) -> bool:
    is_text = isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)
    return is_text or isinstance(part, ast.Import | ast.ImportFrom)


@cache
def sources() -> Sources:
    return Sources(PROJECT, PACKAGES, PLUMBING, tuple(sorted(point.module for point in entry_points(group=GROUP))))


def stages() -> dict[str, dict[str, Any]]:
    """Every stage that computes something: its code version and the digest of what it reaches, as they are now.

    `registered_model` stands above these packages: its result is a record of what MLflow was told.
    """
    return {
        point.name: {"code_version": point.load().code_version, "source": sources().digest(point.module, point.attr)}
        for point in sorted(entry_points(group="alignment_dags.stages"), key=lambda point: point.name)
        if point.module.split(".")[0] in PACKAGES
    }


def recorded() -> dict[str, dict[str, Any]]:
    return dict(json.loads(RECORD.read_text(encoding="utf-8"))) if RECORD.exists() else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-effect", help="why the changed source gives the same results")
    arguments = parser.parse_args()
    before, now = recorded(), stages()
    for name, stage in now.items():
        known = before.get(name, {})
        stage["no_effect"] = known.get("no_effect", [])
        changed = known and known["source"] != stage["source"]
        if changed and known["code_version"] == stage["code_version"]:
            if not arguments.no_effect:
                print(f"{name}: source changed; raise its code_version or give --no-effect", file=sys.stderr)
                return 1
            stage["no_effect"] = [*stage["no_effect"], arguments.no_effect]
        elif known and known["code_version"] != stage["code_version"]:
            stage["no_effect"] = []
    RECORD.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
