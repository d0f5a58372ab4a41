"""Keeps stages' code versions honest: `python -m tests.code_versions` after a change to what a stage reaches.

The record beside this file holds, for every stage, its code version and a digest of all project source
that it reaches. A stage whose version was raised is recorded anew; one whose source changed without that
needs `--no-effect "why results cannot change"`, which stays in the record.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_suffix(".json")
PACKAGES = ("alignment", "eval")
DATA = (".jinja", ".json", ".jsonl", ".yaml")


def source_of(module: str) -> Path | None:
    """The file of a project module, None for anything else."""
    if module.split(".")[0] not in PACKAGES:
        return None
    path = PROJECT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def imports(module: str) -> frozenset[str]:
    """Project modules that a module imports, anywhere in it."""
    path = source_of(module)
    assert path is not None
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parents = {name.rpartition(".")[0] for name in found}
    return frozenset(name for name in found | parents if name and source_of(name) is not None)


def reached(module: str) -> set[str]:
    """A module and every project module it can come to."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting.extend(imports(current) - seen)
    return seen


@cache
def meaning(path: Path) -> str:
    """A source file without comments, layout and docstrings; any other file as it is."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [
                part for part in node.body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
    return ast.dump(tree)


def source_digest(module: str) -> str:
    """Digest over the meaning of everything a stage reaches, data files of its packages included."""
    files = {path for name in reached(module) if (path := source_of(name)) is not None}
    files |= {data for path in files for data in path.parent.iterdir() if data.suffix in DATA}
    sha = hashlib.sha256()
    for path in sorted(files):
        sha.update(f"{path.relative_to(PROJECT)}\0{meaning(path)}\0".encode())
    return sha.hexdigest()


def stages() -> dict[str, dict[str, Any]]:
    """Every registered stage: its code version and source digest as they are now."""
    return {
        point.name: {"code_version": point.load().code_version, "source": source_digest(point.module)}
        for point in sorted(entry_points(group="alignment_dags.stages"), key=lambda point: point.name)
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
