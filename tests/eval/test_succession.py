"""A new judge with known ways is asked about stored answers, and its ways are found."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.recipe import Judge
from eval.gate.succession import Agreement, Side, agreement, sampled
from eval.judge.judgment import Judgment
from eval.judge.prompts import default_prompts
from eval.succession import show_succession, sides_of, succeed
from eval.suites.rows import read_records, write_records

SECONDS = 0.5


def settings(server: Any, **more: Any) -> Judge:
    given = {"model": "new", "base_url": server.url, "api_key_env": "TEST_JUDGE_KEY", "in_flight": 16, "retries": 1}
    return Judge.model_validate({"kind": "openai"} | given | more)


@pytest.mark.real_data
def test_a_judge_that_is_harsher_by_a_known_offset_is_found_out_in_time(
    server: Any, real_data: Path, tmp_path: Path
) -> None:
    path = real_data / "mt_bench/judgments_mistral-orpo-capybara.jsonl"
    published = {record["user_prompt"]: float(record["score"]) for record in read_records(path)}
    new = {prompt: max(1.0, score - 1.5) for prompt, score in published.items()}
    server.verdict = lambda user: f"<think>[[10]]?</think> Rating: [[{new[user]:g}]]"
    server.script = lambda user, times: time.sleep(SECONDS)
    began = time.monotonic()
    told = succeed(
        "gpt-4",
        settings(server),
        sides_of("mt_bench", [path]),
        tmp_path / "new.jsonl",
        {"mt_bench": real_data / "mt_bench/judge_prompts.jsonl"},
    )
    assert time.monotonic() - began < 20
    (one,) = told["suites"]
    offset = statistics.fmean(new[prompt] - score for prompt, score in published.items())
    assert (one["metric"], one["n"], one["questions"], server.requests) == ("average", 160, 80, 160)
    assert one["offset"] == pytest.approx(offset) and one["ci95"][0] < offset < one["ci95"][1] < 0
    assert (one["old"], one["new"]) == (pytest.approx(6.81875), pytest.approx(6.81875 + offset))
    assert one["agreement"] == sum(score == new[p] for p, score in published.items()) / 160
    assert one["correlation"] > 0.97 and one["enough"] and told["problem"] is None
    systems = {body["messages"][0]["content"] for body in server.bodies}
    assert any("impartial judge" in text for text in systems) and len(systems) > 1  # each prompt with its own
    server.asked.clear()
    again = succeed(
        "gpt-4",
        settings(server),
        sides_of("mt_bench", [path]),
        tmp_path / "new.jsonl",
        {"mt_bench": real_data / "mt_bench/judge_prompts.jsonl"},
    )
    assert server.requests == 0 and again["suites"] == told["suites"]


def judged(name: str, ratings: Sequence[float], lengths: Sequence[int] | None = None) -> Side:
    """A side whose answers have these ratings by the old judge, question by question, and these lengths."""
    spans = lengths or [10] * len(ratings)
    return Side(
        "mt_bench",
        name,
        tuple(
            Judgment(str(n), 1, "old", "single-v1", f"{name} {n} {'x' * span}", f"[[{rating:g}]]", name)
            for n, (rating, span) in enumerate(zip(ratings, spans, strict=True))
        ),
    )


def test_past_verdicts_are_made_again_by_the_new_judge_and_never_across(server: Any, tmp_path: Path) -> None:
    draw = random.Random(0)
    base = [draw.choice([4.0, 5.0, 6.0]) for _ in range(40)]
    sides = [
        judged("sft", base),
        judged("policy", [one + draw.choice([1.0, 2.0]) for one in base]),
        judged("champion", [one + draw.choice([0.0, 1.0]) for one in base]),
    ]
    old = {one.user_prompt: one.score or 0.0 for side in sides for one in side.judgments}
    # the new judge takes 3 from everybody, and sees nothing in the policy that was better than the champion
    mend = {"sft": 3.0, "champion": 3.0, "policy": 4.0}
    server.verdict = lambda user: f"[[{max(1.0, old[user] - mend[user.partition(' ')[0]]):g}]]"
    told = succeed(
        "old", settings(server), sides, tmp_path / "n.jsonl", pairs=[("sft", "policy"), ("champion", "policy")]
    )
    (one,) = told["suites"]
    verdicts = {(v["baseline"], v["candidate"]): v for v in one["verdicts"]}
    assert verdicts.keys() == {("sft", "policy"), ("champion", "policy")}
    assert verdicts["champion", "policy"]["old_verdict"] == "improved"
    assert verdicts["champion", "policy"]["new_difference"] == pytest.approx(
        verdicts["champion", "policy"]["old_difference"] - 1.0, abs=0.2
    )
    assert verdicts["champion", "policy"]["changed"]
    # across the judges the policy would have lost to everybody
    assert abs(verdicts["sft", "policy"]["new_difference"]) < 1.0 < abs(one["offset"])


ERROR = 0.7
"""Standard deviation of a judge's rating of an answer, on the scale from 1 to 10."""


def said_of(old: dict[str, list[float]], new: dict[str, list[float]]) -> Agreement:
    """What is said of two judges' ratings of the same sides, question by question."""
    sides = [judged(name, ratings) for name, ratings in old.items()]
    answers = {
        (side.name, one.place): replace(one, judge="new", text=f"[[{rating:g}]]")
        for side in sides
        for one, rating in zip(side.judgments, new[side.name], strict=True)
    }
    return agreement(sides, answers)


def drawn(draw: random.Random, by_old: float, by_new: float) -> Agreement:
    """Two judges with the same error on 80 questions, of which each sees the policy ahead by so much."""
    old, new = (
        {side: [5.0 + more + draw.gauss(0, ERROR) for _ in range(80)] for side, more in (("sft", 0.0), ("policy", by))}
        for by in (by_old, by_new)
    )
    return said_of(old, new)


@pytest.mark.parametrize("ahead", [0.0, 0.3, 0.45])
def test_a_verdict_is_not_changed_by_a_judge_that_differs_by_chance(ahead: float) -> None:
    draw = random.Random(0)
    said = [drawn(draw, ahead, ahead).verdicts[0] for _ in range(200)]
    assert sum(past.changed for past in said) <= 16
    assert all((past.old_verdict != past.new_verdict) == (past.changed or past.undecided) for past in said)
    if ahead == 0.3:
        assert sum(past.undecided for past in said) > 40, "the two verdicts alone differ often"


@pytest.mark.parametrize(("by_old", "by_new"), [(0.6, 0.0), (0.0, 0.6), (0.3, -0.3)])
def test_a_verdict_is_changed_by_a_judge_that_sees_another_difference(by_old: float, by_new: float) -> None:
    draw = random.Random(0)
    said = [drawn(draw, by_old, by_new).verdicts[0] for _ in range(100)]
    assert sum(past.changed for past in said) > 80
    assert statistics.fmean(past.shift for past in said) == pytest.approx(by_new - by_old, abs=0.05)
    ends = [past.shift_ci95 for past in said if past.shift_ci95 is not None]
    assert sum(low <= by_new - by_old <= high for low, high in ends) >= 90


def test_opposite_verdicts_are_a_change_also_where_their_difference_is_no_proof() -> None:
    gains = [0.5, 0.0] * 20
    old = {"sft": [5.0] * 40, "policy": [5.0 + gain for gain in gains]}
    new = {"sft": [5.0] * 40, "policy": [4.5 + gain for gain in gains]}
    (past,) = said_of(old, new).verdicts
    assert (past.old_verdict, past.new_verdict, past.shift) == ("improved", "regressed", -0.5)
    assert past.shift_ci95 is not None and past.shift_ci95[0] < -0.5 < 0 < past.shift_ci95[1]
    assert past.changed and not past.undecided


def test_what_is_said_of_a_verdict_is_one_of_three_things(capsys: pytest.CaptureFixture[str]) -> None:
    draw, shown = random.Random(0), {}
    while len(shown) < 3:
        one = drawn(draw, 0.4, draw.choice([0.4, 0.0]))
        (past,) = one.verdicts
        kind = "changed" if past.changed else "undecided" if past.undecided else "stands"
        told = {"old": "old", "new": "new", "out": "n.jsonl", "suites": [one.model_dump(mode="json")], "too_few": []}
        show_succession(told)
        out = capsys.readouterr().out
        assert f"    new - old: {past.shift:+.4f} [" in out
        shown[kind] = out.partition("sft -> policy, 80 turns: ")[2].partition("\n")[0]
    assert shown == {
        "stands": "stands",
        "changed": "CHANGED",
        "undecided": "undecided (the verdicts differ, but both judges may see the same difference)",
    }


def test_repeats_and_verbosity_are_measured_and_widen_the_interval_on_request(server: Any, tmp_path: Path) -> None:
    draw = random.Random(1)
    count = 60
    spans = [draw.randrange(0, 4000) for _ in range(count)]
    sides = [
        judged("sft", [5.0] * count, [10] * count),
        judged("policy", [draw.choice([4.0, 5.0, 6.0]) for _ in range(count)], spans),
    ]
    old = {one.user_prompt: one.score or 0.0 for side in sides for one in side.judgments}
    noise = random.Random(2)

    def verdict(user: str) -> str:
        return f"[[{min(10.0, max(1.0, old[user] + len(user) / 2000 + noise.choice([-1.0, 1.0]))):.3f}]]"

    server.verdict = verdict
    given = ("old", settings(server, in_flight=1), sides, tmp_path / "n.jsonl")
    (plain,) = succeed(*given, repeats=3)["suites"]
    assert plain["noise"]["repeats"] == 4 and server.requests == 2 * count * 4
    assert plain["noise"]["repeat_sd"] == pytest.approx(1.0, abs=0.25)  # ± 1 with equal chances
    low, high = (plain["noise"]["verbosity"] + z * plain["noise"]["verbosity_stderr"] for z in (-3, 3))
    assert low < 0.5 < high  # half a point for a thousand characters
    (wide,) = succeed(*given, repeats=3, widen=True)["suites"]
    (before,), (after,) = plain["verdicts"], wide["verdicts"]
    assert after["old_ci95"] == before["old_ci95"] and server.requests == 2 * count * 4
    assert after["new_ci95"][0] < before["new_ci95"][0] - 0.3 and after["new_ci95"][1] > before["new_ci95"][1] + 0.3


def pairs(orders: Sequence[tuple[str, str]]) -> Side:
    return Side(
        "arena_hard",
        "policy",
        tuple(
            Judgment(f"q{n}", 1, "old", "arena-hard-v1", f"q{n} game {game}", f"[[{text}]]", "policy", game, "base")
            for n, texts in enumerate(orders)
            for game, text in enumerate(texts, start=1)
        ),
    )


def test_a_judge_that_prefers_the_first_answer_is_seen_in_the_share_of_verdicts_that_turn(
    server: Any, tmp_path: Path
) -> None:
    server.verdict = lambda user: "[[A>B]]"
    told = succeed("old", settings(server), [pairs([("A>B", "B>A")] * 12)], tmp_path / "n.jsonl")
    (one,) = told["suites"]
    assert (one["metric"], one["noise"]["flipped"], one["agreement"]) == ("win_rate", [0.0, 1.0], 0.5)


def test_what_is_missing_is_said_and_what_was_judged_is_kept(server: Any, tmp_path: Path) -> None:
    sides = [judged("sft", [5.0] * 6)]
    server.script = lambda user, times: "half" if user.startswith("sft 3 ") else None
    server.verdict = lambda user: "[[6]] or [[7]]" if user.startswith("sft 4 ") else "[[6]]"
    told = succeed("old", settings(server, retries=0), sides, tmp_path / "n.jsonl")
    (one,) = told["suites"]
    assert told["problem"].startswith("1 of 6 judgments failed: question 3 turn 1")
    assert (one["n"], one["unread_new"], one["enough"], told["too_few"]) == (4, 1, False, ["mt_bench"])
    assert len(read_records(tmp_path / "n.jsonl")) == 5
    server.script = lambda user, times: (404, "gone", {})
    with pytest.raises(BadInput, match="has no model 'new'"):
        succeed("old", settings(server), [judged("sft", [5.0] * 7)], tmp_path / "n.jsonl")
    assert len(read_records(tmp_path / "n.jsonl")) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"judge": "another"}, "field 'OLD': no stored judgment of old; there are judgments of another"),
        ({"user_prompt": ""}, "field 'user_prompt': the judgment does not say what the judge was asked"),
        ({"prompt_name": "mine-v3"}, "no judge prompt named 'mine-v3': give --prompts"),
    ],
)
def test_judgments_that_no_other_judge_can_repeat_are_named(
    server: Any, tmp_path: Path, change: dict[str, str], words: str
) -> None:
    given = {"question_id": "1", "turn": 1, "judge": "old", "prompt_name": "single-v1", "user_prompt": "q"} | change
    side = Side("mt_bench", "m", (Judgment(**given, text="[[5]]"),))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=words):
        succeed("old", settings(server), [side], tmp_path / "n.jsonl")
    assert server.requests == 0


def test_a_sample_is_of_the_same_questions_on_every_side_and_grows(tmp_path: Path) -> None:
    sides = [judged("a", [5.0] * 50), judged("b", [5.0] * 40)]
    few, more = ([[one.question_id for one in side.judgments] for side in sampled(sides, n)] for n in (10, 20))
    assert few[0] == few[1] and len(few[0]) == 10
    assert set(few[0]) < set(more[0]) and sampled(sides, None) == sides


def test_a_file_of_several_models_has_a_side_for_each(tmp_path: Path) -> None:
    rows = [
        {
            "question_id": 1,
            "turn": 1,
            "judge": ["old", "single-v1"],
            "model": model,
            "user_prompt": "q",
            "judgment": "?",
        }
        for model in ("a", "b")
    ]
    write_records(tmp_path / "j.jsonl", rows)
    assert [side.name for side in sides_of("mt_bench", [tmp_path / "j.jsonl"])] == ["a", "b"]
    assert "single-v1" in default_prompts()
