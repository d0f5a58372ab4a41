"""A new judge with known ways is asked about stored answers, and its ways are found."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.recipe import Judge
from eval.gate.succession import Side, sampled
from eval.judge.judgment import Judgment
from eval.judge.prompts import default_prompts
from eval.succession import sides_of, succeed
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
