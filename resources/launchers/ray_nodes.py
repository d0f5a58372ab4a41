"""`python -m resources.launchers.ray_nodes SETTINGS ARGUMENTS…`: torchrun over several nodes, inside of a Ray job.

The job itself is the first node: its output is the job's, which Dagster reads. For each other node there is a task with
the same resources, which runs torchrun for it. Elastic ranks go on without a node that is lost, and with another one in
its place as soon as Ray finds it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from typing import Any

import ray
from ray.util import get_node_ip_address

from alignment.errors import one_line
from resources.launchers.launcher import RETRIES, torchrun_options

JOIN = 3600  # seconds that a node waits for the others: a cluster that grows takes minutes to start one


def torchrun(settings: dict[str, Any], node: int, address: str, port: int, arguments: list[str]) -> list[str]:
    """The command of one node."""
    meet_at, elastic = (address, port), bool(settings["elastic"])
    options = torchrun_options(settings["nodes"], settings["processes"], node, meet_at, elastic)
    if not elastic:
        options += ["--rdzv-conf", f"join_timeout={JOIN}"]
    return [sys.executable, *options, *arguments]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def run_node(command: list[str]) -> int:
    """A task: one node's ranks. Returns torchrun's exit code."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("DAGSTER_PIPES")}
    return subprocess.run(command, env=mine, check=False).returncode


def main() -> int:
    """Runs all nodes; 0 if all did, else the exit code of one that did not."""
    settings, arguments = json.loads(sys.argv[1]), sys.argv[2:]
    ray.init(address="auto", log_to_driver=True, logging_level="WARNING")
    address, port = get_node_ip_address(), free_port()
    elastic = bool(settings["elastic"])
    retries = RETRIES if elastic else 0
    task = ray.remote(max_retries=retries, scheduling_strategy="SPREAD", **settings["each"])(run_node)
    others = [task.remote(torchrun(settings, node, address, port, arguments)) for node in range(1, settings["nodes"])]
    first = subprocess.Popen(torchrun(settings, 0, address, port, arguments))
    codes: list[int] = []

    def watch() -> None:
        """One node that is lost or fails ends the first, which would wait for it; elastic ranks do not."""
        waiting = list(others)
        while waiting:
            done, waiting = ray.wait(waiting)
            try:
                codes.extend(ray.get(done))
            except ray.exceptions.RayError as error:
                if elastic:
                    continue
                print(f"error: a node of the launch was lost: {one_line(error)}", file=sys.stderr, flush=True)
                codes.append(137)  # as a process that was killed
            if codes[-1] and not elastic:
                first.terminate()
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    code = first.wait()
    if elastic:  # the first ends well where the work is done; a task may still wait for a node
        return code
    if not code or code < 0:
        watching.join()
    return next((other for other in codes if other), code)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # without Ray's farewell, which waits for tasks of nodes that failed
