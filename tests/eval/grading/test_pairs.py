from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import scipy.stats

from eval.answers.files import Response
from eval.grading import PAIRS, gradings
from eval.grading.alpaca import ALPACA
from eval.grading.arena import ARENA
from eval.grading.grading import Grader, Grading, by_place
from eval.grading.ratings import SAFETY
from eval.judge.judgment import Judgment
from eval.judge.prompts import default_prompts, parse_prompts
from eval.suites import ALPACA_EVAL, ARENA_HARD, HARMLESS, MT_BENCH, Item
from eval.suites.rows import read_rows
from eval.suites.samples import Sample, metric_means

TWO = Item("101", {"category": "math", "turns": ["q-one", "q-two"], "baseline": ["b-one", "b-two"]})
OURS = Response("101", ("o-one", "o-two"))
VERDICTS = {"win": ("[[A]]", "[[B]]"), "lose": ("[[B]]", "[[A]]"), "tie": ("[[C]]", "[[C]]"), "none": ("?", "[[A]]")}


def judged(question: str, texts: tuple[str, ...], turn: int = 1) -> list[Judgment]:
    return [Judgment(question, turn, "j", "p", "q", text, game=game) for game, text in enumerate(texts, start=1)]


def values(samples: list[Sample], metric: str) -> dict[str, float | None]:
    return {sample.id: sample.value for sample in samples if sample.metric == metric}


def test_both_orders_show_both_answers_swapped() -> None:
    plain = PAIRS.questions(TWO, OURS, default_prompts(), {})
    assert [(q.turn, q.game, q.prompt_name) for q in plain] == [
        (1, 1, "pair-v2"), (1, 2, "pair-v2"), (2, 1, "pair-v2-multi-turn"), (2, 2, "pair-v2-multi-turn"),
    ]  # fmt: skip
    for question in plain:
        last = ("o-one", "b-one") if question.turn == 1 else ("o-two", "b-two")
        ours_first = question.user.index(last[0]) < question.user.index(last[1])
        assert ours_first == (question.game == 1)
        assert ("q-two" in question.user) == (question.turn == 2)
    referred = PAIRS.questions(TWO, OURS, default_prompts(), {"101": ("r-one", "r-two")})
    assert [q.prompt_name for q in referred][1:3] == ["pair-math-v1", "pair-math-v1-multi-turn"]
    assert all("r-one" in q.user and ("r-two" in q.user) == (q.turn == 2) for q in referred)


@pytest.mark.real_data
def test_fastchat_s_published_prompts_can_be_filled(real_data: Path) -> None:
    file = real_data / "mt_bench/judge_prompts.jsonl"
    prompts = parse_prompts(read_rows(file), str(file), PAIRS.prompts)
    (first, second, *_) = PAIRS.questions(TWO, OURS, prompts, {"101": ("r-one", "r-two")})
    assert "[The Start of Assistant A's Answer]\no-one\n" in first.user and "Reference Answer]\nr-one\n" in first.user
    assert "[The Start of Assistant A's Answer]\nb-one\n" in second.user


def test_a_turn_is_won_in_both_orders_or_not_at_all() -> None:
    points = {"A": 1.0, "B": 0.0, "C": 0.5}
    for first, second in product("ABC", repeat=2):
        texts = (f"[[{first}]]", f"[[{second}]]")
        verdicts = by_place([*judged("101", texts), *judged("101", ("[[C]]", "[[C]]"), turn=2)])
        found = values(PAIRS.samples(MT_BENCH, [(TWO, OURS)], verdicts), "win_rate")
        seen = (points[first], 1 - points[second])
        assert found == {"101:1": seen[0] if seen[0] == seen[1] else 0.5, "101:2": 0.5}


@pytest.mark.parametrize("texts", [("[[A]]",), ("[[A]]", "hm"), ("[[A]] [[B]]", "[[B]]"), ()])
def test_a_pair_without_two_verdicts_has_no_value(texts: tuple[str, ...]) -> None:
    samples = PAIRS.samples(MT_BENCH, [(TWO, OURS)], by_place(judged("101", texts)))
    assert values(samples, "win_rate") == {"101:1": None, "101:2": None}
    assert {sample.cluster for sample in samples} == {"101"}


def test_the_win_rate_has_the_interval_of_its_outcomes_by_question() -> None:
    answered = [(Item(str(n), TWO.fields), OURS) for n in range(30)]
    judgments = [
        one
        for item, _ in answered
        for turn in (1, 2)
        for one in judged(item.id, VERDICTS["win" if int(item.id) % 3 else "tie"], turn)
    ]
    samples = PAIRS.samples(MT_BENCH, answered, by_place(judgments))
    oracle = scipy.stats.ttest_1samp([1.0, 1.0, 0.5] * 10, 0.5).confidence_interval()
    assert PAIRS.intervals(samples, {})["win_rate"] == pytest.approx((oracle.low, oracle.high))
    assert PAIRS.intervals(samples[:2], {}) == {} == PAIRS.intervals([], {})


def alpaca_items() -> list[tuple[Item, Response]]:
    kinds = ["win", "win", "lose", "tie", "none"] * 8
    return [
        (
            Item(str(n), {"instruction": f"i{n}", "turns": [f"i{n}"], "baseline": ["b" * (10 + n)], "kind": kind}),
            Response(str(n), ("o" * (5 + 3 * (n % 7)),)),
        )
        for n, kind in enumerate(kinds)
    ]


def test_alpaca_s_rates_are_over_what_has_a_verdict_and_their_means_are_the_rates() -> None:
    from eval.grading.alpaca import length_controlled

    answered = alpaca_items()
    judgments = [one for item, _ in answered for one in judged(item.id, VERDICTS[item.fields["kind"]])]
    samples = ALPACA.samples(ALPACA_EVAL, answered, by_place(judgments))
    means = metric_means(samples, ALPACA_EVAL.metrics)
    assert means["win_rate"].value == pytest.approx(20 / 32) and means["win_rate"].n == 32
    known = [(item, response) for item, response in answered if item.fields["kind"] != "none"]
    points = [{"win": 1.0, "lose": 0.0, "tie": 0.5}[item.fields["kind"]] for item, _ in known]
    longer = [len(item.fields["baseline"][0]) - len(response.turns[0]) for item, response in known]
    rate = length_controlled(points, longer).rate
    assert means["length_controlled_win_rate"].value == pytest.approx(rate, abs=1e-12)
    detail = json.loads(samples[3].detail)
    assert (detail["length"], detail["baseline_length"], detail["judgments"]) == (14, 13, ["[[C]]", "[[C]]"])


def test_alpaca_takes_the_difficulty_when_every_instruction_has_one() -> None:
    answered = alpaca_items()
    judgments = by_place([one for item, _ in answered for one in judged(item.id, VERDICTS[item.fields["kind"]])])
    plain = ALPACA.samples(ALPACA_EVAL, answered, judgments)
    for item, _ in answered[:-1]:
        item.fields["instruction_difficulty"] = (int(item.id) % 5) / 5
    assert ALPACA.samples(ALPACA_EVAL, answered, judgments) != plain
    del answered[0][0].fields["instruction_difficulty"]
    assert ALPACA.samples(ALPACA_EVAL, answered, judgments) == plain


def test_nothing_judged_is_nothing_measured() -> None:
    samples = ALPACA.samples(ALPACA_EVAL, alpaca_items(), {})
    assert {sample.value for sample in samples} == {None} and len(samples) == 80
    assert metric_means(samples, ALPACA_EVAL.metrics) == {}


def arena(question: str) -> tuple[Item, Response]:
    return Item(question, {"turns": [f"q {question}"], "baseline": ["base"]}), Response(question, ("ours",))


def test_arena_counts_much_better_three_times_over_both_games() -> None:
    games = {
        "a": ("[[A>>B]]", "[[B>>A]]"),  # 3 of 3, 3 of 3
        "b": ("[[A>B]]", "[[A=B]]"),  # 1 of 1, 0.5 of 1
        "c": ("[[B>A]]", "[[A>>B]]"),  # 0 of 1, 0 of 3
        "d": ("[[A>B]]", "nothing"),
    }
    answered = [arena(name) for name in games]
    judgments = [one for name, texts in games.items() for one in judged(name, texts)]
    samples = ARENA.samples(ARENA_HARD, answered, by_place(judgments))
    (mean,) = metric_means(samples, ARENA_HARD.metrics).values()
    assert (mean.value, mean.n) == (pytest.approx(7.5 / 12), 3)
    assert samples[3].value is None and json.loads(samples[1].detail)["won"] == 1.5
    low, high = ARENA.intervals(samples, by_place(judgments))["score"]
    assert low == 0.0 and high == 1.0 and ARENA.intervals([], {}) == {}


def test_arena_s_prompt_shows_request_and_answers_in_order() -> None:
    item, response = arena("a")
    first, second = ARENA.questions(item, response, default_prompts(), {})
    assert first.user.index("ours") < first.user.index("base") and second.user.index("base") < second.user.index("ours")
    assert "q a" in first.user and all(level in first.system for level in ("[[A>>B]]", "[[A=B]]", "[[B>>A]]"))


def test_an_answer_is_safe_unsafe_or_not_known() -> None:
    said = {"1": "[[safe]]", "2": "[[unsafe]]", "3": "dunno"}
    answered = [
        (
            Item(name, {"prompt": "p", "turns": ["p"], "category": {"abuse": True, "theft": False}}),
            Response(name, ("r",)),
        )
        for name in (*said, "4")
    ]
    judgments = [Judgment(name, 1, "j", "harmless-v1", "q", text) for name, text in said.items()]
    samples = SAFETY.samples(HARMLESS, answered, by_place(judgments))
    assert values(samples, "harmless") == {"1": 1.0, "2": 0.0, "3": None, "4": None}
    assert json.loads(samples[0].detail)["category"] == "abuse"
    (question,) = SAFETY.questions(*answered[0], default_prompts(), {})
    assert "[[unsafe]]" in question.user and question.game == 0


@pytest.mark.parametrize("way", [*gradings("mt_bench", True), ALPACA, ARENA, SAFETY])
def test_every_way_of_grading_has_its_prompts_and_a_row_for_every_id(way: Grading) -> None:
    suite = {ALPACA: ALPACA_EVAL, ARENA: ARENA_HARD, SAFETY: HARMLESS}.get(way, MT_BENCH)
    parse_prompts([(1, {"name": p.name, "system_prompt": p.system, "prompt_template": p.template})
                   for p in default_prompts().values()], "f", way.prompts)  # fmt: skip
    item = Item("101", TWO.fields if suite is MT_BENCH else TWO.fields | {"turns": ["q"], "baseline": ["b"]})
    grader = Grader((way,), lambda answered: [])
    rows = [(sample.metric, sample.id) for sample in grader.samples(suite, [(item, OURS)], [])]
    assert sorted(rows) == sorted(grader.ids(suite, item))
    asked = way.questions(item, OURS, default_prompts(), {})
    assert [(q.question_id, q.turn, q.game) for q in asked] == grader.places(suite, item)
