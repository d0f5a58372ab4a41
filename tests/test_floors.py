"""Imports go down the floors, and no two files import each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "alignment": {"alignment"},
    "eval": {"alignment", "eval"},
    "resources": {"alignment", "resources"},
    "assets": {"alignment", "eval", "resources", "assets"},
    "alignment_dags": {"alignment", "eval", "resources", "assets", "alignment_dags"},
}
NOT_BELOW = {"alignment": {"dagster", "mlflow"}, "eval": {"dagster", "mlflow"}}


def module_of(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for floor in MAY_IMPORT for path in (PROJECT / floor).rglob("*.py")}


@cache
def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            names |= inner or {node.module}
    return names


def test_no_import_goes_up() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name in imported(path)
        if ((root := name.split(".")[0]) in MAY_IMPORT and root not in MAY_IMPORT[module.split(".")[0]])
        or name.split(".")[0] in NOT_BELOW.get(module.split(".")[0], set())
    ]
    assert not wrong


def test_no_two_files_import_each_other() -> None:
    graph = {module: imported(path) & set(MODULES) - {module} for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for name in graph[module]:
                visit(name, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_loading_the_definitions_imports_no_heavy_package() -> None:
    heavy = ["torch", "transformers", "trl", "datasets", "mlflow", "lm_eval", "peft", "accelerate", "matplotlib"]
    code = f"import sys, alignment_dags.definitions; print([name for name in {heavy} if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert told.stdout.strip() == "[]"
