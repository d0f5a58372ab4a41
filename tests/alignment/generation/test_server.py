"""The server answers as a loaded model does, asks for its token, and refuses what it cannot honour."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from openai import AuthenticationError, BadRequestError, OpenAI, RateLimitError

from alignment.errors import BadInput
from alignment.generation.endpoint import EndpointGenerator
from alignment.generation.generator import Generator, PromptEncoder, Sampling
from alignment.generation.server import MOST_WAITING, ModelServer
from alignment.models.checkpoint import load_model, load_tokenizer
from alignment.recipe import Generate

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hello", "Write a line about the fox.", "a", "What is 2?")]
TOKEN = "a-token-of-this-test"
Asked = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def generator(micro_folder: Path) -> Generator:
    model = load_model(micro_folder, "float32", "cpu")
    return Generator(model, load_tokenizer(micro_folder), batch_tokens=4096)


@contextmanager
def serving(generator: Generator, token: str | None = TOKEN, host: str = "127.0.0.1") -> Iterator[ModelServer]:
    server = ModelServer(generator, ["micro", "0123456789ab"], host, 0, token)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(server: ModelServer, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url.removesuffix('/v1')}{path}", data)
    for name, value in ({"Authorization": f"Bearer {server.token}"} | headers).items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def test_an_endpoint_generator_gets_the_answers_of_a_loaded_model(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVED_KEY", TOKEN)
    for until in ((), ("e", " the")):
        wanted = generator.answer(PROMPTS, 24, until)
        with serving(generator) as server:
            settings = Generate(kind="endpoint", base_url=server.url, api_key_env="SERVED_KEY", in_flight=4)
            encoder = PromptEncoder(generator.tokenizer, generator.encoder.context)
            remote = EndpointGenerator(settings, "0123456789abcdef", encoder, tmp_path / f"kept-{len(until)}.jsonl")
            answers = remote.answer(PROMPTS, 24, until)
        assert [(one.text, one.tokens) for one in answers] == [(one.text, one.tokens) for one in wanted]
        assert any(one.text for one in answers)


def test_a_chat_client_gets_the_same_answer_whole_or_streamed(generator: Generator) -> None:
    (wanted,) = generator.answer(PROMPTS[1:2], 12)
    with serving(generator) as server, OpenAI(api_key=TOKEN, base_url=server.url, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == server.names
        parts: Any = [{"role": "user", "content": [{"type": "text", "text": PROMPTS[1][0]["content"]}]}]
        whole = client.chat.completions.create(model="micro", messages=parts, max_completion_tokens=12)
        assert whole.choices[0].message.content == wanted.text
        ended = wanted.ids[-1] in generator.end_ids
        assert whole.choices[0].finish_reason == ("stop" if ended else "length")
        assert whole.usage is not None and whole.usage.completion_tokens == wanted.tokens
        events = client.chat.completions.create(model="micro", messages=parts, max_tokens=12, stream=True)
        assert "".join(event.choices[0].delta.content or "" for event in events) == wanted.text
        drawn = [
            client.chat.completions.create(model="micro", messages=parts, max_tokens=12, temperature=1.0, seed=seed)
            for seed in (1, 1)
        ]
        first, second = (one.choices[0].message.content for one in drawn)
        assert first == second
        (sampled,) = generator.answer(PROMPTS[1:2], 12, (), [Sampling(1.0, 1.0, "1")])
        assert first == sampled.text


def test_who_brings_no_token_or_another_one_is_refused(generator: Generator) -> None:
    with serving(generator) as server:
        for brought in ("", "Bearer", "Bearer other", f"Basic {TOKEN}"):
            status, said = ask(server, "/v1/models", Authorization=brought)
            assert status == 401 and TOKEN not in json.dumps(said)
        with OpenAI(api_key="other", base_url=server.url, max_retries=0) as client, pytest.raises(AuthenticationError):
            client.completions.create(model="micro", prompt="a")
        assert ask(server, "/health")[0] == 200


def test_without_a_token_only_programs_of_this_machine_are_served(generator: Generator) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(BadInput, match="is open to others: serve it with a token"):
            ModelServer(generator, ["micro"], host, 0, None)
    for token in ("", "two words", "ä"):
        with pytest.raises(BadInput, match="the token is empty, or has"):
            ModelServer(generator, ["micro"], "127.0.0.1", 0, token)
    with serving(generator, token=None) as server:
        assert ask(server, "/v1/models")[0] == 200
        assert ask(server, "/v1/models", Host="evil.example:80")[0] == 403  # a name that was rebound to 127.0.0.1
        assert ask(server, "/v1/models", Origin="http://evil.example")[0] == 403


@pytest.mark.parametrize(
    ("changed", "status", "why"),
    [
        ({"model": "other"}, 404, "there is no model 'other' here; there is micro, 0123456789ab"),
        ({"tools": [{"type": "function"}]}, 400, "tools: this server cannot honour it"),
        ({"n": 2}, 400, "n: this server cannot honour it"),
        ({"repetition_penalty": 1.2}, 400, "repetition_penalty: unknown field"),
        ({"max_tokens": 0}, 400, "max_tokens: expected a whole number from 1"),
        ({"max_tokens": 1.5}, 400, "max_tokens: expected a whole number from 1"),
        ({"temperature": "hot"}, 400, "temperature: expected a number from 0"),
        ({"temperature": float("nan")}, 400, "temperature: expected a number from 0"),
        ({"top_p": 2}, 400, "top_p: at most 1"),
        ({"stop": ["a"] * 5}, 400, "stop: expected a text or at most 4 texts"),
        ({"messages": []}, 400, "messages: expected a list of messages"),
        ({"messages": [{"role": "user", "content": None}]}, 400, r"messages[0]: expected a role and a content of text"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, 400, "the context is too short"),
        ({"n": 1, "logprobs": False, "tools": None, "presence_penalty": 0.0, "stop": None}, 200, ""),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    generator: Generator, changed: dict[str, Any], status: int, why: str
) -> None:
    asked = {"model": "micro", "messages": PROMPTS[0], "max_tokens": 2} | changed
    with serving(generator) as server:
        given, said = ask(server, "/v1/chat/completions", asked)
        assert given == status and why in json.dumps(said, ensure_ascii=False).replace("\\", ""), said
        assert ask(server, "/health")[0] == 200


def test_prompts_are_texts_or_ids_of_the_vocabulary(generator: Generator) -> None:
    with serving(generator) as server, OpenAI(api_key=TOKEN, base_url=server.url, max_retries=0) as client:
        (wanted,) = generator.answer(["Once"], 6)
        ids = generator.encoder.encode("Once")
        for prompt in ("Once", ["Once"], ids, [ids]):
            given = client.completions.create(model="micro", prompt=prompt, max_tokens=6)
            assert given.choices[0].text == wanted.text
        wrong: Any
        for wrong in ([10**9], [-1], ["a", "b"], []):
            with pytest.raises(BadRequestError, match="expected one text or a list of token ids below"):
                client.completions.create(model="micro", prompt=wrong, max_tokens=6)


def test_bodies_that_are_none_end_with_a_reason(generator: Generator) -> None:
    with serving(generator) as server:
        for body, status, why in (
            (b"{", 400, "the body is no JSON"),
            (b"[]", 400, "the body is no JSON object"),
            (b"[" * 100_000, 400, "the body is no JSON"),
        ):
            given, said = ask(server, "/v1/completions", body)
            assert given == status and why in said["error"]["message"]
        given, said = ask(server, "/v1/completions", b"{}", **{"Content-Length": str(1 << 40)})
        assert given == 413
        assert ask(server, "/v1/embeddings", {})[0] == 404 and ask(server, "/")[0] == 404


def test_more_requests_than_may_wait_are_told_to_come_back(generator: Generator) -> None:
    with serving(generator) as server, OpenAI(api_key=TOKEN, base_url=server.url, max_retries=0) as client:
        for _ in range(MOST_WAITING):
            server.waiting.acquire()
        with pytest.raises(RateLimitError, match="too many requests wait"):
            client.completions.create(model="micro", prompt="a", max_tokens=1)
        server.waiting.release()
        assert client.completions.create(model="micro", prompt="a", max_tokens=1).choices
