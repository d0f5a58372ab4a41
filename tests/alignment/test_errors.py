"""Lists and errors in one line: a few names, and a count of the others."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from alignment.errors import (
    LONGEST,
    BadInput,
    be,
    causes,
    chain,
    counted,
    did_you_mean,
    first_few,
    named_in,
    no_such,
    one_line,
)


def test_a_short_list_is_named_whole() -> None:
    assert first_few([]) == ""
    assert first_few(list("abcde")) == "a, b, c, d, e"


def test_of_a_long_list_the_first_are_named_and_the_others_counted() -> None:
    assert first_few(list("abcdef")) == "a, b, c, d, e and 1 more"
    assert first_few(list("abcdefgh"), "; ") == "a; b; c; d; e and 3 more"


def test_a_text_that_was_pasted_in_place_of_a_name_is_compared_with_nothing() -> None:
    began = time.process_time()
    assert did_you_mean("x" * 1_000_000, ["x" * 90_000, "small"]) == ""
    assert time.process_time() - began < 1
    assert did_you_mean("smal", ["small", "large"]) == "; did you mean small?"


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("my_pair.jsonl", "no such file; did you mean my_pairs.jsonl?"),
        ("my_pairs.json", "no such file; did you mean my_pairs.jsonl?"),
        ("my_modle/", "no such file; did you mean my_model?"),
        ("chats.jsonl", "no such file"),  # alike by the suffix alone
        ("none/my_pair.jsonl", "no such file"),
    ],
)
def test_a_missing_path_is_told_with_the_similar_name_in_its_folder(missing: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "my_pairs.jsonl").touch()
    (tmp_path / ".my_pair.jsonl.part").touch()
    (tmp_path / "my_model").mkdir()
    assert no_such("file", f"{tmp_path}/{missing}") == told


def test_no_folder_is_listed_for_a_url_or_without_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        listed.append(folder)
        raise PermissionError

    listed: list[Path] = []
    monkeypatch.setattr("alignment.errors.os.scandir", refuse)
    assert no_such("file", "s3://bucket/pairs.jsonl") == no_such("file", "zip::s3://a/b.zip") == "no such file"
    assert listed == []
    assert no_such("file", tmp_path / "pairs.jsonl") == "no such file" and listed == [tmp_path]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BadInput("no such file", file="a"), "a, field 'preferences.files': no such file"),
        (BadInput("is empty", file="a", row=3), "a, row 3: is empty"),
        (BadInput("is empty", file="a", field="b"), "a, field 'b': is empty"),
        (BadInput("no licence", field=None), "no licence"),
    ],
)
def test_a_field_is_added_to_an_error_that_names_a_path_alone(error: BadInput, told: str) -> None:
    with pytest.raises(BadInput) as raised, named_in("preferences.files"):
        raise error
    assert str(raised.value) == told


def test_a_noun_and_its_verb_follow_the_number() -> None:
    assert [counted(number, "shard") for number in (0, 1, 1200)] == ["0 shards", "1 shard", "1,200 shards"]
    assert [counted(number, "epoch") for number in (1.0, 1.5, 4.0)] == ["1 epoch", "1.5 epochs", "4 epochs"]
    assert counted(1, "policy is", "policies are") == "1 policy is"
    assert counted(2, "policy is", "policies are") == "2 policies are"
    assert (be(1), be(0), be(2)) == ("is", "are", "are")


PLURALS = re.compile(
    r"[^/]\} (rows|shards|items|answers|pairs|questions|judgments|files|records|artifacts|responses|votes) "
    r"(are|have|hold|do|in|of)\b|\} shards\b"
)


def test_no_text_for_a_person_has_a_plural_behind_a_number_that_may_be_one() -> None:
    """Of what commands print and reports say; a text that raises may name a number that is never one."""
    root = Path(__file__).parents[2]
    files = [*root.glob("alignment_dags/**/*.py"), *root.glob("eval/report/*.py"), root / "alignment" / "guards.py"]
    wrong = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if PLURALS.search(line) and "counted(" not in line
    ]
    assert wrong == []


def test_an_error_of_many_lines_is_one_line_wherever_it_is_told() -> None:
    assert str(BadInput("refused:\n\n  {\n    'a  b': 1\n  }\n", file="x")) == "x: refused: { 'a  b': 1 }"
    assert one_line(ValueError("a\n\tb\n")) == "a b" and one_line(ValueError()) == "ValueError"
    assert one_line("") == "" and len(one_line("x" * 5_000)) < LONGEST + 10


def test_what_is_behind_an_error_is_met_once_though_it_goes_round_in_a_circle() -> None:
    first, last, beside = ValueError("first"), ValueError("last"), ValueError("beside")
    last.__cause__, first.__cause__, last.__context__ = first, last, beside
    assert causes(last) == [last, first]
    assert list(chain(last)) == [last, first, beside]
    beside.__cause__ = beside
    assert causes(beside) == list(chain(beside)) == [beside]
