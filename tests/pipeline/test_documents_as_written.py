"""Every console block of the documents runs as it is written, in order, in a copy of the project.

An HTML comment before a block says what a reader cannot see: `prepare` has commands that come before the block, such as
those that write the reader's own files, `not run` says why a block is left out, and `may be refused` why an `align run`
of it may exit with 1, as it does where the gate says no.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from resources.home import PROJECT

DOCUMENTS = [PROJECT / "README.md", *(PROJECT / "docs" / f"{name}.md" for name in ("commands", "operations"))]
"""In the order in which they are run: the later ones go on with what the README has made."""
NOT_COPIED = (".git", ".venv", ".align", ".dagster", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "shared")
NOTES = ("prepare", "not run", "may be refused")
BLOCK = re.compile(rf"^<!-- ({'|'.join(NOTES)})(?:: |\n)(.*?)-->$|^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEAD = "set -euo pipefail\n"


@dataclass(frozen=True)
class Block:
    """A console block; `why_not` is the reason if it is not run, and `refused` why its runs may exit with 1."""

    place: str
    text: str
    prepare: str = ""
    why_not: str = ""
    refused: str = ""

    @property
    def script(self) -> str:
        """What a reader types; a run that a gate may refuse ends as well with 1 as with 0."""
        text = re.sub(r"^(align run [^#\n]*[^#\s])", r"\1 || [ $? -eq 1 ]", self.text, flags=re.MULTILINE)
        return self.prepare + (text if self.refused else self.text)


def blocks(document: Path) -> list[Block]:
    """The console blocks of a document, each with the comments before it."""
    found: list[Block] = []
    text = document.read_text(encoding="utf-8")
    notes = dict.fromkeys(NOTES, "")
    for match in BLOCK.finditer(text):
        kind, note, commands = match.groups()
        if commands is None:
            notes[kind] += note
            continue
        line = text.count("\n", 0, match.start()) + 1
        prepare, *reasons = (notes[name] for name in NOTES)
        found.append(Block(f"{document.name}:{line}", commands, prepare, *map(str.strip, reasons)))
        notes = dict.fromkeys(NOTES, "")
    assert not any(notes.values()), f"{document.name}: a comment without a block: {notes}"
    return found


def script(document: Path) -> str:
    """What a reader types, block by block."""
    parts = [f"echo '--- {one.place}'\n{one.script}" for one in blocks(document) if not one.why_not]
    return HEAD + "\n".join(parts)


def test_every_block_is_shell_and_one_that_is_not_run_says_why() -> None:
    for document in [*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")]:
        found = blocks(document)
        assert document in DOCUMENTS or all(one.why_not for one in found), f"{document.name}: name it in DOCUMENTS"
        for one in found:
            checked = subprocess.run(["bash", "-n"], input=one.script, capture_output=True, text=True, check=False)
            assert checked.returncode == 0, f"{one.place}: {checked.stderr}"
    assert len([one for document in DOCUMENTS for one in blocks(document) if not one.why_not]) >= 10


def test_a_command_that_fails_and_a_comment_without_a_block_are_seen(tmp_path: Path) -> None:
    document = tmp_path / "some.md"
    document.write_text("<!-- prepare\nX=1\n-->\n```console\nfalse | cat # $X\n```\n```console\necho no\n```\n")
    told = subprocess.run(["bash"], input=script(document), capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (1, "--- some.md:4\n")
    refused = "<!-- may be refused: why -->\n```console\nalign run a.yaml   # no\nalign status\n```\n"
    for code, status, ends in ((1, 0, 0), (2, 0, 1), (1, 1, 1)):
        document.write_text(refused)
        gate = f"align() {{ [ $1 = run ] && return {code} || return {status}; }}\n"
        told = subprocess.run(["bash"], input=gate + script(document), capture_output=True, text=True, check=False)
        assert told.returncode == ends, (code, status)
    document.write_text("<!-- not run: why -->\n")
    with pytest.raises(AssertionError, match="without a block"):
        blocks(document)


def copy_project(target: Path) -> dict[str, str]:
    """A copy of the project with an environment that is installed already; returns a newcomer's variables."""
    shutil.copytree(PROJECT, target, ignore=shutil.ignore_patterns(*NOT_COPIED))
    environment = target / ".venv"
    environment.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (environment / name).symlink_to(Path(sys.prefix, name))
    (environment / ".installed").touch()  # newer than the files it is made from, so `make` installs nothing
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ALIGN_", "MLFLOW_", "DAGSTER_"))}
    return kept | {"PYTHONPATH": str(target)}


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_every_command_of_the_documents_runs_as_it_is_written(tmp_path: Path) -> None:
    clone = tmp_path / "alignment-dags"
    environment = copy_project(clone)
    for document in DOCUMENTS:
        told = subprocess.run(
            ["bash"], input=script(document), cwd=clone, env=environment, capture_output=True, text=True, check=False
        )
        assert told.returncode == 0, f"{told.stdout[-6000:]}\n{told.stderr[-6000:]}"
        environment["PATH"] = f"{clone / '.venv' / 'bin'}:{environment['PATH']}"
