from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import eval.judge.openai as module
from alignment.errors import BadInput
from alignment.recipe import Judge
from eval.judge.openai import JudgeUnavailable, OpenAIJudge
from eval.judge.prompts import default_prompts
from eval.response_files import Response
from eval.suites import Item

KEY = "sk-secret-0123456789"
ANSWERED = [
    (
        Item(str(n), {"category": "writing", "turns": [f"first {n}", f"second {n}"]}),
        Response(str(n), (f"a{n}", f"b{n}")),
    )
    for n in range(8)
]


class Endpoint:
    """A server that speaks the chat completions API; `script` may answer a request by (status, body)."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.script: Any = lambda user, times: None
        self.most_at_once = self.now = 0
        self.lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                user = body["messages"][-1]["content"]
                with endpoint.lock:
                    endpoint.asked[user] += 1
                    endpoint.now += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint.now)
                scripted = endpoint.script(user, endpoint.asked[user])
                with endpoint.lock:
                    endpoint.now -= 1
                status, reply = scripted or (200, f"Fine. Rating: [[{4 + len(user) % 3}]]")
                content: Any = {"choices": [{"index": 0, "message": {"role": "assistant", "content": reply}}]}
                if status != 200:
                    content = {"error": {"message": f"{reply}: {self.headers['Authorization']}"}}
                data = b"{half" if reply == "half" else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Retry-After-Ms", "1")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


def judge(endpoint: Endpoint, folder: Path, in_flight: int = 4) -> OpenAIJudge:
    settings = Judge(
        kind="openai", model="grader", base_url=endpoint.url, api_key_env="TEST_JUDGE_KEY", in_flight=in_flight
    )
    return OpenAIJudge(settings, default_prompts(), {}, folder / "judgments.jsonl")


def test_every_turn_is_asked_once_and_its_rating_read(endpoint: Endpoint, tmp_path: Path) -> None:
    judgments = judge(endpoint, tmp_path)(ANSWERED)
    assert [(j.question_id, j.turn) for j in judgments] == [(str(n), turn) for n in range(8) for turn in (1, 2)]
    assert all(judgment.score in (4, 5, 6) for judgment in judgments)
    assert set(endpoint.asked.values()) == {1} and len(endpoint.asked) == 16
    assert endpoint.most_at_once <= 4


def test_nothing_is_asked_twice_after_an_interruption(endpoint: Endpoint, tmp_path: Path) -> None:
    first = judge(endpoint, tmp_path)(ANSWERED)
    path = tmp_path / "judgments.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:9]) + lines[9][:25])  # killed in the middle of a line
    endpoint.asked.clear()
    assert judge(endpoint, tmp_path)(ANSWERED) == first
    assert sum(endpoint.asked.values()) == 7


def test_too_many_requests_server_errors_and_half_answers_are_tried_again(endpoint: Endpoint, tmp_path: Path) -> None:
    trouble = {1: (429, "slow down"), 2: (500, "oops")}
    endpoint.script = lambda user, times: trouble.get(times)
    assert len(judge(endpoint, tmp_path)(ANSWERED)) == 16
    assert set(endpoint.asked.values()) == {3}


def test_what_cannot_be_judged_is_named_and_the_rest_is_kept(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRIES", 1)
    endpoint.script = lambda user, times: (503, "no") if "first 3" in user and "second" not in user else None
    with pytest.raises(JudgeUnavailable, match=r"1 of 16 judgments failed: question 3 turn 1: HTTP 503"):
        judge(endpoint, tmp_path)(ANSWERED)
    endpoint.script = lambda user, times: None
    endpoint.asked.clear()
    assert len(judge(endpoint, tmp_path)(ANSWERED)) == 16
    assert sum(endpoint.asked.values()) == 1


def test_an_answer_that_is_no_answer_is_a_failure_and_nonsense_is_unparsable(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRIES", 0)
    endpoint.script = lambda user, times: (200, "half") if "a0" in user else (200, "As an AI, hm.")
    with pytest.raises(JudgeUnavailable, match="question 0 turn 1"):
        judge(endpoint, tmp_path)(ANSWERED)
    assert [j.score for j in judge(endpoint, tmp_path)(ANSWERED[1:])] == [None] * 14


@pytest.mark.parametrize(("status", "words"), [(401, "refuses the key in TEST_JUDGE_KEY"), (404, "no model 'grader'")])
def test_a_wrong_key_or_model_is_said_without_the_key(
    endpoint: Endpoint, tmp_path: Path, status: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    endpoint.script = lambda user, times: (status, "wrong")
    with pytest.raises(BadInput, match=words) as caught:
        judge(endpoint, tmp_path)(ANSWERED)
    assert KEY not in str(caught.value) + caplog.text
    assert caught.value.__suppress_context__


def test_the_key_stands_in_no_file(endpoint: Endpoint, tmp_path: Path) -> None:
    judge(endpoint, tmp_path)(ANSWERED)
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_without_a_key_the_public_endpoint_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_JUDGE_KEY", raising=False)
    settings = Judge(kind="openai", model="m", api_key_env="TEST_JUDGE_KEY")
    with pytest.raises(BadInput, match="environment variable TEST_JUDGE_KEY"):
        OpenAIJudge(settings, default_prompts(), {}, tmp_path / "j.jsonl")(ANSWERED)
