"""Votes of people: a ballot shows who wrote nothing, and its votes give the right model's win rate."""

from __future__ import annotations

import csv
import json
import random
import re
import statistics
from pathlib import Path

import pytest

from alignment.errors import BadInput
from eval.statistics import win_rate
from eval.votes import COLUMNS, Key, Pair, Question, Vote, blind, rate_of, read_key, read_votes, result_of, write_ballot
from tests.browser import WIDTHS, Look, look

QUESTIONS = [Question(id=str(n), turns=(f"Question {n}?",)) for n in range(40)]
A = {question.id: (f"first {question.id}",) for question in QUESTIONS}
B = {question.id: (f"second {question.id}",) for question in QUESTIONS}
NAMES = ("small@1", "small@2")


def ballot(seed: int = 7, limit: int | None = None) -> tuple[Key, list[dict[str, object]]]:
    return blind(QUESTIONS, A, B, NAMES, "asked.jsonl", seed, limit)


def votes_for(key: Key, side: str, pairs: list[str] | None = None, voter: str = "x") -> list[Vote]:
    """Votes of somebody who always prefers one model, wherever it stands."""
    other = {"left": "right", "right": "left"}
    return [
        Vote(pair=name, vote="left" if pair.left == side else other["left"], voter=voter)
        for name, pair in key.pairs.items()
        if pairs is None or name in pairs
    ]


def write_votes(path: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])
    return path


def test_sides_are_balanced_and_order_and_sides_come_from_the_seed() -> None:
    key, page = ballot()
    lefts = [pair.left for pair in key.pairs.values()]
    assert lefts.count("a") == lefts.count("b") == 20
    assert ballot() == (key, page) and ballot(8)[0].pairs != key.pairs
    for shown in page:
        pair = key.pairs[str(shown["pair"])]
        (turn,) = shown["turns"]  # type: ignore[misc]
        left, right = (A, B) if pair.left == "a" else (B, A)
        assert (turn["left"], turn["right"]) == (left[pair.item][0], right[pair.item][0])
    assert len(ballot(limit=10)[0].pairs) == 10


def test_nothing_that_voters_get_says_which_model_is_which(tmp_path: Path) -> None:
    key, page = ballot()
    write_ballot(tmp_path, key, page)
    text = "".join(path.read_text(encoding="utf-8") for path in tmp_path.iterdir())
    assert "small@" not in text
    turned = key.model_copy(update={"pairs": {n: p.model_copy(update={"left": "a"}) for n, p in key.pairs.items()}})
    write_ballot(tmp_path, turned, page)
    assert "".join(path.read_text(encoding="utf-8") for path in tmp_path.iterdir()) == text
    assert "first" not in key.model_dump_json() and "Question" not in key.model_dump_json(), "the key holds no text"


def test_text_of_models_is_shown_and_never_run(tmp_path: Path) -> None:
    bad = "</div><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}"
    key, page = blind(QUESTIONS[:1], {"0": (bad,)}, {"0": ("b",)}, NAMES, "x", 0, None)
    write_ballot(tmp_path, key, page)
    text = (tmp_path / "vote.html").read_text(encoding="utf-8")
    assert text.count("<script>") == 1 and "<img" not in text and "{{ 7*7 }}" in text
    assert "default-src 'none'" in text and re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", text)
    assert "first" not in (tmp_path / "votes.csv").read_text(encoding="utf-8")


def test_the_win_rate_is_the_second_models_whichever_side_it_stood_on() -> None:
    key, _ = ballot()
    result = result_of(key, votes_for(key, "b"))
    assert (result["win_rate"], result["wins"], result["losses"], result["verdict"]) == (1.0, 40, 0, "b")
    assert result_of(key, votes_for(key, "a"))["win_rate"] == 0.0
    names = list(key.pairs)
    mixed = votes_for(key, "b", names[:20]) + votes_for(key, "a", names[20:30])
    mixed += [Vote(pair=name, vote="tie", voter="x") for name in names[30:]]
    result = result_of(key, mixed)
    outcomes = [1.0] * 20 + [0.0] * 10 + [0.5] * 10
    wanted = win_rate(outcomes, [str(n) for n in range(40)])
    assert result["win_rate"] == wanted.mean.value == 0.625
    assert result["ci95"] == pytest.approx([wanted.low, wanted.high]) and result["verdict"] == "undecided"


def test_votes_on_one_prompt_are_not_independent() -> None:
    key, _ = ballot()
    names = list(key.pairs)
    once = votes_for(key, "b", names[:24]) + votes_for(key, "a", names[24:])
    five = [vote.model_copy(update={"voter": f"v{n}"}) for n in range(5) for vote in once]
    first, more = result_of(key, once), result_of(key, five)
    assert more["ci95"] == pytest.approx(first["ci95"], abs=0.02), "five who agree are no five times the evidence"
    assert (more["voters"], more["votes"], more["agreement"]) == (5, 200, 1.0) and first["agreement"] is None


def test_equal_answers_are_ties_and_nobody_votes_on_them() -> None:
    same = B | {"0": A["0"], "1": A["1"]}
    key, page = blind(QUESTIONS, A, same, NAMES, "x", 0, None)
    assert sorted(key.identical) == ["0", "1"] and len(page) == 38
    result = result_of(key, votes_for(key, "b"))
    assert (result["identical"], result["ties"]) == (2, 0) and result["win_rate"] == pytest.approx(39 / 40)
    with pytest.raises(BadInput, match="both give the same answers to all"):
        blind(QUESTIONS, A, A, NAMES, "x", 0, None)
    with pytest.raises(BadInput, match="no item has an answer of both"):
        blind(QUESTIONS, A, {}, NAMES, "x", 0, None)


def half_identical(count: int) -> Key:
    """A ballot of which the first half of the items has different answers, and the second half equal ones."""
    questions = [Question(id=str(n), turns=(f"Question {n}?",)) for n in range(count)]
    first = {question.id: (f"first {question.id}",) for question in questions}
    second = {question.id: (f"second {question.id}",) for question in questions[: count // 2]}
    return blind(questions, first, first | second, NAMES, "x", 0, None)[0]


@pytest.mark.parametrize(("voters", "reached"), [(1, 100), (1, 20), (3, 100), (5, 100)])
def test_the_win_rate_does_not_depend_on_how_many_voted(voters: int, reached: int) -> None:
    key = half_identical(200)
    names = list(key.pairs)[:reached]
    lost = names[::10]
    won = [name for name in names if name not in lost]
    votes = [
        vote for n in range(voters) for vote in votes_for(key, "b", won, f"v{n}") + votes_for(key, "a", lost, f"v{n}")
    ]
    result = result_of(key, votes)
    assert (result["votes"], result["pairs_voted"], len(key.identical)) == (voters * reached, reached, 100)
    assert result["win_rate"] == pytest.approx(0.7)  # 90 % of the open half, and one half of the other
    low, high = result["ci95"]
    assert 0.5 < low < 0.7 < high < 0.9 and result["verdict"] == "b"
    if reached == 100:
        whole = win_rate([1.0] * 90 + [0.0] * 10 + [0.5] * 100, [str(n) for n in range(200)])
        assert (low, high) == pytest.approx((whole.low, whole.high), abs=1e-3)
    else:
        assert high - low > 0.09, "a fifth of the pairs is less evidence"


def test_a_pair_on_which_voters_differ_counts_once_with_their_mean() -> None:
    key, _ = ballot()
    first, *others = key.pairs
    votes = votes_for(key, "b", others[:19]) + votes_for(key, "a", others[19:])
    for n in range(4):
        votes += votes_for(key, "b" if n else "a", [first], f"v{n}")
    result = result_of(key, votes)
    assert result["win_rate"] == pytest.approx((19 + 0.75) / 40)
    assert (result["wins"], result["losses"], result["votes"]) == (22, 21, 43)


@pytest.mark.parametrize("reached", [1, 2, 9, 10, 40])
def test_an_interval_is_no_point_if_one_side_always_wins(reached: int) -> None:
    key = half_identical(80)
    won, lost = (result_of(key, votes_for(key, side, list(key.pairs)[:reached])) for side in "ba")
    assert (won["win_rate"], lost["win_rate"]) == (0.75, 0.25)
    assert won["ci95"][0] < 0.7 and 0.78 < won["ci95"][1] <= 1
    assert [1 - end for end in reversed(won["ci95"])] == pytest.approx(lost["ci95"])
    assert (won["verdict"] == "b") is (won["p_value"] < 0.05) is (reached > 3)


@pytest.mark.parametrize(
    ("open_share", "wins", "reached"), [(0.5, 0.9, 20), (0.5, 0.9, 100), (0.8, 0.6, 40), (0.3, 0.95, 15)]
)
def test_the_interval_covers_the_win_rate_of_items_drawn_at_random(
    open_share: float, wins: float, reached: int
) -> None:
    draw, covered, rates = random.Random(0), 0, []
    for _ in range(2000):
        names = [f"p{n}" for n in range(sum(draw.random() < open_share for _ in range(200)))]
        pairs = {name: Pair(item=name, cluster=name, left="a") for name in names}
        same = {f"i{n}": f"i{n}" for n in range(200 - len(names))}
        key = Key(ballot="x", a="a", b="b", items="x", seed=0, pairs=pairs, identical=same)
        found = rate_of(key, {name: float(draw.random() < wins) for name in names[:reached]})
        assert found.low is not None and found.high is not None
        truth = 0.5 + open_share * (wins - 0.5)
        covered += found.low <= truth <= found.high
        rates.append(found.mean.value - truth)
    assert statistics.fmean(rates) == pytest.approx(0.0, abs=3 * statistics.stdev(rates) / 2000**0.5)
    assert covered >= 0.93 * 2000


def test_a_file_of_votes_is_read_or_refused_with_its_row(tmp_path: Path) -> None:
    key, _ = ballot()
    good = write_votes(
        tmp_path / "ann.csv",
        [(key.ballot, "p001", "Left", ""), (key.ballot, "p002", "", ""), (key.ballot, "p003", "tie", "bo")],
    )
    assert [(one.pair, one.vote, one.voter) for one in read_votes(good, key)] == [
        ("p001", "left", "ann"),
        ("p003", "tie", "bo"),
    ]
    first = (key.ballot, "p001", "left", "x")
    for rows, why in (
        ([("other", "p001", "left", "")], r"row 1, field 'ballot'.*a vote on ballot other"),
        ([first, (key.ballot, "p999", "left", "")], r"row 2, field 'pair'.*no pair 'p999'"),
        ([(key.ballot, "p001", "lef", "")], r"field 'vote'.*'lef' is not left, right or tie; did you mean left\?"),
        ([first, first], r"row 2.*x voted on p001 before"),
    ):
        with pytest.raises(BadInput, match=why):
            read_votes(write_votes(tmp_path / "bad.csv", rows), key)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BadInput, match="no column ballot, pair, vote: not a table of votes"):
        read_votes(tmp_path / "other.csv", key)
    with pytest.raises(BadInput, match="ann voted on p001 in two files"):
        result_of(key, [vote for _ in range(2) for vote in read_votes(good, key)])
    with pytest.raises(BadInput, match="no votes"):
        result_of(key, [])


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    key, _ = ballot()
    (tmp_path / "key.json").write_text(key.model_dump_json())
    assert read_key(tmp_path / "key.json") == key
    for text in ("", "[]", json.dumps({"ballot": "x"}), "[" * 100_000):
        (tmp_path / "key.json").write_text(text)
        with pytest.raises(BadInput, match="not a key of `align ab export`"):
            read_key(tmp_path / "key.json")
    with pytest.raises(BadInput, match="no such file"):
        read_key(tmp_path / "none.json")


def test_the_page_is_whole_on_a_phone_and_on_a_screen_and_keeps_quiet(tmp_path: Path) -> None:
    long = {name: (f"{turns[0]} " + "word " * 80 + "w" * 300,) for name, turns in A.items()}
    key, page = blind(QUESTIONS[:3], long, B, NAMES, "x", 0, None)
    write_ballot(tmp_path, key, page)
    seen = look((tmp_path / "vote.html").read_text(encoding="utf-8"), tmp_path)
    assert seen == Look(overrun=dict.fromkeys(WIDTHS, 0), fetched=[], console=[])
