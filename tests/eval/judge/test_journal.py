from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.errors import BadInput
from eval.judge.budget import Usage
from eval.judge.files import read_judgments
from eval.judge.journal import Entry, Journal
from eval.judge.judgment import Judgment
from eval.suites.rows import read_records


def single(question: str, text: str = "[[5]]") -> Entry:
    return Entry(f"s{question}", Judgment(question, 1, "j", "single-v1", "q\u2028?", text), Usage(3, 4))


def game(question: str, number: int) -> Entry:
    judgment = Judgment(question, 1, "j", "pair-v2", "q", "[[A]]", "ours", number, "theirs")
    return Entry(f"p{question}{number}", judgment, Usage(1, number))


ENTRIES = [game("2", 2), single("1"), game("1", 1), game("2", 1), single("2", "?")]


def test_what_was_added_is_there_again_with_its_tokens(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "j.jsonl"
    with Journal(path) as journal:
        for entry in ENTRIES:
            journal.add(entry)
            assert path.read_text().count("\n") == ENTRIES.index(entry) + 1  # on the disk before the next one
    with Journal(path) as journal:
        assert [journal.find(entry.asked) for entry in ENTRIES] == ENTRIES
        assert journal.find("other") is None and journal.usage == Usage(9, 12)


OLDER = (
    '{"question_id": 1, "model": "", "judge": ["j", "single-v1"], "user_prompt": "q\u2028é?", "judgment": "[[5]]", '
    '"score": 5.0, "turn": 1, "asked": "s1", "tokens": [3, 4]}\n'
    '{"question_id": 1, "model_1": "ours", "model_2": "theirs", "judge": ["j", "pair-v2"], "turn": 1, '
    '"g1_winner": "model_1", "g1_user_prompt": "q", "g1_judgment": "[[A]]", "g2_winner": "error", '
    '"g2_user_prompt": null, "g2_judgment": null, "g1_asked": "p1", "g1_tokens": [1, 2]}\n'
).encode()
"""What the version before the journals became one wrote."""


def test_files_of_older_versions_are_read_and_written_to_the_byte(tmp_path: Path) -> None:
    path, charges = tmp_path / "j.jsonl", tmp_path / "j.jsonl.charges"
    path.write_bytes(OLDER + b'{"question_id": 2, "mod')
    charges.write_bytes(b'{"asked": "b", "tokens": [200, 20]}\n{"asked": "c", "tok')
    with Journal(path) as journal:
        entries = [journal.find("s1"), journal.find("p1")]
        assert journal.usage == Usage(204, 26)
    with Journal(tmp_path / "new.jsonl") as journal:
        for entry in entries:
            assert entry is not None
            journal.add(entry)
        journal.charge("b", Usage(200, 20))
    assert path.read_bytes() == (tmp_path / "new.jsonl").read_bytes() == OLDER
    assert charges.read_bytes() == (tmp_path / "new.jsonl.charges").read_bytes()


def test_a_line_that_was_cut_off_is_taken_away_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        for entry in ENTRIES:
            journal.add(entry)
    data = path.read_bytes()
    start = data[:-1].rfind(b"\n") + 1
    for cut in range(start, len(data) - 1):
        path.write_bytes(data[:cut])
        with Journal(path) as journal:
            assert journal.find(ENTRIES[-1].asked) is None and journal.find(ENTRIES[-2].asked) == ENTRIES[-2]
            journal.add(ENTRIES[-1])
        assert path.read_bytes() == data
    path.write_bytes(data[:-1])
    with Journal(path) as journal:
        assert journal.find(ENTRIES[-1].asked) == ENTRIES[-1]
    assert path.read_bytes() == data


def test_what_was_charged_without_a_judgment_counts_again_and_a_cut_line_is_taken_away(tmp_path: Path) -> None:
    path, charges = tmp_path / "j.jsonl", tmp_path / "j.jsonl.charges"
    with Journal(path) as journal:
        journal.add(ENTRIES[1])
        journal.charge("a", Usage(100, 10))
        journal.charge("b", Usage(200, 20))
        assert journal.usage == Usage(303, 34)
        journal.tidy(["s1"])
    charges.write_bytes(charges.read_bytes()[:-3])
    with Journal(path) as journal:
        assert journal.usage == Usage(103, 14)
        journal.charge("b", Usage(200, 20))
    with Journal(path) as journal:
        assert journal.usage == Usage(303, 34)
    assert len(read_judgments(path)) == 1
    charges.write_text('{"tokens": [1]}\n')
    with pytest.raises(BadInput, match="row 1, field 'tokens': not a charge"), Journal(path):
        pass


def test_a_tidy_file_is_in_order_with_both_games_on_a_line_and_reads_the_same(tmp_path: Path) -> None:
    path, order = tmp_path / "j.jsonl", ["s1", "s2", "p11", "p12", "p21", "p22"]
    with Journal(path) as journal:
        for entry in ENTRIES:
            journal.add(entry)
        journal.tidy(order)
    records = read_records(path)
    assert [(r["question_id"], r.get("judgment") or r["g1_judgment"]) for r in records] == [
        (1, "[[5]]"), (2, "?"), (1, "[[A]]"), (2, "[[A]]"),
    ]  # fmt: skip
    assert (records[2]["g2_judgment"], records[3]["g1_winner"], records[3]["g2_winner"]) == (None, "model_1", "model_2")
    with Journal(path) as journal:
        assert all(journal.find(entry.asked) == entry for entry in ENTRIES)
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_written_for_something_else_is_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        for entry in ENTRIES[:2]:
            journal.add(entry)
    with Journal(path) as journal:
        journal.refuse_others({"p22", "s1"})
        with pytest.raises(BadInput, match=r"row 2: holds 1 judgments of other answers.*question 1 turn 1"):
            journal.refuse_others({"p22"})


def test_a_file_of_judgments_from_elsewhere_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    line = json.dumps({"question_id": 1, "turn": 1, "judgment": "[[5]]", "judge": ["j", "p"], "model": "m"}) + "\n"
    path.write_text(line)
    with pytest.raises(BadInput, match="row 1, field 'asked': a judgment that was not written here"), Journal(path):
        pass
    assert path.read_text() == line and len(read_judgments(path)) == 1


def test_two_cannot_write_into_one_file(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl"), pytest.raises(BadInput, match="another process"), Journal(tmp_path / "j.jsonl"):
        pass
    with Journal(tmp_path / "j.jsonl"):
        pass


@pytest.mark.parametrize("text", ["my notes", "{}", '{"instruction": "a", "output": "b"}', "[1, 2]"])
def test_a_file_that_holds_something_else_is_refused_and_left_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "j.jsonl"
    for written in (text, text + "\n"):
        path.write_text(written)
        with pytest.raises(BadInput), Journal(path):
            pass
        assert path.read_text() == written


def test_a_place_that_takes_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written"), Journal(tmp_path):
        pass
