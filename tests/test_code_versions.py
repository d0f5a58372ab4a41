"""No stage changes what it may compute without saying so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("code_versions", Path(__file__).with_name("code_versions.py"))
assert SPEC is not None
assert SPEC.loader is not None
code_versions = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(code_versions)


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


def test_comments_and_docstrings_do_not_count_but_code_does(tmp_path: Path) -> None:
    def meaning(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(code_versions.meaning(path))

    plain = meaning("a.py", "def f():\n    return 1\n")
    assert plain == meaning("b.py", '"""Doc."""\n\n\ndef f():\n    """Doc."""\n    return 1  # why\n')
    assert plain != meaning("c.py", "def f():\n    return 2\n")


@pytest.mark.parametrize(
    ("stage", "module"),
    [
        ("alignment.logprobs.stage", "alignment.tokens"),
        ("alignment.training.dpo", "alignment.tokens"),
        ("eval.scores", "eval.suites.gsm8k"),
    ],
)
def test_a_stage_reaches_what_it_stands_on(stage: str, module: str) -> None:
    assert module in code_versions.reached(stage)
