"""The examples: their recipes and data are valid, their notebook runs, and their pages' commands work as written."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.data.check import check_files
from alignment.recipe import Recipe, load_recipe
from alignment_dags import api
from alignment_dags.check import check_places, not_there_yet
from alignment_dags.start import start
from assets.building.upstream import Upstream
from resources.home import PROJECT
from resources.pools import load_pools

EXAMPLES = PROJECT / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"
FOLDERS = sorted(path.parent.name for path in EXAMPLES.glob("*/README.md"))


def commands_of(example: str) -> list[str]:
    """The commands of an example's page, in order."""
    text = (EXAMPLES / example / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the examples, without what somebody made in them."""
    wanted = {path for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".yaml", ".md", ".ipynb")}
    for path in wanted:
        target = tmp_path / "examples" / path.relative_to(EXAMPLES)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path / "examples"


@pytest.fixture
def run_in(copied: Path, tmp_path: Path, align_command: list[str]) -> Callable[[str, str], str]:
    """Runs a command of a page in its example's folder, with `align` and this Python on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, words in {"align": align_command, "python": [sys.executable]}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    paths = {"PATH": os.pathsep.join([str(folder), os.environ["PATH"]])}
    paths["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))

    def run(example: str, command: str) -> str:
        told = subprocess.run(
            ["sh", "-c", command],
            cwd=copied / example,
            env={**os.environ, **paths},
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.returncode == 0, f"{command}\n{told.stdout}\n{told.stderr}"
        return told.stdout

    return run


@pytest.mark.parametrize("example", FOLDERS)
def test_what_an_example_makes_fits_its_recipe(example: str, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first command writes the inputs; every file is read whole, and its recipe names nothing that is missing."""
    first, *others = commands_of(example)
    monkeypatch.chdir(copied / example)
    python, *arguments = shlex.split(first)
    assert python == "python"
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(arguments[0], run_name="__main__")  # in this process: a new one loads PyTorch anew
    for command in others:
        if command.startswith("align init"):
            model, data, _, name = shlex.split(command)[2:]
            start(model, [data], name, None, None)
    (file,) = Path().glob("*.yaml")
    recipe = load_recipe(file)
    check_places(recipe, load_pools(), str(file))
    assert not_there_yet(recipe, load_pools()) == []
    checked = check_files(list(recipe.preferences.file_patterns))
    assert checked["accepted"] >= 200 and checked["quarantined"] == 0
    assert checked["kind"] == ("unpaired" if example == "thumbs" else "paired")
    assert recipe.training.called == ("method: kto" if example == "thumbs" else "method: dpo")


def test_own_pairs_lead_to_a_comparison_in_three_commands() -> None:
    commands = [command for command in commands_of("my_pairs") if command.startswith("align")]
    assert [command.split()[1] for command in commands] == ["init", "run"]


def test_every_example_is_on_the_page_of_examples() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\[\w+\]\((\w+)/README\.md\)", page) and set(FOLDERS) <= set(re.findall(r"\((\w+)/", page))
    assert NOTEBOOK.name in page


def cells() -> Iterator[str]:
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, "the notebook is kept without its results"
            yield "".join(cell["source"])


def test_the_notebook_runs_on_a_finished_quickstart(
    finished: Callable[..., Upstream], copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a small recipe of the quickstart's name: the micro model, pairs of its world, and a few of its questions."""
    from alignment.quickstart import build_model, preference_records, suite_items

    build_model(tmp_path / "model", seed=0)
    for name, records in {"pairs": preference_records(0, 0)[:60], "questions": suite_items("ifeval", 0)[:6]}.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    model = {"path": str(tmp_path / "model")}
    recipe: dict[str, Any] = {
        "name": "quickstart",
        "base_model": model,
        "sft": {"adopt": model},
        "preferences": {"files": [str(tmp_path / "pairs.jsonl")]},
        "held_out_fraction": 0.2,
        "tokens": {"max_length": 128},
        "reference": {"precision": "float32"},
        "optimise": {"method": "dpo", "precision": "float32", "batch_size": 16, "learning_rate": 2e-4},
        "evals": {
            "precision": "float32",
            "ifeval": {"data": str(tmp_path / "questions.jsonl"), "max_new_tokens": 8},
        },
        "gate": {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}},
    }
    (tmp_path / "quickstart.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    monkeypatch.setenv("ALIGN_RECIPES", str(tmp_path / "quickstart.yaml"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    finished(Recipe.model_validate(recipe))
    names: dict[str, Any] = {}
    for number, source in enumerate(cells()):
        exec(compile(source, f"{NOTEBOOK.name}[{number}]", "exec"), names)
    assert len(names["both"]) == 60 and names["verdict"].verdict == "pass"
    assert names["project"].champion().version == "1"


@pytest.mark.soak
@pytest.mark.parametrize("example", FOLDERS)
def test_the_commands_of_an_example_work_as_written(
    example: str, copied: Path, run_in: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = [run_in(example, command) for command in commands_of(example)]
    assert all("Traceback" not in text for text in printed)
    monkeypatch.chdir(copied / example)
    project = api.open(next(str(path) for path in Path().glob("*.yaml")))
    accuracy = project.comparisons().set_index(["suite", "metric"]).loc[("preferences", "accuracy")]
    assert accuracy["candidate"] > accuracy["baseline"] or example == "thumbs"
    if example == "a_night":
        assert project.nights()["outcome"].tolist() == ["passed", "skipped", "passed"]
        assert project.champion().version == "2"
