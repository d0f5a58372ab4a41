"""How long scoring takes without a GPU: lm-eval's start-up inside our step, and GSM8K + IFEval from stored responses.

    python -m benchmarks.scoring --data ../shared/data

Each figure is measured in a process of its own. GSM8K's responses are published solutions of a 6B model; IFEval's are
the prompts themselves, which no instruction finds empty. Start-up is what a step spends on lm-eval before it looks at
the first answer: its import, its registries and a task opened on all items.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from eval.commands import score_files
from eval.suites import suite_named
from eval.suites.items import read_items
from eval.suites.lm_eval_task import nltk_data_beside, open_task
from eval.suites.rows import read_records, write_records

DATA = {"gsm8k": "gsm8k/test.jsonl", "ifeval": "ifeval/input_data.jsonl"}
SOLUTIONS = "gsm8k/solutions_6b_finetuning.jsonl"


def start_up(suite: str, data: Path) -> None:
    """Opens the suite's task of lm-eval on all its items."""
    task = suite_named(suite).task
    assert task is not None
    with nltk_data_beside(data / DATA[suite]):
        items = read_items(suite_named(suite), data / DATA[suite])
        with open_task(task, items) as opened:
            assert len(opened.eval_docs) == len(items)


def rescore(suite: str, data: Path) -> None:
    """Scores stored responses to all items of the suite."""
    with tempfile.TemporaryDirectory() as folder:
        responses = Path(folder) / "responses.jsonl"
        if suite == "gsm8k":
            answers = (
                (one["id"], one["solution"].replace("\nA: ", "\n#### ")) for one in read_records(data / SOLUTIONS)
            )
        else:
            answers = ((one["key"], one["prompt"]) for one in read_records(data / DATA[suite]))
        write_records(responses, ({"id": name, "turns": [text]} for name, text in answers))
        score_files(suite, responses, data / DATA[suite], out=Path(folder) / "out")


WORK: dict[str, Callable[[str, Path], None]] = {"start-up": start_up, "rescoring": rescore}


def measured(work: str, suite: str, data: Path) -> dict[str, float]:
    """Seconds of the work itself, in a fresh process that has imported our own code and nothing of lm-eval's."""
    command = [sys.executable, "-m", "benchmarks.scoring", "--data", str(data), "--one", work, suite]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with gsm8k/, ifeval/ and nltk_data/")
    parser.add_argument("--one", nargs=2, metavar=("WORK", "SUITE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        work, suite = arguments.one
        wall, processor = time.perf_counter(), time.process_time()
        WORK[work](suite, arguments.data)
        print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - processor}))
        return
    print(f"{'':<20}{'wall s':>8}{'CPU s':>8}")
    for work in WORK:
        total = {"wall": 0.0, "cpu": 0.0}
        for suite in DATA:
            found = measured(work, suite, arguments.data)
            total = {name: total[name] + found[name] for name in total}
            print(f"{work + ' ' + suite:<20}{found['wall']:>8.2f}{found['cpu']:>8.2f}")
        if work == "rescoring":
            print(f"{work + ', both':<20}{total['wall']:>8.2f}{total['cpu']:>8.2f}")


if __name__ == "__main__":
    main()
