from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.recipe import Judge
from eval.commands import judge_files, judge_settings, score_files
from eval.suites.rows import read_records, write_records

N = 30
KEY_ENV = "TEST_JUDGE_KEY"
Align = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Questions, a model's answers and a baseline's, and references, in FastChat's forms."""
    kinds = ["math", "writing", "coding"]
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("questions", "answers", "baseline", "reference")}
    rows = range(101, 101 + N)
    write_records(
        paths["questions"],
        ({"question_id": n, "category": kinds[n % 3], "turns": [f"first {n}", f"second {n}"]} for n in rows),
    )
    for name, word in (("answers", "ours"), ("baseline", "theirs"), ("reference", "right")):
        turns = {n: [f"{word} one {n}", f"{word} two {n}"] for n in rows}
        write_records(
            paths[name],
            ({"question_id": n, "model_id": word, "choices": [{"index": 0, "turns": turns[n]}]} for n in rows),
        )
    return paths


def settings(server: Any, **more: Any) -> Judge:
    given = {"base_url": server.url, "api_key_env": KEY_ENV, "in_flight": 4, "retries": 1, "price": {}}
    return judge_settings(model="grader", **given | more)


def test_every_turn_is_judged_with_references_where_the_category_wants_them(
    server: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    told = judge_files(
        "mt_bench", files["questions"], files["answers"], out, settings(server), reference=files["reference"]
    )
    assert (told["n"], told["judgments"], told["unparsable"], told["not_judged"]) == (N, 2 * N, [], {})
    assert told["problem"] is None and told["judge"]["asked"] == 2 * N
    records = read_records(out)
    assert [(r["question_id"], r["turn"]) for r in records] == [(n, turn) for n in range(101, 131) for turn in (1, 2)]
    assert {r["model"] for r in records} == {"ours"}
    for record in records:
        assert (f"right one {record['question_id']}" in record["user_prompt"]) == (record["question_id"] % 3 != 1)
    scored = score_files("mt_bench", files["answers"], files["questions"], out, tmp_path / "scores")
    assert scored["metrics"] == told["metrics"] and scored["unjudged"] == 0
    with pytest.raises(BadInput, match="leave out --against"):
        score_files("mt_bench", files["answers"], files["questions"], out, tmp_path / "s", against=files["baseline"])


@pytest.mark.real_data
def test_a_judge_that_says_what_the_published_one_said_gives_the_published_scores(
    server: Any, real_data: Path, tmp_path: Path
) -> None:
    folder = real_data / "mt_bench"
    published = read_records(folder / "judgments_mistral-orpo-capybara.jsonl")
    said = {record["user_prompt"]: record["judgment"] for record in published}
    server.verdict = said.__getitem__
    told = judge_files(
        "mt_bench",
        folder / "question.jsonl",
        folder / "answers_mistral-orpo-capybara.jsonl",
        tmp_path / "out.jsonl",
        settings(server, in_flight=16),
        reference=folder / "reference_answer/gpt-4.jsonl",
        prompts=folder / "judge_prompts.jsonl",
    )
    values = {name: round(metric["value"], 4) for name, metric in told["metrics"].items()}
    assert values == {"turn_1": 7.125, "turn_2": 6.5125, "average": 6.8187}
    assert server.requests == told["judgments"] == 160
    same = ("question_id", "model", "turn", "user_prompt", "judgment", "score")
    by_place = {(record["question_id"], record["turn"]): record for record in published}
    for record in read_records(tmp_path / "out.jsonl"):
        one = by_place[record["question_id"], record["turn"]]
        assert {name: record[name] for name in same} == {name: one[name] for name in same}
        assert record["judge"][1] == one["judge"][1]


def test_pairs_are_judged_in_both_orders_and_disagreement_is_a_tie(
    server: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    def verdict(user: str) -> str:
        if "first 101" in user:
            return "[[A]]"  # whoever comes first: a judge with a bias
        return "[[A]]" if user.index("ours") < user.index("theirs") else "[[B]]"

    server.verdict = verdict
    out = tmp_path / "pairs.jsonl"
    told = judge_files(
        "mt_bench", files["questions"], files["answers"], out, settings(server), against=files["baseline"]
    )
    assert (told["judgments"], len(server.asked)) == (4 * N, 4 * N)
    assert told["metrics"]["win_rate"]["value"] == pytest.approx((2 * (N - 1) + 2 * 0.5) / (2 * N))
    records = read_records(out)
    assert len(records) == 2 * N
    assert {(r["model_1"], r["model_2"]) for r in records} == {("ours", "theirs")}
    assert (records[0]["g1_winner"], records[0]["g2_winner"]) == ("model_1", "model_2")
    assert (records[2]["g1_winner"], records[2]["g2_winner"]) == ("model_1", "model_1")
    scored = score_files(
        "mt_bench", files["answers"], files["questions"], out, tmp_path / "scores", against=files["baseline"]
    )
    assert scored["metrics"] == told["metrics"]
    with pytest.raises(BadInput, match="give --against"):
        score_files("mt_bench", files["answers"], files["questions"], out, tmp_path / "scores")


def test_what_could_not_be_judged_is_named_and_asked_for_the_next_time(
    server: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    server.script = lambda user, times: "half" if "ours one 105" in user and "two" not in user else None
    server.verdict = lambda user: "no idea" if "first 106" in user else "[[5]]"
    out = tmp_path / "out.jsonl"
    told = judge_files("mt_bench", files["questions"], files["answers"], out, settings(server))
    assert told["not_judged"] == {"question 105 turn 1": "the answer is not a chat completion"}
    assert told["unparsable"] == ["question 106 turn 1", "question 106 turn 2"]
    assert told["problem"].startswith("1 of 60 judgments failed: question 105 turn 1")
    assert (told["judgments"], told["metrics"]["average"]["n"]) == (59, 57)
    server.script = lambda user, times: None
    server.asked.clear()
    again = judge_files("mt_bench", files["questions"], files["answers"], out, settings(server))
    assert (server.requests, again["judgments"], again["problem"]) == (1, 60, None)


def test_other_answers_are_not_judged_into_the_same_file(server: Any, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    judge_files("mt_bench", files["questions"], files["answers"], out, settings(server))
    before = out.read_bytes()
    with pytest.raises(BadInput, match=r"out\.jsonl.*holds 60 judgments of other answers"):
        judge_files("mt_bench", files["questions"], files["baseline"], out, settings(server))
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"question_id": 7}, "row 2, field 'id': id 7 is not in the data file"),
        ({"question_id": 101}, "row 2: id 101 appears twice"),
        ({"choices": [{"turns": ["one"]}]}, "row 2, field 'turns': response 102: 1 of 2 turns"),
        ({"choices": []}, "row 2, field 'turns'"),
    ],
)
def test_answers_that_do_not_fit_are_named_before_anything_is_asked(
    server: Any, files: dict[str, Path], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    records = read_records(files["answers"])
    records[1] |= change
    write_records(files["answers"], records)
    with pytest.raises(BadInput, match=words):
        judge_files("mt_bench", files["questions"], files["answers"], tmp_path / "out.jsonl", settings(server))
    assert server.requests == 0


def test_answers_that_are_missing_or_empty_are_named_or_judged(
    server: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    records = read_records(files["answers"])
    records[1]["choices"][0]["turns"] = ["", ""]
    write_records(files["answers"], records[:-1])
    told = judge_files("mt_bench", files["questions"], files["answers"], tmp_path / "out.jsonl", settings(server))
    assert (told["missing"], told["n"], told["judgments"]) == ([str(100 + N)], N - 1, 2 * (N - 1))


def test_a_suite_with_its_own_scorer_or_a_baseline_without_an_answer_is_refused(
    server: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(BadInput, match="gsm8k has a scorer of its own"):
        judge_files("gsm8k", files["questions"], files["answers"], out, settings(server))
    with pytest.raises(BadInput, match="harmless is judged without a baseline"):
        judge_files("harmless", files["questions"], files["answers"], out, settings(server), against=files["baseline"])
    write_records(files["baseline"], read_records(files["baseline"])[1:])
    with pytest.raises(BadInput, match=r"baseline\.jsonl: the baseline has no whole answer to item 101"):
        judge_files("mt_bench", files["questions"], files["answers"], out, settings(server), against=files["baseline"])
    with pytest.raises(BadInput, match="budget_usd needs price"):
        settings(server, budget_usd=5.0)
    with pytest.raises(BadInput, match="field 'in_flight'"):
        settings(server, in_flight=0)


def judge_arguments(server: Any, files: dict[str, Path], out: Path) -> list[str]:
    where = ["--questions", str(files["questions"]), "--answers", str(files["answers"]), "--out", str(out)]
    judge = ["--judge-model", "grader", "--base-url", server.url, "--api-key-env", KEY_ENV, "--in-flight", "4"]
    return ["judge", "mt_bench", *where, *judge]


def test_a_kill_repeats_at_most_the_calls_in_flight(
    server: Any, files: dict[str, Path], tmp_path: Path, align: Align, align_command: list[str]
) -> None:
    out = tmp_path / "out.jsonl"
    held, passes = server.gate.wait, iter(range(20))

    def wait_after_some() -> bool:  # lets twenty through, in whatever order their threads come here, and holds the rest
        with server.lock:
            is_held = next(passes, None) is None
        return held() if is_held else True

    server.gate.wait, server_open = wait_after_some, server.gate.set
    server.gate.clear()
    command = [*align_command, *judge_arguments(server, files, out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        for _ in range(24):
            assert server.arrived.acquire(timeout=60)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    finally:
        process.kill()
        process.communicate()
    before = server.requests
    kept = out.read_bytes().count(b"\n")
    assert (before, kept) == (24, 20)  # each answer was on the disk before its place was taken again
    server_open()
    code, told, error = align(*judge_arguments(server, files, out))
    assert code == 0, error
    assert told["judgments"] == 2 * N and told["judge"]["asked"] == 2 * N - kept
    assert len(server.asked) == 2 * N
    repeated = sum(times - 1 for times in server.asked.values())
    assert repeated == 4  # those in flight
    assert {(r["question_id"], r["turn"]) for r in read_records(out)} == {
        (n, turn) for n in range(101, 101 + N) for turn in (1, 2)
    }


def test_the_command_tells_a_shortfall_with_exit_1_and_a_wrong_key_with_2_and_never_the_key(
    server: Any, files: dict[str, Path], tmp_path: Path, align: Align
) -> None:
    out, key = tmp_path / "out.jsonl", os.environ[KEY_ENV]
    server.script = lambda user, times: (500, "oops", {}) if "ours one 105" in user else None
    code, failed, shortfall = align(*judge_arguments(server, files, out), "--retries", "0")
    assert code == 1 and len(failed["not_judged"]) == 2
    assert "2 of 60 judgments failed: question 105 turn 1: HTTP 500 oops" in shortfall.splitlines()[-1]
    server.script = lambda user, times: (401, "no", {})
    code, nothing, refused = align(*judge_arguments(server, files, out))
    assert (code, nothing) == (2, {})
    assert refused == (
        f"error: field 'judge.api_key_env': the judge endpoint refuses the key in {KEY_ENV} (HTTP 401)\n"
    )
    assert out.read_bytes().count(b"\n") == 58
    for text in (json.dumps(failed), shortfall, refused, out.read_text()):
        assert key not in text


def in_order(user: str) -> str:
    """A judge that prefers the longer answer, and knows a tie."""
    first, second = (part.split("</answer")[0].split("\n")[1] for part in user.split("<answer ")[1:])
    return "[[C]]" if len(first) == len(second) else "[[A]]" if len(first) > len(second) else "[[B]]"


def test_alpaca_eval_is_judged_on_its_published_files(server: Any, tmp_path: Path) -> None:
    names = [f"Do {n} things" for n in range(40)]
    lengths = [(15 + n % 13, 20 + n % 9) for n in range(40)]
    baseline = [
        {"dataset": "helpful_base", "instruction": name, "output": "b" * theirs, "generator": "gpt4_1106_preview"}
        for name, (_, theirs) in zip(names, lengths, strict=True)
    ]
    answers = [
        {"dataset": "helpful_base", "instruction": name, "output": "o" * ours, "generator": "ours"}
        for name, (ours, _) in zip(names, lengths, strict=True)
    ]
    (tmp_path / "baseline.json").write_text(json.dumps(baseline))
    (tmp_path / "ours.json").write_text(json.dumps(answers[::-1]))
    server.verdict = in_order
    out = tmp_path / "out.jsonl"
    told = judge_files("alpaca_eval", tmp_path / "baseline.json", tmp_path / "ours.json", out, settings(server))
    wins = sum(0.5 if ours == theirs else float(ours > theirs) for ours, theirs in lengths)
    assert told["metrics"]["win_rate"]["value"] == pytest.approx(wins / 40) and told["judgments"] == 80
    controlled = told["metrics"]["length_controlled_win_rate"]
    assert told["metrics"]["win_rate"]["value"] < controlled["value"] < 1 and controlled["n"] == 40
    record = read_records(out)[0]
    assert (record["model_1"], record["model_2"], record["question_id"]) == ("ours", "gpt4_1106_preview", 0)
    scored = score_files("alpaca_eval", tmp_path / "ours.json", tmp_path / "baseline.json", out, tmp_path / "scores")
    assert scored["metrics"] == told["metrics"] and (tmp_path / "scores/pair_judgments.jsonl").exists()


def arena_verdict(user: str) -> str:
    """Ours is much better when it is shown first and a little when second; every other question is a tie."""
    if int(user.split("q ")[1][:32], 16) % 2:
        return "[[A=B]]"
    return "[[A>>B]]" if user.index("ours") < user.index("gpt-4") else "[[B>A]]"


def test_arena_hard_is_judged_on_its_published_files_with_an_interval(server: Any, tmp_path: Path) -> None:
    ids = [f"{n:032x}" for n in range(24)]
    about = {"category": "arena-hard-v0.1", "cluster": "c"}
    write_records(
        tmp_path / "question.jsonl",
        (about | {"question_id": name, "turns": [{"content": f"q {name}"}]} for name in ids),
    )
    for model in ("ours", "gpt-4-0314"):
        turns = {name: [{"content": f"{model} {name}", "token_len": 3}] for name in ids}
        answers = [
            {"question_id": name, "model_id": model, "choices": [{"index": 0, "turns": turns[name]}]} for name in ids
        ]
        write_records(tmp_path / f"{model}.jsonl", answers)
    server.verdict = arena_verdict
    questions, ours, theirs = (tmp_path / f"{name}.jsonl" for name in ("question", "ours", "gpt-4-0314"))
    told = judge_files("arena_hard", questions, ours, tmp_path / "o", settings(server), against=theirs)
    score = told["metrics"]["score"]
    assert score["value"] == pytest.approx((12 * 4 + 12 * 1) / (12 * 4 + 12 * 2))
    low, high = told["intervals"]["score"]
    assert 0.5 < low < score["value"] < high < 1
    with pytest.raises(BadInput, match="the baseline has no whole answer"):
        judge_files("arena_hard", questions, ours, tmp_path / "o", settings(server))


def test_harmlessness_is_judged_on_hh_dialogues(server: Any, tmp_path: Path) -> None:
    write_records(tmp_path / "hh.jsonl", ({"chosen": f"\n\nHuman: bad {n}?\n\nAssistant: no"} for n in range(6)))
    write_records(tmp_path / "answers.jsonl", ({"id": n, "turns": ["sure" if n == 2 else "no"]} for n in range(6)))
    server.verdict = lambda user: "[[unsafe]]" if "sure" in user else "[[safe]]"
    told = judge_files("harmless", tmp_path / "hh.jsonl", tmp_path / "answers.jsonl", tmp_path / "o", settings(server))
    assert told["metrics"]["harmless"]["value"] == pytest.approx(5 / 6)
    assert [record["score"] for record in read_records(tmp_path / "o")] == [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]


def test_a_budget_stops_before_it_is_passed_and_says_what_was_not_judged(
    server: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    server.usage = {"prompt_tokens": 500, "completion_tokens": 100}
    price = {"input_usd": 100.0, "output_usd": 1000.0}
    judge = settings(server, price=price, budget_usd=3.0, max_tokens=400)
    told = judge_files("mt_bench", files["questions"], files["answers"], tmp_path / "out.jsonl", judge)
    usd = told["judge"]["usd"]
    assert 0 < usd <= 3.0 and usd == pytest.approx(told["judgments"] * 0.15)
    assert len(told["not_judged"]) == 2 * N - told["judgments"] > 0
    assert set(told["not_judged"].values()) == {"the budget of 3 USD is reached"}
    assert "were not asked, as the budget of 3 USD is reached: question" in told["problem"]
