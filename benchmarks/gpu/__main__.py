"""Runs the parts in order of worth, each in a process and a time of its own: `bash benchmarks/gpu.sh OUT`.

A part that fails or overruns does not stop the next; its file holds what it had measured. Processes are forked from
this one, which has imported torch and never touches the GPU, so that a part starts at once.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a GPU must not open it in this process
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is asked of a network, nor told to it: TRL would report its use
os.environ["TQDM_DISABLE"] = "1"

from benchmarks.gpu import BEGAN, kernels, passes, steps, training
from benchmarks.gpu.tools import PRESETS, Record, scratch_of, shown, the_device
from benchmarks.preference_mix import Size

BY_SHAPE = {
    "agreement": steps.agreement,
    "step": steps.step,
    "trl": training.trl,
    "whole": training.whole,
    "memory": training.memory,
    "resume": training.resume,
    "values": passes.values,
    "company": passes.company,
    "speed": passes.speed,
    "attention": kernels.attention,
    "capped": kernels.capped,
    "head": kernels.head,
}
LIMITS = {
    "environment": 30.0,
    "agreement": 50.0,
    "step": 60.0,
    "trl": 60.0,
    "whole": 50.0,
    "memory": 40.0,
    "resume": 30.0,
    "head": 20.0,
    "values": 40.0,
    "company": 40.0,
    "speed": 50.0,
    "attention": 40.0,
    "capped": 60.0,
}
"""Seconds of five minutes that a part may take, in the order in which the parts run; more with more minutes."""
MINUTES = 5.0
KILLED = 10.0
"""Seconds that a part may take to die: one that waits in the driver for ever does not keep the others."""
SHORTEST = 5.0
"""Seconds for which a part is not begun."""
SPARE = 12.0
"""Seconds of the time that are left for the last part's end (`KILLED`): a part gets what those before it left, and its
own limit at most."""


def work(part: str, preset: str, out: Path) -> None:
    """One part, in a process of its own."""
    warnings.simplefilter("ignore")  # of libraries, about their next versions: the figures would be lost in them
    record = Record(out, part)
    try:
        device = the_device(preset)
        if part == "environment":
            kernels.environment(record, device)
        else:
            failed = [name for name, size in PRESETS[preset].items() if not measured(record, part, name, size, device)]
            if failed:
                raise RuntimeError(f"{', '.join(failed)}, see its row")
    except Exception as error:
        record.close(f"failed: {type(error).__name__}: {error}")
        traceback.print_exc()
        sys.exit(1)
    record.close("complete")


def measured(record: Record, part: str, name: str, size: Size, device: Any) -> bool:
    """Whether the part went through for one shape; what stopped it is a row, and the next shape has its turn."""
    try:
        BY_SHAPE[part](record, name, size, device)
    except Exception as error:
        traceback.print_exc()
        record.add(shape=name, failed=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    else:
        return True
    training._empty(device)  # what the error held is free by now
    return False


def run(part: str, preset: str, out: Path, seconds: float, start: str) -> dict[str, Any]:
    """What the part's file holds, once the part has ended or its time is over."""
    path = out / f"{part}.json"
    path.unlink(missing_ok=True)
    context: Any = multiprocessing.get_context(start)
    child = context.Process(target=work, args=(part, preset, out))
    began, stopped = time.monotonic(), False
    child.start()
    try:
        child.join(seconds)
    finally:  # whoever stops this process stops the part too, which would keep the GPU
        if stopped := child.is_alive():
            child.kill()
            child.join(KILLED)
        shutil.rmtree(scratch_of(out), ignore_errors=True)
    found: dict[str, Any] = {"part": part, "status": "unfinished", "rows": []}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    if found["status"] == "unfinished":
        found["status"] = f"stopped after {seconds:.0f} s" if stopped else f"ended with code {child.exitcode}"
    found["wall_seconds"] = round(time.monotonic() - began, 2)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def table(found: dict[str, Any]) -> str:
    """One part as Markdown: a table for all rows that have the same columns."""
    lines = [f"## {found['part']}: {found['status']}, {found['wall_seconds']} s", ""]
    columns: list[str] = []
    for row in found["rows"]:
        if list(row) != columns:
            columns = list(row)
            lines += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines.append(f"| {' | '.join(shown(cell).replace('|', '/') for cell in row.values())} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=PRESETS, default="gpu")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of all parts together")
    chosen = parser.parse_args()
    seconds, share = 60 * chosen.minutes - SPARE, max(1.0, chosen.minutes / MINUTES)
    chosen.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    importlib.import_module("transformers.models.llama.modeling_llama")  # once, not in every part
    start, tables, failed = "fork", [], []
    for part, limit in LIMITS.items():
        left = seconds - (time.monotonic() - BEGAN)
        if left < SHORTEST and part != "environment":
            failed.append(part)
            tables.append(f"## {part}: no time was left\n")
            print(tables[-1], flush=True)
            continue
        found = run(part, chosen.size, chosen.out, max(0.0, min(share * limit, left)), start)
        if found["status"] != "complete" and part == "environment":  # some drivers bear no fork: start afresh then
            start = "spawn"
            left = seconds - (time.monotonic() - BEGAN)
            found = run(part, chosen.size, chosen.out, max(0.0, min(share * limit, left)), start)
        if found["status"] != "complete":
            failed.append(part)
        tables.append(table(found))
        print(tables[-1].partition("\n")[0], flush=True)  # its rows were printed as they came
        summary = f"# size {chosen.size}, {time.monotonic() - BEGAN:.0f} s\n\n" + "\n".join(tables)
        (chosen.out / "summary.md").write_text(summary, encoding="utf-8")  # whatever becomes of the next part
    print(f"not complete: {', '.join(failed)}" if failed else "all parts complete", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
