"""Which scored answers become pairs."""

from __future__ import annotations

import pytest

from eval.ranking.pairs import CLOSE, EQUAL, TOO_FEW, Candidate, delta_pairs, paired, usable


def scored(*scores: float | None) -> list[Candidate]:
    return [
        Candidate(f"answer {k}", k, score=score, failed=None if score is not None else "why")
        for k, score in enumerate(scores)
    ]


def numbers(pairs: tuple[tuple[Candidate, Candidate], ...]) -> list[tuple[int, int]]:
    return [(better.k, worse.k) for better, worse in pairs]


def test_each_rule_pairs_as_it_says() -> None:
    answers = scored(3.0, 9.0, 1.0, 9.0, 5.0)
    assert numbers(paired(answers, "best_worst").pairs) == [(1, 2)]
    assert numbers(paired(answers, "top_k", top_k=5).pairs) == [(1, 2), (3, 0)]
    assert numbers(paired(answers, "top_k", top_k=1).pairs) == [(1, 2)]
    assert set(numbers(paired(answers, "margin", min_gap=5).pairs)) == {(1, 0), (1, 2), (3, 0), (3, 2)}
    drawn = {numbers(paired(answers, "best_random", draw=str(seed)).pairs)[0] for seed in range(40)}
    assert drawn == {(1, 0), (1, 2), (1, 4)}
    assert paired(answers, "best_random", draw="s") == paired(answers, "best_random", draw="s")


def test_ties_low_margins_and_missing_scores_are_counted() -> None:
    assert paired(scored(2.0, 2.0, 2.0), "best_worst").left_out == {EQUAL: 1}
    assert paired(scored(2.0, 1.5), "best_worst", min_gap=1).left_out == {CLOSE: 1}
    some = paired(scored(2.0, None, 1.0), "best_worst")
    assert numbers(some.pairs) == [(0, 2)] and some.left_out == {"no score: why": 1}
    assert paired(scored(2.0), "best_worst").left_out == {TOO_FEW: 1}
    assert paired(scored(2.0, None), "best_worst") == paired(scored(None, 7.0), "best_worst")


def test_answers_that_were_cut_repeated_or_empty_are_in_no_pair() -> None:
    kept, left_out = usable([Candidate("a"), Candidate("a", 1), Candidate("b", 2, ended=False), Candidate(" ", 3)])
    assert [one.k for one in kept] == [0]
    assert left_out == {"the same answer again": 1, "cut at max_new_tokens": 1, "empty answer": 1}


def test_delta_pairs_the_strong_with_the_weak_whatever_they_score() -> None:
    strong, weak = [Candidate("good", 0), Candidate("same", 1)], [Candidate("bad", 0), Candidate("same", 1)]
    made = delta_pairs(strong, weak)
    assert [(better.text, worse.text) for better, worse in made.pairs] == [("good", "bad")]
    assert delta_pairs(strong, []).left_out == {"no answer of the weak generator": 1}


@pytest.mark.parametrize("rule", ["best_worst", "best_random", "margin", "top_k"])
def test_the_better_side_of_every_pair_has_the_higher_score(rule: str) -> None:
    made = paired(scored(1, 4, 4, 2, 8, 5, 7), rule, min_gap=1, top_k=3)  # type: ignore[arg-type]
    assert made.pairs and all(better.score > worse.score for better, worse in made.pairs)  # type: ignore[operator]
