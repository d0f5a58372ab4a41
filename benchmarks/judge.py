"""How long judging takes: questions to an endpoint that answers each after half a second, so many at a time.

    python -m benchmarks.judge [--calls 160] [--seconds 0.5] [--in-flight 16]

The endpoint is a real HTTP server on loopback, in a process of its own. The time is from the first question
to the last judgment on the disk, with the client's import beside it; the ideal is calls / in flight × seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Server(ThreadingHTTPServer):
    """With Python's own backlog of five, a system resets connections that come at once."""

    request_queue_size = 1024
    daemon_threads = True


def serve(seconds: float, told: Connection) -> None:
    """Answers until the other end of the pipe says so; then tells the most requests that were under way at once."""
    now = most = 0
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            nonlocal now, most
            self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(seconds)
            message = {"role": "assistant", "content": "Rating: [[7]]"}
            usage = {"prompt_tokens": 500, "completion_tokens": 100, "total_tokens": 600}
            data = json.dumps({"choices": [{"index": 0, "message": message}], "usage": usage}).encode()
            with lock:
                now -= 1
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told.send(server.server_address[1])
    told.recv()
    told.send(most)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=160)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--in-flight", type=int, default=16)
    given = parser.parse_args()

    from alignment.recipe import Judge
    from eval.judge.endpoint import Endpoint
    from eval.judge.journal import Journal
    from eval.judge.judgment import Question

    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(given.seconds, there), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}/v1"
    began = time.monotonic()
    import openai  # noqa: F401  (the client's import, timed)

    imported = time.monotonic()
    text = "Grade this answer. " * 200
    questions = [Question(str(n), 1, "single-v1", "", f"{n}: {text}") for n in range(given.calls)]
    settings = Judge(
        kind="openai", model="m", base_url=url, in_flight=given.in_flight, api_key_env="BENCHMARK_JUDGE_KEY"
    )
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "judgments.jsonl") as journal:
        outcome = Endpoint(settings).ask(questions, journal)
    ended = time.monotonic()
    here.send("done")
    most = here.recv()
    server.join(10)
    ideal = -(-given.calls // given.in_flight) * given.seconds
    print(f"{len(outcome.judgments)} judgments at {given.seconds:g} s each, at most {most} in flight")
    print(f"{ended - imported:.2f} s (ideal {ideal:.2f} s), and {imported - began:.2f} s to import the client")


if __name__ == "__main__":
    main()
