"""Near-duplicates against the exact similarity, items in rows, and flipped labels against how many were flipped."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from alignment.data import words
from alignment.data.assign import ShardFiles
from alignment.data.embedded import embedded
from alignment.data.forms.table import normalise
from alignment.data.noise import estimate
from alignment.data.overlap import COMMON, ItemRuns, overlap, overlap_numbers
from alignment.data.rows import PreferenceRow, paired_row, write_rows
from alignment.data.words import Words, near_duplicates, runs

LEXICON = [f"w{number}" for number in range(400)]


def shingles(text: str) -> set[tuple[str, ...]]:
    found = [*re.findall(r"\w+", text.lower()), "", ""]
    return {tuple(found[start : start + 3]) for start in range(len(found) - 2)}


def alike(one: PreferenceRow, other: PreferenceRow) -> float:
    """The exact Jaccard similarity of word triples, of the texts that differ most."""
    texts = ((one.prompt, other.prompt), (one.chosen, other.chosen), (one.rejected, other.rejected))
    sets = [(shingles(str(a)), shingles(str(b))) for a, b in texts]
    return min(len(a & b) / len(a | b) for a, b in sets)


def written(folder: Path, rows: Iterable[PreferenceRow]) -> int:
    folder.mkdir(parents=True)
    return write_rows(folder / "rows.parquet", rows)


@pytest.mark.parametrize("at_once", [1 << 21, 64], ids=["one part", "many parts"])
def test_near_duplicates_are_those_that_are_alike_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(words, "PAIRS_AT_ONCE", at_once)
    draw = random.Random(0)

    def text() -> list[str]:
        return draw.choices(LEXICON, k=60)

    def changed(one: str, count: int) -> str:
        parts = one.split()
        for place in draw.sample(range(len(parts)), count):
            parts[place] = draw.choice(LEXICON)
        return " ".join(parts)

    originals = [[" ".join(text()) for _ in range(3)] for _ in range(60)]
    rows = [paired_row(*one, "f", 1) for one in originals]
    rows += [paired_row(*(changed(one, number % 12) for one in originals[number]), "f", 1) for number in range(60)]
    sizes = [written(tmp_path / "a", rows[:60]), written(tmp_path / "b", rows[60:])]
    near = np.asarray(near_duplicates([tmp_path / "a", tmp_path / "b"], sizes, 0.8, tmp_path / "near"))
    assert not near[:60].any()
    for number in range(60):
        exact = alike(rows[number], rows[60 + number])
        if exact > 0.92:
            assert near[60 + number], exact
        elif exact < 0.6:  # 32 values tell a similarity to within 0.09, and the lowest of three texts decides
            assert not near[60 + number], exact


def test_white_space_capitals_and_marks_make_no_difference_and_a_turned_pair_is_no_near_duplicate(
    tmp_path: Path,
) -> None:
    one = ("Tell me of the sea", "It is wide and blue and cold", "I do not know of it at all")
    variants = [one, ("tell me  of the sea!", one[1].upper(), one[2] + "."), ("Tell me\tof the sea", *one[1:])]
    rows = [paired_row(*each, "f", 1) for each in (*variants, (one[0], one[2], one[1]), ("", "a", "b"), ("", "", "b"))]
    size = written(tmp_path / "a", rows)
    near = near_duplicates([tmp_path / "a"], [size], 0.9, tmp_path / "near")
    assert np.asarray(near).tolist() == [0, 1, 1, 0, 0, 0]


def test_runs_do_not_cross_texts_and_are_the_same_in_any_company() -> None:
    alone = runs(*Words().of(["a b c d"]), 3)
    together, owners = runs(*Words().of(["x y", "A, b; C d", "", "z"]), 3)
    assert together.tolist() == alone[0].tolist()
    assert owners.tolist() == [1, 1]


QUESTION = " ".join(LEXICON[:20])


@pytest.mark.parametrize(
    ("texts", "held"),
    [
        (("please answer:  " + QUESTION.upper().replace(" ", ",\n"), "yes", "no"), True),
        (("p", f"They asked {QUESTION} and I said no", "no"), True),
        (("p", " ".join(LEXICON[:19]), "no"), True),
        (("p", " ".join(LEXICON[:14]), "no"), False),
        ((" ".join(LEXICON[:10]), " ".join(LEXICON[10:20]), "no"), False),
        (("p", " ".join(reversed(LEXICON[:20])), "no"), False),
    ],
    ids=["whole, in other letters", "whole, inside", "nearly whole", "a small part", "in two texts", "turned round"],
)
def test_a_row_holds_an_item_of_which_most_stands_in_it(texts: tuple[str, str, str], held: bool) -> None:
    asked = ItemRuns({"suite": {"q7": [QUESTION, "42"], "short": ["too short to be found"]}})
    assert asked.asked == {"suite": 1}
    found = asked.found_in([("a", "b", "c"), texts])
    assert found[0] == set()
    assert [asked.items[place] for place in found[1]] == ([("suite", "q7")] if held else [])


def test_what_the_questions_of_a_suite_share_names_none_of_them(tmp_path: Path) -> None:
    frame = " ".join(LEXICON[:16])
    items = {str(n): [f"{frame} x{n}"] for n in range(COMMON + 1)}
    asked = ItemRuns({"a": items, "b": {"1": [QUESTION]}})
    size = written(tmp_path / "a", [paired_row(frame, "c", "r", "f", 1), paired_row(f"{frame} x3", "c", "r", "f", 2)])
    numbers = overlap_numbers(asked, [overlap(tmp_path / "a", asked)])
    assert size == 2
    assert (numbers.rows, numbers.items) == ({"a": 1, "b": 0}, {"a": ["3"]})


# Flipped labels.


@cache
def micro() -> list[PreferenceRow]:
    records = (one for day in range(3) for one in embedded("micro").preference_records(day, 0))
    return [row for number, one in enumerate(records) if isinstance(row := normalise(one, "f", number), PreferenceRow)]


@pytest.mark.parametrize("planted", [0.0, 0.1, 0.2, 0.3])
def test_the_interval_holds_how_many_labels_were_flipped(planted: float, tmp_path: Path) -> None:
    draw = random.Random(3)
    flips = [draw.random() < planted for _ in micro()]
    rows = [
        paired_row(row.prompt, row.rejected or "", row.chosen or "", "f", 1) if flip else row
        for row, flip in zip(micro(), flips, strict=True)
    ]
    size = written(tmp_path / "a", rows)
    numbers = estimate([ShardFiles("a", size, tmp_path / "a", None)])
    assert numbers.low <= np.mean(flips) <= numbers.high
    assert numbers.high - numbers.low < 0.3, "which would be no answer"
    assert not numbers.swapped
    assert estimate([ShardFiles("a", size, tmp_path / "a", None)]) == numbers, "the same pairs, another estimate"


def test_labels_drawn_by_a_coin_are_told_as_such_and_not_as_clean(tmp_path: Path) -> None:
    draw = random.Random(5)
    texts = [" ".join(draw.choices(LEXICON, k=12)) for _ in range(1200)]
    rows = [paired_row(f"p{n}", texts[2 * n], texts[2 * n + 1], "f", 1) for n in range(600)]
    size = written(tmp_path / "a", rows)
    numbers = estimate([ShardFiles("a", size, tmp_path / "a", None)])
    assert numbers.high == 0.5


def test_a_part_of_many_pairs_is_drawn_by_prompt(tmp_path: Path) -> None:
    size = written(tmp_path / "a", micro())
    numbers = estimate([ShardFiles("a", size, tmp_path / "a", None)], most=500)
    assert 350 < numbers.pairs < 650
