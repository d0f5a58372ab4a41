"""As much of Kubernetes' API as launchers use, on loopback: pods are processes of this machine, RayJobs are records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.loopback import Server

NOW = "2026-11-28T00:00:00Z"


class Pod:
    """A pod's first container as a process, with its output in a file."""

    def __init__(self, body: dict[str, Any], folder: Path) -> None:
        self.body = body
        container = body["spec"]["containers"][0]
        self.name, self.waits = body["metadata"]["name"], str(container["image"]).startswith("missing")
        self.log = folder / f"{self.name}-{len(list(folder.iterdir()))}.log"
        self.log.touch()
        self.process: subprocess.Popen[bytes] | None = None
        if not self.waits:
            environment = {entry["name"]: entry["value"] for entry in container.get("env", [])}
            command = [sys.executable, *container["command"][1:]]
            with self.log.open("wb") as out:
                self.process = subprocess.Popen(command, env=os.environ | environment, stdout=out, stderr=out)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def plain(self) -> dict[str, Any]:
        """As the API shows it."""
        state: dict[str, Any] = {"running": {"startedAt": NOW}}
        phase = "Running"
        if self.waits:
            phase, state = "Pending", {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
        elif self.code is not None:
            phase = "Failed" if self.code else "Succeeded"
            code = self.code if self.code >= 0 else 128 - self.code
            state = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}
        name = self.body["spec"]["containers"][0]["name"]
        status = {"name": name, "image": "", "imageID": "", "restartCount": 0, "ready": True, "state": state}
        return self.body | {"status": {"phase": phase, "containerStatuses": [status]}}


class Api:
    """What the server holds; `created` has every object that was ever created, by kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pods: dict[str, Pod] = {}
        self.ray_jobs: dict[str, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []


@contextmanager
def kubernetes_api(folder: Path) -> Iterator[Api]:
    """Serves the API meanwhile; `folder` gets the logs and `config`, a kubeconfig that leads here."""
    (folder / "logs").mkdir()
    api = Api(folder / "logs")

    class Handler(BaseHTTPRequestHandler):
        def answer(self, value: dict[str, Any], status: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def fail(self, status: int) -> None:
            self.answer({"kind": "Status", "status": "Failure", "code": status}, status)

        def objects(self) -> dict[str, Any]:
            return api.ray_jobs if "/rayjobs" in self.path else api.pods

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            name = asked.path.split("/")[-2 if asked.path.endswith("/log") else -1]
            if name in ("pods", "events"):
                chosen = parse_qs(asked.query).get("fieldSelector", [""])[0].removeprefix("metadata.name=")
                items = [pod.plain() for pod in api.pods.values() if name == "pods" and pod.name == chosen]
                self.answer({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items})
            elif name not in self.objects():
                self.fail(404)
            elif asked.path.endswith("/log"):
                self.stream(api.pods[name], "follow=True" in asked.query)
            else:
                found = self.objects()[name]
                self.answer(found.plain() if isinstance(found, Pod) else found)

        def stream(self, pod: Pod, follow: bool) -> None:
            self.send_response(200)
            self.end_headers()
            with pod.log.open("rb") as log:
                while True:
                    ended = pod.code is not None or not follow
                    for line in log:
                        self.wfile.write(f"{NOW} ".encode() + line if follow else line)
                    if ended:
                        return

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = body["metadata"]["name"]
            if name in self.objects():
                self.fail(409)
                return
            body["metadata"]["uid"] = str(len(api.created))
            api.created.append(body)
            self.objects()[name] = body if "/rayjobs" in self.path else Pod(body, api.folder)
            self.answer(body, 201)

        def do_DELETE(self) -> None:
            name = urlsplit(self.path).path.split("/")[-1]
            options = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            there = self.objects().get(name)
            body = there.body if isinstance(there, Pod) else there
            if body and options["preconditions"]["uid"] != body["metadata"]["uid"]:
                self.fail(409)
                return
            gone = self.objects().pop(name, None)
            if isinstance(gone, Pod):
                gone.end()
            self.answer({"kind": "Status", "status": "Success"}) if gone else self.fail(404)

        def log_message(self, *about: Any) -> None:
            return None

    server = Server(Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = {"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [here],
        "users": [{"name": "me", "user": {"token": "none"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "current-context": "here",
    }
    (folder / "config").write_text(yaml.safe_dump(config), encoding="utf-8")
    try:
        yield api
    finally:
        for pod in api.pods.values():
            pod.end()
        server.shutdown()
        server.server_close()
