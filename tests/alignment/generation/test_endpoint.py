from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from alignment.data.files import pin_file
from alignment.errors import BadInput
from alignment.generation.endpoint import EndpointDown, EndpointGenerator
from alignment.generation.generator import Generator, PromptEncoder, Sampling
from alignment.models.checkpoint import load_model, load_tokenizer
from alignment.recipe import Generate
from alignment.stages import execute
from alignment.store import Artifact, Store
from eval.answers.files import read_responses
from eval.stages.responses import STAGE, ResponsesRequest
from eval.suites import SuiteSpec
from tests import loopback

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hello", "Write a line.", "a", "b" * 300)]
KEY = "sk-not-to-be-seen-anywhere"


class Server(loopback.Server):
    """Serves a checkpoint as completions of token ids; `trouble` gives a status to answer with instead, or None."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Handler)
        self.model, self.tokenizer = load_model(folder, "float32", "cpu"), load_tokenizer(folder)
        self.names: list[str] = ["abc", "micro"]
        self.asked: list[dict[str, Any]] = []
        self.trouble: Callable[[int], int | None] = lambda number: None
        self.garbage = False
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def complete(self, ids: list[int], limit: int) -> dict[str, Any]:
        import torch

        with self.lock, torch.no_grad():
            made = self.model.generate(torch.tensor([ids]), max_new_tokens=limit, do_sample=False)[0, len(ids) :]
        text = self.tokenizer.decode(made, skip_special_tokens=True)
        choice = {"text": text, "index": 0, "finish_reason": "stop", "logprobs": None}
        usage = {"completion_tokens": len(made), "prompt_tokens": len(ids), "total_tokens": len(ids) + len(made)}
        return {"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        entries = [{"id": name, "object": "model", "created": 1, "owned_by": "t"} for name in self.server.names]
        self._send(200, {"object": "list", "data": entries})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.asked.append(asked)
            number = len(self.server.asked)
        status = self.server.trouble(number)
        if status is not None:
            self._send(status, {"error": {"message": f"no, {self.headers['authorization']}"}})
        elif self.server.garbage:
            self._send(200, {"hello": "there"})
        else:
            self._send(200, self.server.complete(asked["prompt"], asked["max_tokens"]))

    def _send(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(micro_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Server(micro_folder) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def remote(server: Server, folder: Path, digest: str = "micro", **settings: Any) -> EndpointGenerator:
    given = {"kind": "endpoint", "base_url": server.url, "retries": 0, "in_flight": 4} | settings
    return EndpointGenerator(Generate(**given), digest, PromptEncoder(server.tokenizer, 256), folder / "kept.jsonl")


def test_an_endpoint_answers_what_the_loaded_model_answers(server: Server, tmp_path: Path) -> None:
    local = Generator(server.model, server.tokenizer, 4096)
    expected = local.answer(PROMPTS, 24, until=["e"])
    answers = remote(server, tmp_path).answer(PROMPTS, 24, until=["e"])
    assert [one.text for one in answers] == [one.text for one in expected]
    assert [one.failed for one in answers] == [one.failed for one in expected]
    assert answers[3].failed is not None and len(server.asked) == 3
    assert {one["model"] for one in server.asked} == {"micro"} and server.asked[0]["stop"] == ["e"]


def test_each_answers_sampling_is_sent_with_it(server: Server, tmp_path: Path) -> None:
    samplings = [Sampling(0.7, 0.9, "a"), Sampling(0.0, 1.0, "b")]
    remote(server, tmp_path).answer(PROMPTS[:2], 8, [str(n) for n in range(5)], samplings)
    sent = sorted((one["temperature"], one["top_p"], one["seed"], "stop" in one) for one in server.asked)
    assert [(t, p, stop) for t, p, _, stop in sent] == [(0.0, 1.0, False), (0.7, 0.9, False)]
    assert sent[0][2] != sent[1][2]


def test_only_the_checkpoint_itself_may_answer(server: Server, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"does not serve 0123456789ab \(it serves abc, micro\)"):
        remote(server, tmp_path, digest="0123456789abcdef")
    server.names = ["run-0123456789ab"]
    remote(server, tmp_path, digest="0123456789abcdef", model="run-{digest}")


def test_what_was_answered_before_the_endpoint_went_down_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    server.trouble = lambda number: 500 if number == 3 else None
    with pytest.raises(EndpointDown, match=r"gives no answer \(500\)"):
        remote(server, tmp_path, in_flight=1).answer(PROMPTS, 8)
    with (tmp_path / "kept.jsonl").open("ab") as stream:
        stream.write(b'{"asked": "cut of')
    server.trouble = lambda number: None
    answers = remote(server, tmp_path).answer(PROMPTS, 8)
    assert [one.failed is None for one in answers] == [True, True, True, False]
    assert len(server.asked) == 4 and server.asked[2] == server.asked[3]


def test_a_call_is_tried_again_before_it_counts_as_failed(server: Server, tmp_path: Path) -> None:
    server.trouble = lambda number: 500 if number == 1 else None
    (answer,) = remote(server, tmp_path, retries=1).answer(PROMPTS[:1], 8)
    assert answer.failed is None and len(server.asked) == 2


def test_a_refused_prompt_fails_its_item_and_a_refused_key_everything(server: Server, tmp_path: Path) -> None:
    server.trouble = lambda number: 400 if number == 1 else None
    answers = remote(server, tmp_path, in_flight=1).answer(PROMPTS[:2], 8)
    assert [one.failed for one in answers] == ["the endpoint refuses the prompt (400)", None]
    server.trouble = lambda number: 400
    with pytest.raises(BadInput, match="every prompt: the endpoint refuses the prompt"):
        remote(server, tmp_path).answer(PROMPTS[:1], 8)
    server.trouble = lambda number: 401
    with pytest.raises(BadInput, match="refuses the key in OPENAI_API_KEY") as found:
        remote(server, tmp_path).answer(PROMPTS[:1], 8)
    assert KEY not in str(found.value) and found.value.__cause__ is None
    assert KEY.encode() not in (tmp_path / "kept.jsonl").read_bytes()


def test_a_refused_prompt_is_asked_again_once_the_endpoint_is_repaired(server: Server, tmp_path: Path) -> None:
    server.trouble = lambda number: 400
    with pytest.raises(BadInput, match="every prompt"):
        remote(server, tmp_path).answer(PROMPTS[:3], 8)
    server.trouble = lambda number: None
    answers = remote(server, tmp_path).answer(PROMPTS[:3], 8)
    assert [one.failed for one in answers] == [None] * 3 and len(server.asked) == 6


def test_a_refusal_kept_in_the_file_is_no_answer(server: Server, tmp_path: Path) -> None:
    (before,) = remote(server, tmp_path).answer(PROMPTS[:1], 8)
    kept = tmp_path / "kept.jsonl"
    refused = json.loads(kept.read_text()) | {
        "text": "",
        "tokens": 0,
        "failed": "the endpoint refuses the prompt (400)",
    }
    kept.write_text(json.dumps(refused) + "\n")
    assert remote(server, tmp_path).answer(PROMPTS[:1], 8) == [before] and len(server.asked) == 2


def test_an_answer_that_is_no_completion_is_never_taken_for_one(server: Server, tmp_path: Path) -> None:
    server.garbage = True
    with pytest.raises(EndpointDown, match="no completion"):
        remote(server, tmp_path).answer(PROMPTS[:1], 8)
    with pytest.raises(BadInput, match="cannot be asked what it serves"):
        remote(server, tmp_path, base_url="http://127.0.0.1:9/v1")


def test_the_stage_answers_through_the_endpoint(
    server: Server, store: Store, commit_checkpoint: Callable[..., Artifact], micro_folder: Path
) -> None:
    checkpoint = commit_checkpoint("micro", micro_folder)
    suites = {"gsm8k": SuiteSpec(name="gsm8k", embedded="micro", limit=4, max_new_tokens=20)}
    given = {"checkpoint": checkpoint, "suites": suites, "seed": 1, "precision": "float32", "batch_tokens": 4096}
    through = ResponsesRequest(**given, generate=Generate(kind="endpoint", base_url=server.url))
    local = ResponsesRequest(**given)
    elsewhere = through.model_copy(update={"generate": Generate(kind="endpoint", base_url="http://other/v1")})
    assert STAGE.key(through) != STAGE.key(local) and STAGE.key(through) == STAGE.key(elsewhere)
    commits = [execute(STAGE, one, store) for one in (through, local)]
    texts = [read_responses(store.fetch(one.artifact) / "gsm8k" / "responses.jsonl") for one in commits]
    assert [one.turns for one in texts[0]] == [one.turns for one in texts[1]]
    assert [one.summary["generator"] for one in commits] == ["endpoint", "transformers"]


def test_log_likelihoods_want_a_loaded_model(
    server: Server, store: Store, commit_checkpoint: Callable[..., Artifact], micro_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"question": "q", "choices": list("abcd"), "answer": 1}))
    spec = SuiteSpec(name="mmlu_virology", data=pin_file(str(tmp_path / "d.jsonl")), max_new_tokens=8)
    request = ResponsesRequest(
        checkpoint=commit_checkpoint("micro", micro_folder),
        suites={spec.name: spec},
        seed=1,
        precision="float32",
        batch_tokens=64,
        generate=Generate(kind="endpoint", base_url=server.url),
    )
    with pytest.raises(BadInput, match="mmlu_virology needs log-likelihoods, which only a loaded model gives"):
        execute(STAGE, request, store)
