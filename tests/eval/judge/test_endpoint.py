from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.generation import openai_client
from alignment.recipe import Judge
from eval.judge.budget import Budget
from eval.judge.endpoint import Endpoint, Outcome
from eval.judge.journal import Journal
from eval.judge.judgment import Question

QUESTIONS = [Question(str(n), turn, "single-v1", "", f"question {n} turn {turn}") for n in range(20) for turn in (1, 2)]
KEY = "sk-secret-0123456789abcdef"
NOW = {"Retry-After-Ms": "1"}


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "FIRST_DELAY", 1e-3)


def settings(server: Any, **more: Any) -> Judge:
    given = {"model": "grader", "base_url": server.url, "api_key_env": "TEST_JUDGE_KEY", "in_flight": 4, "retries": 2}
    return Judge.model_validate({"kind": "openai"} | given | more)


def ask(server: Any, folder: Path, questions: Sequence[Question] = QUESTIONS, **more: Any) -> Outcome:
    with Journal(folder / "j.jsonl") as journal:
        return Endpoint(settings(server, **more)).ask(questions, journal)


def names(outcome: Outcome) -> list[tuple[str, int]]:
    return [(judgment.question_id, judgment.turn) for judgment in outcome.judgments]


def test_every_question_is_asked_once_and_answered_in_order(server: Any, tmp_path: Path) -> None:
    outcome = ask(server, tmp_path)
    assert names(outcome) == [(q.question_id, q.turn) for q in QUESTIONS]
    assert all(judgment.score in (4, 5, 6) for judgment in outcome.judgments)
    assert set(server.asked.values()) == {1} and len(server.asked) == outcome.asked == len(QUESTIONS)
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (400, 200)


def test_exactly_as_many_are_in_flight_as_allowed(server: Any, tmp_path: Path) -> None:
    server.gate.clear()
    thread = threading.Thread(target=ask, args=(server, tmp_path), kwargs={"in_flight": 7})
    thread.start()
    assert all(server.arrived.acquire(timeout=30) for _ in range(7))
    assert server.now == 7 and not server.arrived.acquire(timeout=0.2)  # the eighth does not come
    server.gate.set()
    thread.join(30)
    assert server.most_at_once == 7 and server.requests == len(QUESTIONS)


def test_an_in_flight_of_one_asks_one_after_the_other(server: Any, tmp_path: Path) -> None:
    ask(server, tmp_path, in_flight=1)
    assert server.most_at_once == 1


def test_nothing_is_asked_twice_after_an_interruption(server: Any, tmp_path: Path) -> None:
    first = ask(server, tmp_path)
    path = tmp_path / "j.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:9]) + lines[9][:25])  # killed in the middle of a line
    server.asked.clear()
    again = ask(server, tmp_path)
    assert again.judgments == first.judgments and again.usage == first.usage
    assert server.requests == again.asked == len(QUESTIONS) - 9
    server.asked.clear()
    assert ask(server, tmp_path).asked == server.requests == 0


@pytest.mark.parametrize(
    "bad",
    [(429, "rate_limit_exceeded", NOW), (500, "oops", NOW), (503, "busy", {}), (408, "slow", {}), "half", "cut",
     "garbage", "empty"],
)  # fmt: skip
def test_what_fails_in_passing_is_tried_again(server: Any, tmp_path: Path, bad: Any) -> None:
    server.script = lambda user, times: bad if times <= 2 else None
    assert len(ask(server, tmp_path).judgments) == len(QUESTIONS)
    assert set(server.asked.values()) == {3}


def test_what_keeps_failing_is_named_and_the_rest_is_kept(server: Any, tmp_path: Path) -> None:
    bad = {"question 3 turn 1": (503, "no", NOW), "question 4 turn 2": "half", "question 5 turn 1": "cut"}
    server.script = lambda user, times: bad.get(user)
    outcome = ask(server, tmp_path)
    assert len(outcome.judgments) == len(QUESTIONS) - 3
    assert {question.user: reason for question, reason in outcome.failed.items()} == {
        "question 3 turn 1": "HTTP 503 no",
        "question 4 turn 2": "the answer is not a chat completion",
        "question 5 turn 1": f"the connection to {server.url} failed",
    }
    assert server.asked["question 3 turn 1"] == 3
    server.script = lambda user, times: None
    server.asked.clear()
    assert len(ask(server, tmp_path).judgments) == len(QUESTIONS)
    assert set(server.asked) == set(bad)


def test_no_answer_in_time_is_a_failure_that_says_so(server: Any, tmp_path: Path) -> None:
    server.gate.clear()
    outcome = ask(server, tmp_path, QUESTIONS[:1], timeout_seconds=0.05, retries=1)
    assert list(outcome.failed.values()) == ["no answer within 0.05 s"]
    # who asked gave up on them, however long the server's threads take to see them
    assert all(server.arrived.acquire(timeout=30) for _ in range(2)) and server.requests == 2


def test_an_endpoint_that_is_not_there_is_a_failure_of_every_question(server: Any, tmp_path: Path) -> None:
    server.close()
    assert list(ask(server, tmp_path, QUESTIONS[:2]).failed.values()) == [f"the connection to {server.url} failed"] * 2


class Clock(threading.Event):
    """Waits no time, and remembers how long it was to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout)
        return self.is_set()


def test_retry_after_is_waited_for_and_else_the_wait_doubles(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_client, "FIRST_DELAY", 0.5)
    tells = {1: (429, "slow_down", {"Retry-After": "17"}), 2: (500, "oops", {}), 3: (500, "oops", {}), 4: "cut"}
    server.script = lambda user, times: tells.get(times)
    endpoint = Endpoint(settings(server, retries=4), seed=0)
    endpoint._client._stop = clock = Clock()
    with Journal(tmp_path / "j.jsonl") as journal:
        assert len(endpoint.ask(QUESTIONS[:1], journal).judgments) == 1
    first, *others = [seconds for seconds in clock.waited if seconds is not None]
    assert 17.0 < first <= 17.5  # not all at the same moment
    assert all(longest / 2 <= waited <= longest for waited, longest in zip(others, (1.0, 2.0, 4.0), strict=True))


def test_a_wait_longer_than_five_minutes_is_left_to_the_person(server: Any, tmp_path: Path) -> None:
    server.script = lambda user, times: (429, "slow_down", {"Retry-After": "3600"})
    outcome = ask(server, tmp_path, QUESTIONS[:1])
    assert list(outcome.failed.values()) == ["HTTP 429 slow_down, the endpoint asks to wait 3600 s"]
    assert server.requests == 1


def test_nonsense_and_silence_are_judgments_without_a_verdict(server: Any, tmp_path: Path) -> None:
    server.verdict = lambda user: "As an AI, hm."
    server.script = lambda user, times: "null" if "turn 2" in user else None
    outcome = ask(server, tmp_path, QUESTIONS[:4])
    assert [(judgment.text, judgment.score) for judgment in outcome.judgments] == [
        ("As an AI, hm.", None),
        ("", None),
    ] * 2


def test_a_question_that_the_endpoint_will_never_take_holds_up_no_other(server: Any, tmp_path: Path) -> None:
    server.script = lambda user, times: (400, "context_length_exceeded", {}) if "question 3 " in user else None
    outcome = ask(server, tmp_path)
    assert list(outcome.refused.values()) == ["HTTP 400 context_length_exceeded"] * 2 and not outcome.failed
    assert len(outcome.judgments) == len(QUESTIONS) - 2 and set(server.asked.values()) == {1}


@pytest.mark.parametrize(
    ("status", "word", "words"),
    [
        (401, "invalid_api_key", "refuses the key in TEST_JUDGE_KEY"),
        (403, "forbidden", "refuses the key in TEST_JUDGE_KEY"),
        (402, "payment", "nothing left to spend"),
        (429, "insufficient_quota", "nothing left to spend"),
        (404, "model_not_found", "no model 'grader'"),
        (400, "unsupported_parameter", "refuses every question \\(HTTP 400 unsupported_parameter\\)"),
    ],
)
def test_what_no_question_can_mend_ends_at_once_and_never_tells_the_key(
    server: Any,
    tmp_path: Path,
    status: int,
    word: str,
    words: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    closed, close = threading.Event(), Budget.close

    def close_and_say_so(budget: Budget) -> None:
        close(budget)
        closed.set()

    def refuse(user: str, times: int) -> tuple[int, str, dict[str, str]]:
        if status != 400 and user != QUESTIONS[0].user:
            closed.wait(60)  # the others are answered once the first answer has ended everything
        return status, word, {}

    monkeypatch.setattr(Budget, "close", close_and_say_so)
    server.script = refuse
    with pytest.raises(BadInput, match=words) as caught:
        ask(server, tmp_path, in_flight=4)
    if status != 400:
        assert server.requests <= 5  # those in flight, and the one that took the first one's place
    assert set(server.asked.values()) == {1}
    assert KEY not in str(caught.value) + caplog.text
    assert caught.value.__cause__ is None and (caught.value.__context__ is None or caught.value.__suppress_context__)


def test_a_refused_key_ends_waiting_for_other_questions(server: Any, tmp_path: Path) -> None:
    server.script = lambda user, times: (
        (401, "no", {}) if user == "question 1 turn 1" else (429, "wait", {"Retry-After": "200"})
    )
    with pytest.raises(BadInput, match="refuses the key"):
        ask(server, tmp_path)


def test_the_key_stands_in_no_file_message_or_log(
    server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    server.verdict = lambda user: f"You sent me Bearer {KEY}. [[5]]"  # an endpoint that repeats what it is sent
    server.script = lambda user, times: {"question 3 turn 1": (500, "boom", NOW), "question 4 turn 1": "cut"}.get(user)
    outcome = ask(server, tmp_path)
    assert len(outcome.failed) == 2 and outcome.judgments[0].text == "You sent me Bearer [key]. [[5]]"
    told = capfd.readouterr()
    everything = repr(outcome) + caplog.text + told.out + told.err
    everything += "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in everything


def test_without_a_key_the_public_endpoint_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_JUDGE_KEY", raising=False)
    endpoint = Endpoint(Judge(kind="openai", model="m", api_key_env="TEST_JUDGE_KEY"))
    with Journal(tmp_path / "j.jsonl") as journal, pytest.raises(BadInput, match="environment variable TEST_JUDGE_KEY"):
        endpoint.ask(QUESTIONS, journal)


def test_a_key_that_no_header_can_carry_is_not_sent(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", "sk-line\nbreak")
    with pytest.raises(BadInput, match="the environment variable TEST_JUDGE_KEY holds no usable key") as caught:
        ask(server, tmp_path)
    assert "sk-line" not in str(caught.value) and server.requests == 0


def test_the_settings_go_with_the_question(server: Any, tmp_path: Path) -> None:
    more = {"temperature": None, "max_tokens": 77, "max_tokens_name": "max_completion_tokens"}
    ask(server, tmp_path, QUESTIONS[:1], **more)
    (body,) = server.bodies
    assert body["max_completion_tokens"] == 77 and "temperature" not in body and "max_tokens" not in body
    ask(server, tmp_path, QUESTIONS[:1])
    assert (server.bodies[1]["temperature"], server.bodies[1]["max_tokens"]) == (0, 2048)  # asked anew: other settings


def test_a_budget_is_never_passed_and_what_was_judged_is_kept(server: Any, tmp_path: Path) -> None:
    # a question of 17 bytes + 16 around it + 10 answered = 43 or 44 at most; it takes 15
    outcome = ask(server, tmp_path, max_tokens=10, budget_tokens=200)
    assert outcome.usage.tokens <= 200 < outcome.usage.tokens + 44
    assert len(outcome.judgments) == server.requests == outcome.asked == outcome.usage.tokens // 15 == 11
    assert len(outcome.unasked) == len(QUESTIONS) - 11 and outcome.budget == "200 tokens"
    again = ask(server, tmp_path, max_tokens=10, budget_tokens=200)
    assert (again.asked, len(again.unasked), server.requests) == (0, len(QUESTIONS) - 11, 11)  # the limit holds on
    assert len(ask(server, tmp_path, max_tokens=10, budget_tokens=4000).judgments) == len(QUESTIONS)


def test_a_budget_in_money_counts_both_directions(server: Any, tmp_path: Path) -> None:
    price = {"input_usd": 1_000_000, "output_usd": 2_000_000}  # a dollar a token, two a token answered
    outcome = ask(server, tmp_path, max_tokens=5, budget_usd=100, price=price)
    assert len(outcome.judgments) == 3  # 20 dollars each, and the fourth could take 33 + 10
    usd = outcome.usage.usd(settings(server, price=price).price)
    assert usd == pytest.approx(60) and outcome.budget == "100 USD"


def test_a_call_that_may_have_been_charged_is_held_against_the_budget(server: Any, tmp_path: Path) -> None:
    server.script = lambda user, times: "cut"
    outcome = ask(server, tmp_path, QUESTIONS[:10], max_tokens=10, budget_tokens=100, in_flight=1, retries=0)
    assert (len(outcome.failed), len(outcome.unasked), server.requests) == (2, 8, 2)


@pytest.mark.parametrize("bad", ["cut", "garbage"])
def test_what_was_charged_for_nothing_is_held_against_the_budget_over_resumptions(
    server: Any, tmp_path: Path, bad: str
) -> None:
    server.script = lambda user, times: bad
    limits = {"max_tokens": 10, "budget_tokens": 100, "in_flight": 1, "retries": 0}
    first = ask(server, tmp_path, QUESTIONS[:10], **limits)
    again = ask(server, tmp_path, QUESTIONS[:10], **limits)
    assert (len(again.unasked), again.asked, server.requests) == (10, 0, 2)
    assert again.usage == first.usage and 100 - 43 < first.usage.tokens <= 100
    assert (tmp_path / "j.jsonl").read_bytes() == b""  # a file of judgments stays one


def test_a_timeout_is_charged_for_and_a_refusal_is_not(server: Any, tmp_path: Path) -> None:
    server.script = lambda user, times: (503, "busy", {})
    assert ask(server, tmp_path, QUESTIONS[:1], retries=0).usage.tokens == 0
    server.gate.clear()
    assert ask(server, tmp_path, QUESTIONS[:1], timeout_seconds=0.05, retries=1, max_tokens=10).usage.tokens == 2 * 43


def test_an_endpoint_that_tells_no_usage_is_taken_at_its_worst(server: Any, tmp_path: Path) -> None:
    server.script = lambda user, times: "no usage"
    outcome = ask(server, tmp_path, QUESTIONS[:1], max_tokens=10)
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (len(QUESTIONS[0].user) + 16, 10)


def test_an_answer_of_another_snapshot_ends_the_judging_and_earlier_judgments_are_kept(
    server: Any, tmp_path: Path
) -> None:
    server.served = "grader-2026-05"
    first = ask(server, tmp_path, QUESTIONS[:3], snapshot="grader-2026-05")
    assert (len(first.judgments), first.served) == (3, {"grader-2026-05"})
    server.served = "grader-2026-11"
    with pytest.raises(BadInput, match=r"judge\.snapshot.*answers as grader-2026-11, not as the pinned grader-2026-05"):
        ask(server, tmp_path, snapshot="grader-2026-05", in_flight=1)
    server.asked.clear()
    again = ask(server, tmp_path, QUESTIONS[:3], snapshot="grader-2026-05")
    assert (len(again.judgments), server.requests) == (3, 0)


def test_a_snapshot_is_another_judge_and_none_is_the_one_before(server: Any) -> None:
    plain, pinned = (Endpoint(settings(server, **more)) for more in ({}, {"snapshot": "grader-1"}))
    assert plain.digest(QUESTIONS[0]) != pinned.digest(QUESTIONS[0])


def test_an_endpoint_that_changes_its_model_meanwhile_is_warned_of(
    server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def serve(user: str, times: int) -> None:
        server.served = "new" if "question 1 " in user else "old"

    server.script = serve
    with caplog.at_level(logging.WARNING):
        outcome = ask(server, tmp_path, in_flight=1)
    assert outcome.served == {"old", "new"}
    assert "answered as several models (new, old)" in caplog.text
