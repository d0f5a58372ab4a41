"""Commands that only look, and dry runs: a finished home is the same after them, byte for byte."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.data.withdrawal import Tombstone, bury, lift, now, read_withdrawn
from alignment.recipe import Recipe, load_recipe
from alignment_dags.cli import main
from alignment_dags.recipes import derived
from alignment_dags.registry.sources import made
from assets.building.upstream import Upstream
from resources.store import ArtifactStore

PASSES = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}}
LOOKS: list[list[str]] = [
    ["status"],
    ["status", "small"],
    ["plan", "small"],
    ["doctor"],
    ["nights", "small"],
    ["worth", "small"],
    ["upgrade"],
    ["upgrade", "small"],
    ["lineage", "small"],
    ["lineage", "--row", "0" * 32],
    ["path", "small"],
    ["card", "small"],
    ["compare", "small@1", "small"],
    ["diff", "small@1", "small"],
    ["prefs", "check", "small"],
    ["prefs", "show", "small"],
    ["prefs", "stats", "small"],
    ["prefs", "noise", "small"],
    ["prefs", "find", "small", "Name"],
    ["gc", "--dry-run"],
    ["gc", "small", "--dry-run"],
    ["recipes", "check", "small"],
    ["recipes", "upgrade", "{file}", "--dry-run"],
    ["sources", "small", "--dry-run"],
    ["reproduce", "small", "--dry-run", "--seeds", "2"],
]
"""Every verb that says that it only looks; `{file}` stands for the recipe's file."""


@pytest.fixture
def file(small_recipe: dict[str, Any], small_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small recipe with two sources and a gate, in use, in the current folder."""
    lines = (small_inputs / "pairs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    listed = []
    for name, part in (("first", lines[:24]), ("second", lines[24:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
        listed.append({"name": name, "files": [str(tmp_path / f"{name}.jsonl")]})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe | {"preferences": listed, "gate": PASSES}), encoding="utf-8")
    monkeypatch.setenv("ALIGN_RECIPES", str(path))
    monkeypatch.chdir(tmp_path)
    return path


def contents(*folders: Path) -> dict[Path, bytes | None]:
    """Every file with its bytes, and every folder. Digests of source files may be remembered at any time: once a file
    has been left alone for `SETTLED_SECONDS`, whoever reads it next does."""
    found = (path for folder in folders for path in folder.rglob("*") if "digests" not in path.parts)
    return {path: path.read_bytes() if path.is_file() else None for path in found}


def align(*arguments: str) -> tuple[int, str]:
    """Exit code, and all that the command prints."""
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(told), redirect_stderr(told):
        patch.setattr(sys, "argv", ["align", *arguments])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, told.getvalue()


def test_commands_that_look_leave_everything_as_it_was(
    file: Path, finished: Callable[[Recipe], Upstream], home: Path, tmp_path: Path
) -> None:
    finished(load_recipe(file))
    before = contents(home, tmp_path)
    for given in LOOKS:
        arguments = [one.format(file=file) for one in given]
        code, told = align(*arguments)
        assert code in (0, 1) and "Traceback" not in told, (arguments, told)
        after = contents(home, tmp_path)
        changed = [str(path) for path in after.keys() | before.keys() if after.get(path) != before.get(path)]
        changed += [str(path) for path in after.keys() ^ before.keys()]
        assert not changed, (arguments, sorted(set(changed)))


def test_a_dry_run_counts_what_the_run_will_train_where_rows_were_withdrawn(
    file: Path, finished: Callable[[Recipe], Upstream]
) -> None:
    """A derived recipe lacks what its base lacks, before it is written as after, and has again what its base has."""
    upstream = finished(load_recipe(file))
    store = ArtifactStore().open()
    row = json.loads(align("prefs", "find", "small", "Name 3", "--json")[1])["rows"][0]["row_id"]
    same = derived(file, ["gate=none"], "small_again")
    assert made(same) == store.commit_of(upstream("policy_checkpoint")), "the recipe's own policy, under another name"
    bury(store, "small", "rows", [Tombstone(id=row, at=now())])
    assert made(same) is None and not read_withdrawn(store, "small_again").rows
    assert upstream.store.read_ref("small_again", "policy_checkpoint") is None
    same.write()
    assert read_withdrawn(store, "small_again").rows == {row} and made(same) is None
    lift(store, "small", "rows", [row])
    assert made(same) is not None and read_withdrawn(store, "small_again").rows == {row}
    same.write()
    assert not read_withdrawn(store, "small_again").rows and made(same) is not None


def test_an_adopted_model_is_named_as_what_it_is(
    file: Path, finished: Callable[[Recipe], Upstream], tmp_path: Path
) -> None:
    """In the gate's reasons, the terminal, the report and Dagster: nobody fine-tuned it here."""
    from alignment_dags.cli.outcome import show_outcome, summary_of
    from alignment_dags.run.run import Outcome
    from alignment_dags.run.workspace import Workspace
    from assets.evaluation_report import show
    from resources.pools import load_pools

    upstream = finished(load_recipe(file))
    store, commit = upstream.store, upstream.store.commit_of(upstream("evaluation_report"))
    page = (store.fetch(commit.artifact) / "report.html").read_text(encoding="utf-8")
    assert "<dt>Adopted model</dt>" in page and "Policy against its adopted model" in page and "SFT" not in page
    assert "| adopted model |" in show(commit, store.fetch(commit.artifact)).markdown["comparison"]
    told = io.StringIO()
    with redirect_stdout(told):
        show_outcome(summary_of(Outcome(Workspace(load_recipe(file), load_pools()), dagster_runs=["one"])))
    lines = told.getvalue().splitlines()
    assert lines[0].split("  ")[0] == "suite" and "adopted model  policy" in lines[0]
    assert "against the adopted model: " in told.getvalue() and "SFT" not in told.getvalue()
    assert "file://" not in told.getvalue(), "addresses are paths"
