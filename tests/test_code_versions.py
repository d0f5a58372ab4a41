"""No stage changes what it may compute without saying so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import code_versions
from tests.code_versions import Definition, Sources

FILES = {
    "library/__init__.py": "",
    "library/stage.py": '''
"""A stage."""
from library.loss import dpo
from library import numbers as n
from library.log import say

STAGE = run = lambda: dpo(n.BETA)

def unrelated():
    return 1
''',
    "library/loss.py": '''
def dpo(beta):
    """The loss."""
    from library.log import say
    say("loss")
    return beta + _offset()  # why

def _offset():
    return 0

def kto():
    return 5
''',
    "library/numbers.py": "BETA = 0.1\nALPHA = 2\n",
    "library/log.py": "def say(text):\n    print(text)\n",
}


def digest(folder: Path, *changes: tuple[str, str, str], renamed: dict[str, str] | None = None) -> str:
    """The digest of `library.stage` after changes (file, old text, new text) and renamings of modules."""
    texts = dict(FILES)
    for file, old, new in changes:
        assert old in texts[file]
        texts[file] = texts[file].replace(old, new)
    for old, new in (renamed or {}).items():
        texts[f"library/{new}.py"] = texts.pop(f"library/{old}.py")
        texts = {name: text.replace(f"library.{old}", f"library.{new}") for name, text in texts.items()}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return Sources(folder, ("library",), ("library.log",)).digest("library.stage")


def test_every_stage_is_recorded_as_it_is() -> None:
    known = code_versions.recorded()
    stale = {
        name
        for name, stage in code_versions.stages().items()
        if {field: known.get(name, {}).get(field) for field in stage} != stage
    }
    assert not stale, (
        f"changed without a record: {sorted(stale)}; raise code_version, then run python -m tests.code_versions"
    )


@pytest.mark.parametrize(
    "change",
    [
        ("library/loss.py", "return beta + _offset()", "return beta"),
        ("library/loss.py", "return 0", "return 1"),
        ("library/numbers.py", "0.1", "0.2"),
        ("library/stage.py", "dpo(n.BETA)", "dpo(n.ALPHA)"),
    ],
)
def test_a_change_of_what_a_stage_reaches_is_seen(tmp_path: Path, change: tuple[str, str, str]) -> None:
    assert digest(tmp_path / "a") != digest(tmp_path / "b", change)


@pytest.mark.parametrize(
    "change",
    [
        ("library/loss.py", "  # why", "  # because"),
        ("library/loss.py", "The loss.", "The loss of a row."),
        ("library/loss.py", "return 5", "return 6"),
        ("library/numbers.py", "ALPHA = 2", "ALPHA = 3"),
        ("library/stage.py", "return 1", "return 2"),
        ("library/log.py", "print(text)", "print(text, flush=True)"),
    ],
)
def test_text_plumbing_and_what_no_stage_reaches_are_not(tmp_path: Path, change: tuple[str, str, str]) -> None:
    assert digest(tmp_path / "a") == digest(tmp_path / "b", change)


def test_what_a_plug_in_offers_is_reached_through_the_look_up(tmp_path: Path) -> None:
    texts = {
        "library/stage.py": "from library.look import embedded\nSTAGE = embedded('demo')\n",
        "library/look.py": "def embedded(name):\n    return name\n",
        "library/demo/__init__.py": "from library.demo.rows import rows\n__all__ = ['rows']\n",
        "library/demo/rows.py": "def rows():\n    return 1\n\ndef other():\n    return 2\n",
    }

    def digest_with(folder: Path, old: str, new: str) -> str:
        for name, text in texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text.replace(old, new))
        return Sources(folder, ("library",), (), ("library.demo",)).digest("library.stage")

    plain = digest_with(tmp_path / "a", "", "")
    assert digest_with(tmp_path / "b", "return 1", "return 3") != plain
    assert digest_with(tmp_path / "c", "return 2", "return 3") == plain


def test_a_renamed_file_changes_nothing(tmp_path: Path) -> None:
    assert digest(tmp_path / "a") == digest(tmp_path / "b", renamed={"loss": "preference_loss"})


def test_a_definition_that_moves_to_another_file_changes_nothing(tmp_path: Path) -> None:
    moved = (
        ("library/loss.py", "def _offset():\n    return 0\n", "from library.numbers import _offset\n"),
        ("library/numbers.py", "BETA", "def _offset():\n    return 0\n\nBETA"),
    )
    assert digest(tmp_path / "a") == digest(tmp_path / "b", *moved)


@pytest.mark.parametrize(
    ("stage", "definition"),
    [
        ("alignment.stages.reference_logprobs", Definition("alignment.data.tokens", "Tokenization")),
        ("alignment.stages.policy_checkpoint", Definition("alignment.methods.dpo", "Ipo")),
        ("eval.stages.scores", Definition("eval.suites.catalogue", "GSM8K")),
    ],
)
def test_a_stage_reaches_what_it_stands_on(stage: str, definition: Definition) -> None:
    assert definition in code_versions.sources().reached(stage)
