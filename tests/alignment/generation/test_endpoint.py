from __future__ import annotations

import hashlib
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


Trouble = int | tuple[int, str, dict[str, str]] | str | None


class Server(loopback.Server):
    """Serves a checkpoint as completions of token ids.

    `trouble` says how to answer the `number`-th request instead: by a status, a status with a code and headers, or the
    word html, half, empty, silent (no usage) or echo (of the key). `models` are the same words for the list of models.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(Handler)
        self.model, self.tokenizer = load_model(folder, "float32", "cpu"), load_tokenizer(folder)
        self.names: list[str] = ["abc", "micro"]
        self.asked: list[dict[str, Any]] = []
        self.trouble: Callable[[int], Trouble] = lambda number: None
        self.models: list[Trouble] = []
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
        trouble = self.server.models.pop(0) if self.server.models else None
        self._answer(trouble, lambda: {"object": "list", "data": entries})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.asked.append(asked)
            number = len(self.server.asked)
        self._answer(self.server.trouble(number), lambda: self.server.complete(asked["prompt"], asked["max_tokens"]))

    def _answer(self, trouble: Trouble, value: Callable[[], dict[str, Any]]) -> None:
        status, code, headers = trouble if isinstance(trouble, tuple) else (trouble, None, {})
        if isinstance(status, int):
            self._send(status, {"error": {"message": f"no, {self.headers['authorization']}", "code": code}}, headers)
        elif status == "empty":
            self._send(200, {"hello": "there"})
        elif status == "silent":
            self._send(200, value() | {"usage": None})
        elif status == "echo":
            told = value()
            told["choices"][0]["text"] = f"{self.headers['authorization']} \ud800"
            self._send(200, told)
        else:
            self._send(200, {"html": b"<html>Bad gateway</html>", "half": b'{"choices": ['}.get(status or "", value))

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        value = value() if callable(value) else value
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
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


@pytest.mark.parametrize("garbage", ["empty", "html", "half"])
def test_an_answer_that_is_no_completion_is_asked_for_again_and_never_taken_for_one(
    server: Server, tmp_path: Path, garbage: str
) -> None:
    server.trouble = lambda number: garbage if number < 4 else None
    with pytest.raises(EndpointDown, match=r"gives no answer \(the answer is not a completion\)"):
        remote(server, tmp_path, retries=1).answer(PROMPTS[:1], 8)
    (answer,) = remote(server, tmp_path, retries=1).answer(PROMPTS[:1], 8)
    assert answer.failed is None and len(server.asked) == 4


def test_an_answer_without_its_number_of_tokens_is_refused_at_once(server: Server, tmp_path: Path) -> None:
    server.trouble = lambda number: "silent"
    with pytest.raises(EndpointDown, match="does not say how many tokens"):
        remote(server, tmp_path, retries=5).answer(PROMPTS[:1], 8)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ([503], r"does not list its models \(503\)"),
        ([404], r"does not list its models \(404\)"),
        (["html"], r"does not list its models \(the answer is not a list of models\)"),
        (["empty"], r"does not serve micro \(it serves nothing\)"),
        ([401], r"field 'evals.generate.api_key_env': the endpoint refuses the key in OPENAI_API_KEY \(HTTP 401\)"),
    ],
)
def test_an_endpoint_that_does_not_say_what_it_serves_is_named(
    server: Server, tmp_path: Path, models: list[Trouble], told: str
) -> None:
    server.models = models
    with pytest.raises(BadInput, match=told):
        remote(server, tmp_path)
    server.models = [503, None]
    remote(server, tmp_path, retries=1)
    with pytest.raises(BadInput, match=r"does not list its models \(the connection to http://127.0.0.1:9/v1 failed"):
        remote(server, tmp_path, base_url="http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ((402, None, {}), "api_key_env': the account of the key in OPENAI_API_KEY has nothing left to spend"),
        ((429, "insufficient_quota", {}), "api_key_env': the account of the key in OPENAI_API_KEY has nothing left"),
        (
            (404, None, {}),
            r"evals.generate.model': the endpoint has no model 'micro', or base_url is wrong \(HTTP 404\)",
        ),
    ],
)
def test_what_no_other_prompt_can_mend_is_bad_input_and_is_not_tried_again(
    server: Server, tmp_path: Path, trouble: Trouble, told: str
) -> None:
    server.trouble = lambda number: trouble
    with pytest.raises(BadInput, match=told) as found:
        remote(server, tmp_path, in_flight=1, retries=3).answer(PROMPTS[:1], 8)
    assert len(server.asked) == 1 and KEY not in str(found.value)


def test_one_call_that_fails_for_good_ends_the_waiting_of_the_others(server: Server, tmp_path: Path) -> None:
    waits: Trouble = (429, "slow_down", {"retry-after": "290"})  # longer than any test may take
    server.trouble = lambda number: waits if number == 1 else (500, None, {"retry-after": "3600"})
    with pytest.raises(EndpointDown, match=r"gives no answer \(500\)"):
        remote(server, tmp_path, in_flight=2, retries=3).answer(PROMPTS[:3], 8)
    assert len(server.asked) == 2


def test_the_key_and_half_a_character_stand_in_no_answer(server: Server, tmp_path: Path) -> None:
    server.trouble = lambda number: "echo"
    (answer,) = remote(server, tmp_path).answer(PROMPTS[:1], 8)
    assert answer.text == "Bearer [key] ?" and KEY not in (tmp_path / "kept.jsonl").read_text()


def test_a_key_that_no_header_can_carry_is_not_sent(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-line\nbreak")
    with pytest.raises(BadInput, match="the environment variable OPENAI_API_KEY holds no usable key") as found:
        remote(server, tmp_path)
    assert "sk-line" not in str(found.value)


def test_two_prompts_of_the_same_ids_are_one_call(server: Server, tmp_path: Path) -> None:
    first, other, again = remote(server, tmp_path).answer([PROMPTS[0], PROMPTS[1], PROMPTS[0]], 8)
    assert first == again and first != other and len(server.asked) == 2


def test_the_bytes_on_the_wire_and_the_lines_kept_are_those_of_older_versions(server: Server, tmp_path: Path) -> None:
    """What a request is kept by is the digest of all that was sent, so a run that older code began goes on."""
    sampling = Sampling(0.7, 0.9, "a")
    (answer,) = remote(server, tmp_path).answer(PROMPTS[:1], 8, ["e"], [sampling])
    (sent,) = server.asked
    ids = PromptEncoder(server.tokenizer, 256).encode(PROMPTS[0])
    seed = int(hashlib.sha256(b'"a"').hexdigest()[:8], 16) >> 1
    expected = {"model": "micro", "prompt": ids, "max_tokens": 8, "seed": seed, "stop": ["e"], "temperature": 0.7}
    assert sent == expected | {"top_p": 0.9}
    plain = json.dumps([sent, ["e"]], sort_keys=True, separators=(",", ":")).encode()
    line = {"asked": hashlib.sha256(plain).hexdigest(), "text": answer.text, "tokens": answer.tokens}
    assert [json.loads(one) for one in (tmp_path / "kept.jsonl").read_bytes().splitlines()] == [line]
    (tmp_path / "kept.jsonl").write_text(json.dumps(line | {"text": "kept \u2028 before"}) + '\n{"asked": "1')
    (answer,) = remote(server, tmp_path).answer(PROMPTS[:1], 8, ["e"], [sampling])
    assert answer.text == "kept \u2028 before" and len(server.asked) == 1


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
