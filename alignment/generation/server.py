"""A loaded checkpoint behind the OpenAI API: `/v1/chat/completions`, `/v1/completions` and `/v1/models`.

Answers are those of evaluations: the same prompt ids (also given as ids, which `generate: endpoint` sends), the same
ends, greedy unless a temperature is asked for. One request is answered at a time, so this is for a look and for tests;
for throughput a folder of `align export` is served with vLLM. `transformers serve` is not used: its completions take no
token ids, it knows a model by its path only, and it asks for no token.

The server holds a token that every request must bring, and refuses bodies, waiting requests and options beyond what it
can honour. A field that would change the answer and is not known is refused by name and never passed over.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from alignment.errors import BadInput
from alignment.generation.generator import Answer, Generator, Sampling

log = logging.getLogger(__name__)

MOST_BYTES = 8 << 20
MOST_WAITING = 128
"""Requests that wait for the model; more are told to come back (429), which clients do."""
MOST_STOPS = 4
DEFAULT_NEW_TOKENS = 1024
PATIENCE = 60.0
"""Seconds that a client may take to send its request."""
SHARED = {"model", "temperature", "top_p", "seed", "stop", "stream", "stream_options", "user", "max_tokens", "n"}
CHAT = SHARED | {"messages", "max_completion_tokens"}
TEXT = SHARED | {"prompt"}
HARMLESS: dict[str, Any] = {
    "n": 1,
    "logprobs": (None, False),
    "echo": False,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "best_of": 1,
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "suffix": None,
    "store": (None, False),
    "metadata": (None, {}),
}
"""Fields that clients send with values that change nothing; with any other value they are refused."""


class Refused(Exception):
    """A request that is not answered: its HTTP status, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def is_loopback(host: str) -> bool:
    """Whether an address or name reaches this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ModelServer(ThreadingHTTPServer):
    """Serves a generator under `names` on `host`:`port` (0 takes a free port).

    `token` is what requests bring as `Authorization: Bearer …`; None asks for none, which only loopback may do. Raises
    `BadInput` for another host without a token, and an address that cannot be had.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, generator: Generator, names: Sequence[str], host: str, port: int, token: str | None) -> None:
        if token is None and not is_loopback(host):
            raise BadInput(f"{host} is open to others: serve it with a token, or on 127.0.0.1", field="--host")
        if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
            raise BadInput("the token is empty, or has spaces or characters beyond ASCII", field="--token-env")
        self.generator, self.names, self.token = generator, list(names), token
        self.model_lock = threading.Lock()
        self.waiting = threading.BoundedSemaphore(MOST_WAITING)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            problem = f"{host}:{port} cannot be had: {getattr(error, 'strerror', None) or error}"
            raise BadInput(problem, field="--port") from error

    @property
    def url(self) -> str:
        """The base address that clients are given."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host!s}]' if ':' in str(host) else str(host)}:{port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is none of our errors."""
        log.debug("a connection ended early", exc_info=True)

    def answer(self, asked: Mapping[str, Any], chat: bool) -> tuple[Answer, int, str]:
        """The answer to a request's body, the number of its prompt's tokens, and why the answer ends."""
        self._check(asked, chat)
        encoder = self.generator.encoder
        ids = self._prompt(asked, chat)
        name = "max_tokens" if asked.get("max_completion_tokens") is None else "max_completion_tokens"
        limit = int(_number(asked, name, 1, None) or DEFAULT_NEW_TOKENS)
        if (problem := encoder.problem(ids, limit)) is not None:
            raise Refused(400, f"{problem}: the context is too short")
        until, room = _stops(asked), encoder.room(ids, limit)
        sampling = Sampling(
            temperature=float(_number(asked, "temperature", 0, 100) or 0.0),
            top_p=1.0 if asked.get("top_p") is None else max(1e-9, float(_number(asked, "top_p", 0, 1) or 0.0)),
            seed=secrets.token_hex(8) if asked.get("seed") is None else str(asked["seed"]),
        )
        if not self.waiting.acquire(blocking=False):
            raise Refused(429, "too many requests wait")
        try:
            with self.model_lock:
                answer = self.generator.answer_ids([ids], room, until, [sampling])[0]
        finally:
            self.waiting.release()
        ended = bool(answer.ids) and answer.ids[-1] in self.generator.end_ids
        return answer, len(ids), "stop" if ended or answer.tokens < room else "length"

    def _check(self, asked: Mapping[str, Any], chat: bool) -> None:
        if asked.get("model", self.names[0]) not in self.names:
            raise Refused(404, f"there is no model {asked['model']!r} here; there is {', '.join(self.names)}")
        known = CHAT if chat else TEXT
        for name, value in asked.items():
            if name in HARMLESS:
                fine = HARMLESS[name]
                if value is not None and value not in (fine if isinstance(fine, tuple) else (fine,)):
                    raise Refused(400, f"{name}: this server cannot honour it")
            elif name not in known:
                raise Refused(400, f"{name}: unknown field")

    def _prompt(self, asked: Mapping[str, Any], chat: bool) -> list[int]:
        encoder = self.generator.encoder
        if chat:
            if not encoder.is_chat:
                raise Refused(400, "the model has no chat template: use /v1/completions")
            try:
                return encoder.encode(_messages(asked.get("messages")))
            except BadInput as error:
                raise Refused(400, str(error)) from error
        prompt = asked.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, str):
            return encoder.encode(prompt)
        rows = self.generator.model.get_input_embeddings().weight.shape[0]
        if isinstance(prompt, list) and prompt and all(type(one) is int and 0 <= one < rows for one in prompt):
            return list(prompt)
        raise Refused(400, f"prompt: expected one text or a list of token ids below {rows}")


def _messages(value: Any) -> list[dict[str, str]]:
    """Messages of role and text; content parts of text are joined."""
    if not isinstance(value, list) or not value:
        raise Refused(400, "messages: expected a list of messages")
    messages = []
    for place, message in enumerate(value):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            content = "".join(str(part.get("text", "")) for part in content)
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise Refused(400, f"messages[{place}]: expected a role and a content of text")
        messages.append({"role": role, "content": content})
    return messages


def _number(asked: Mapping[str, Any], name: str, least: float, most: float | None) -> float | None:
    value = asked.get(name)
    if value is None:
        return None
    whole = name.startswith("max_") and type(value) is not int
    if whole or isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        raise Refused(400, f"{name}: expected a {'whole ' if name.startswith('max_') else ''}number from {least:g}")
    if most is not None and value > most:
        raise Refused(400, f"{name}: at most {most:g}")
    return value


def _stops(asked: Mapping[str, Any]) -> tuple[str, ...]:
    value = asked.get("stop")
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(stop, str) for stop in stops):
        raise Refused(400, f"stop: expected a text or at most {MOST_STOPS} texts")
    return tuple(stop for stop in stops if stop)


class _Handler(BaseHTTPRequestHandler):
    server: ModelServer
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    server_version, sys_version = "align", ""

    def do_GET(self) -> None:
        self._guarded(self._get)

    def do_POST(self) -> None:
        self._guarded(self._post)

    def log_message(self, *_: object) -> None:
        """Nothing: a log of requests would be a log of what people asked."""

    def _guarded(self, work: Any) -> None:
        try:
            self._allow()
            work()
        except Refused as refused:
            self.close_connection = True  # its body may not have been read
            kind = "invalid_request_error" if refused.status < 500 else "server_error"
            self._send(refused.status, {"error": {"message": str(refused), "type": kind, "code": None}})
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            log.exception("a request failed")
            self.close_connection = True
            self._send(500, {"error": {"message": type(error).__name__, "type": "server_error", "code": None}})

    def _allow(self) -> None:
        """Who may ask: whoever brings the token; without one, programs of this machine, but no page of another site
        that a browser here shows (DNS rebinding)."""
        if self.server.token is None:
            host = self.headers.get("host", "").rpartition(":")[0] or self.headers.get("host", "")
            if not is_loopback(host.strip("[]")) or self.headers.get("origin") is not None:
                raise Refused(403, "only programs of this machine may ask")
            return
        scheme, _, brought = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(brought.strip().encode(), self.server.token.encode()):
            raise Refused(401, "bring the token: Authorization: Bearer …")

    def _get(self) -> None:
        if self.path == "/health":
            self._send(200, {"status": "ok"})
        elif self.path == "/v1/models":
            entries = [{"id": name, "object": "model", "created": 0, "owned_by": "align"} for name in self.server.names]
            self._send(200, {"object": "list", "data": entries})
        else:
            raise Refused(404, "there is /v1/models, /v1/chat/completions and /v1/completions")

    def _post(self) -> None:
        if self.path not in ("/v1/chat/completions", "/v1/completions"):
            raise Refused(404, "there is /v1/models, /v1/chat/completions and /v1/completions")
        asked, chat = self._body(), self.path == "/v1/chat/completions"
        answer, prompt_tokens, reason = self.server.answer(asked, chat)
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": answer.tokens,
            "total_tokens": prompt_tokens + answer.tokens,
        }
        head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(8)}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": asked.get("model", self.server.names[0]),
        }
        said = {"message": {"role": "assistant", "content": answer.text}} if chat else {"text": answer.text}
        choice = {"index": 0, "finish_reason": reason, "logprobs": None}
        if asked.get("stream"):
            self._stream(head, answer.text, choice, usage, chat)
        else:
            self._send(200, head | {"choices": [choice | said], "usage": usage})

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("content-length", "")
        if not length.isdecimal():
            raise Refused(411, "a Content-Length is needed")
        if int(length) > MOST_BYTES:
            raise Refused(413, f"at most {MOST_BYTES} bytes")
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise Refused(400, "the body is no JSON") from None
        if not isinstance(asked, dict):
            raise Refused(400, "the body is no JSON object")
        return asked

    def _stream(
        self, head: dict[str, Any], text: str, choice: dict[str, Any], usage: dict[str, int], chat: bool
    ) -> None:
        """The whole answer as one event: clients that only stream are served, and nothing comes sooner."""
        if chat:
            head |= {"object": "chat.completion.chunk"}
        said: dict[str, Any] = {"delta": {"role": "assistant", "content": text}} if chat else {"text": text}
        end: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        events = [
            head | {"choices": [{**choice, "finish_reason": None, **said}]},
            head | {"choices": [{**choice, **end}], "usage": usage},
        ]
        data = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self._send(200, data.encode(), "text/event-stream")

    def _send(self, status: int, value: Any, kind: str = "application/json") -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
