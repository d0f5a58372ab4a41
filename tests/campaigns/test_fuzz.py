"""Thousands of calls of every command on odd input: each ends in an answer or in one short line, and no row is lost."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.recipe import load_recipe
from alignment_dags.cli import main
from assets.building.upstream import Upstream
from tests.campaigns import odd

pytestmark = pytest.mark.campaign

SEED, CALLS, PROCESSES = 16, 1_900, 100
HANG, LONGEST = 60, 2_000
"""Seconds that a call may take, and characters that a line of an error may have."""


class Hung(BaseException):
    """A call took longer than `HANG`; not an Exception, so that nothing catches it."""


@dataclass
class Called:
    """What came of a call: exit code (None after a traceback), stdout, stderr and the traceback."""

    arguments: list[str]
    code: int | None
    out: str
    err: str
    trace: str = ""

    @property
    def problem(self) -> str | None:
        """What is wrong with the way in which it ended."""
        if self.code is None or "Traceback (most recent call last)" in self.err:
            return f"traceback: {(self.trace or self.err).strip().splitlines()[-1][:300]}"
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}"
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if self.code == 2 and len(errors) != 1:
            return f"{len(errors)} lines of errors"
        if any(len(line) > LONGEST for line in errors):
            return "an error of more characters than a person reads"
        return None


def in_process(arguments: list[str]) -> Called:
    """The command's own function, with its exit and its streams kept."""
    out, err = io.StringIO(), io.StringIO()

    def hung(*_: Any) -> None:
        raise Hung

    before, sys.argv = sys.argv, ["align", *arguments]
    signal.signal(signal.SIGALRM, hung)
    signal.alarm(HANG)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        return Called(arguments, int(end.code or 0), out.getvalue(), err.getvalue())
    except (Exception, Hung):
        return Called(arguments, None, out.getvalue(), err.getvalue(), traceback.format_exc())
    finally:
        signal.alarm(0)
        sys.argv = before
    raise AssertionError("`main` always exits")


PAIRS: dict[str, list[odd.Record]] = {
    "text": [{"prompt": f"Name {n}", "chosen": f"It is {n}.", "rejected": "No.", "score": n} for n in range(6)],
    "messages": [
        {
            "chosen": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n}"}],
            "rejected": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": "no"}],
        }
        for n in range(6)
    ],
    "unpaired": [{"prompt": f"Do {n}", "completion": f"done {n}", "label": n % 2 == 0} for n in range(6)],
    "verdicts": [{"prompt": f"Go {n}", "response_a": f"a{n}", "response_b": "b", "winner": "a"} for n in range(6)],
}
"""Preference data in four forms: one row a record."""
TURNS = [{"question_id": 81 + n, "category": "writing", "turns": [f"Write {n}.", "Again."]} for n in range(4)]
SUITES: dict[str, list[odd.Record]] = {
    "gsm8k": [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(4)],
    "ifeval": [
        {"key": n, "prompt": f"Write {n}.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for n in range(4)
    ],
    "mt_bench": TURNS,
    "xstest": [{"id": n, "type": "homonyms", "prompt": f"How do I kill {n} processes?"} for n in range(4)],
    "mmlu": [{"question": f"{n}?", "subject": "anatomy", "choices": list("abcd"), "answer": n} for n in range(4)],
    "alpaca_eval": [
        {"instruction": f"Say {n}", "output": f"{n}", "generator": "base", "dataset": "d"} for n in range(4)
    ],
}


@dataclass
class Campaign:
    """A home with a finished small run, a folder for odd files, and what came of every call."""

    home: Path
    folder: Path
    recipe: dict[str, Any]
    recipe_file: Path
    model: Path
    samples: Path
    rows: list[Path]
    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest: float = 0.0
    number: int = 0

    def fresh(self) -> Path:
        """A new, empty folder for the files of one call."""
        shutil.rmtree(self.folder / str(self.number), ignore_errors=True)
        self.number += 1
        (made := self.folder / str(self.number)).mkdir(parents=True)
        return made

    # Each gives a call's arguments, and the records whose fate the call must tell, if it must.

    def preferences(self) -> tuple[list[str], int | None]:
        folder, rng = self.fresh(), self.rng
        records = PAIRS[rng.choice(sorted(PAIRS))]
        path, whole = odd.write_odd(folder, "pairs", records, rng)
        if rng.random() < 0.8:
            return ["prefs", "check", str(path)], len(records) if whole else None
        more = ["--model", str(self.model)] if rng.random() < 0.4 else []
        return ["prefs", "show", str(path), *more, *(["--row", "2"] if rng.random() < 0.3 else [])], None

    def recipes(self) -> tuple[list[str], None]:
        path = odd.write_odd_yaml(self.fresh() / "recipe.yaml", self.recipe, self.rng)
        verb = self.rng.choice(
            (
                ["recipes", "check"],
                ["recipes", "check"],
                ["recipes", "upgrade", "--dry-run"],
                ["plan"],
                ["prefs", "check"],
                ["nights"],
                ["status"],
            )
        )
        return [*verb, str(path)], None

    def reference(self) -> tuple[list[str], None]:
        folder, rng = self.fresh(), self.rng
        model = odd.odd_model(folder / "model", self.model, rng) if rng.random() < 0.7 else self.model
        pairs = folder / "pairs.jsonl"
        pairs.write_bytes(odd.as_lines(PAIRS["text"]))
        if rng.random() < 0.4:
            pairs, _ = odd.write_odd(folder, "odd", PAIRS["text"], rng)
        out = folder / "out" / "x.parquet" if rng.random() < 0.9 else folder
        options = rng.choice(
            (
                [],
                ["--max-length", "1"],
                ["--truncation", "x"],
                ["--precision", "int4"],
                ["--today", "x"],
                ["--plain-text", "chat"],
                ["--max-dropped", "7"],
            )
        )
        return ["reference", "--model", str(model), "--pairs", str(pairs), "--out", str(out), *options], None

    def start(self) -> tuple[list[str], None]:
        folder, rng = self.fresh(), self.rng
        model = odd.odd_model(folder / "model", self.model, rng) if rng.random() < 0.6 else self.model
        pairs, _ = odd.write_odd(folder, "pairs", PAIRS[rng.choice(sorted(PAIRS))], rng)
        return ["init", str(model), str(pairs), "--out", str(folder / "new.yaml")], None

    def score(self) -> tuple[list[str], None]:
        folder, rng = self.fresh(), self.rng
        suite = rng.choice(sorted(SUITES))
        items = SUITES[suite]
        ids = [item.get("question_id", item.get("key", item.get("id", n))) for n, item in enumerate(items)]
        answers = [{"id": id, "turns": ["one, #### 1"] * (2 if suite == "mt_bench" else 1)} for id in ids]
        judgments = [
            {
                "question_id": id,
                "model": "m",
                "judge": ["gpt", "single-v1"],
                "user_prompt": "",
                "judgment": "[[7]]",
                "score": 7,
                "turn": turn,
            }
            for id in ids
            for turn in (1, 2)
        ]
        which = rng.choice(("data", "answers", "judgments"))
        data, responses = folder / f"{suite}.jsonl", folder / "answers.jsonl"
        data.write_bytes(odd.as_lines(items))
        responses.write_bytes(odd.as_lines(answers))
        if which == "data":
            data, _ = odd.write_odd(folder, "data", items, rng)
        if which == "answers":
            responses, _ = odd.write_odd(folder, "responses", answers, rng)
        call = ["score", suite, "--responses", str(responses), "--data", str(data), "--out", str(folder / "out")]
        if which == "judgments":
            judged, _ = odd.write_odd(folder, "judgments", judgments, rng)
            return (
                ["score", suite, "--judgments", str(judged)]
                if rng.random() < 0.3
                else [*call, "--judgments", str(judged)]
            ) + (["--out", str(folder / "o")] if rng.random() < 0.5 else []), None
        return call, None

    def judge(self) -> tuple[list[str], None]:
        folder, rng = self.fresh(), self.rng
        answers = [
            {"question_id": item["question_id"], "model_id": "m", "choices": [{"index": 0, "turns": ["a", "b"]}]}
            for item in TURNS
        ]
        questions, _ = odd.write_odd(folder, "questions", TURNS, rng)
        given = folder / "answers.jsonl"
        given.write_bytes(odd.as_lines(answers))
        if rng.random() < 0.7:
            questions = folder / "questions.jsonl"
            questions.write_bytes(odd.as_lines(TURNS))
            given, _ = odd.write_odd(folder, "odd-answers", answers, rng)
        out, base = folder / "out.jsonl", "http://127.0.0.1:9/v1"
        if rng.random() < 0.3:
            out, _ = odd.write_odd(folder, "out", [{"question_id": 81, "judgment": "[[7]]"}], rng)
        return [
            "judge",
            "mt_bench",
            "--questions",
            str(questions),
            "--answers",
            str(given),
            "--judge-model",
            "m",
            "--out",
            str(out),
            "--base-url",
            base,
            "--retries",
            "0",
            "--timeout",
            "1",
        ], None

    def compare(self) -> tuple[list[str], None]:
        import pyarrow.parquet as pq

        folder, rng = self.fresh(), self.rng
        path = folder / "samples.parquet"
        if rng.random() < 0.5:
            path.write_bytes(odd.broken(self.samples.read_bytes(), rng))
        else:
            pq.write_table(odd.odd_table(pq.read_table(self.samples).to_pylist(), rng), path)
        sides = [str(self.samples), str(path)]
        rng.shuffle(sides)
        options = rng.choice(([], ["--margin", "nan"], ["--metric", "x"], ["--margin", "-1"]))
        return ["compare", *sides, *options], None

    def damaged_rows(self) -> tuple[list[str], None]:
        """A search in a home where the file of a shard's rows is broken; mended before the next call."""
        path = self.rng.choice(self.rows)
        data = path.read_bytes()
        path.with_suffix(".kept").write_bytes(data)
        path.write_bytes(odd.broken(data, self.rng))
        verb = self.rng.choice(
            (
                ["prefs", "find", str(self.recipe_file), "Name"],
                ["lineage", "--row", "0" * 64],
                ["prefs", "withdraw", str(self.recipe_file), "--row-id", "0" * 64],
            )
        )
        return verb, None

    def names(self) -> tuple[list[str], None]:
        """Verbs over registered models and recipes, with odd names."""
        rng, folder = self.rng, self.fresh()
        names = (
            "small",
            "small@champion",
            "small@1",
            "small@",
            "@",
            "small@2",
            "",
            " ",
            "a/b",
            "é" * 300,
            odd.LONG,
            "../x",
            "[",
            "'",
            "small@None",
            "%s",
            "\n",
        )
        name, other = rng.choice(names), rng.choice(names)
        calls = (
            ["lineage", name],
            ["lineage", name, "--rows", str(folder / rng.choice(("r.parquet", "r.csv", "r.x", "")))],
            ["lineage", "--row", name],
            ["export", name, "--to", str(folder / "to")],
            ["path", name],
            ["promote", name, "--to", other],
            ["promote", name],
            ["promote", name, "--override"],
            ["gc", "--dry-run", "--keep", other],
            ["gc", name, "--dry-run"],
            ["report", name, "--out", str(folder / "r.html")],
            ["nights", name, "--last", rng.choice(("0", "-1", "x", "1"))],
            ["status", name],
            ["diff", name, other],
            ["compare", name, other],
            ["backfill", str(self.recipe_file), "--shards", name],
            ["backfill", str(self.recipe_file), "--stage", name, "--shards", "nothing"],
            ["run", name],
            ["run", str(self.recipe_file), "--set", f"{name}={other}"],
            ["prefs", "find", str(self.recipe_file), name],
            ["prefs", "withdraw", str(self.recipe_file), "--row-id", name],
            ["prefs", "withdraw", str(self.recipe_file), "--shard", name],
            ["prefs", "restore", str(self.recipe_file), "--row-id", name],
            ["prefs", "show", str(self.recipe_file), "--row", rng.choice(("0", "1", "99", "x"))],
            ["judge", "succeed", "old", "new", "--judgments", str(self.recipe_file)],
            ["upgrade", name],
            ["score", name, "--responses", str(self.recipe_file), "--data", str(self.recipe_file)],
            ["recipes", "check", name],
            [name],
            ["prefs", "check", name],
        )
        return [argument.replace("\x00", "") for argument in rng.choice(calls)], None

    def kinds(self) -> list[Callable[[], tuple[list[str], int | None]]]:
        often = [self.preferences] * 6 + [self.recipes] * 4 + [self.score] * 3 + [self.names] * 3
        return [*often, self.reference, self.reference, self.start, self.judge, self.compare, self.damaged_rows]

    def run(self, calls: int, call: Callable[[list[str]], Called]) -> None:
        for _ in range(calls):
            make = self.rng.choice(self.kinds())
            arguments, records = make()
            began = time.monotonic()
            called = call([*arguments, "--json"] if make == self.preferences else arguments)
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.counts[
                " ".join(arguments[:2]) if arguments[0] in ("prefs", "recipes", "judge") else arguments[0][:20]
            ] += 1
            self.codes[-1 if called.code is None else called.code] += 1
            problem = called.problem
            if called.code == 0 and make == self.preferences and arguments[1] == "check":
                told = json.loads(called.out)
                if told["rows"] != told["accepted"] + told["quarantined"] or told["records"] not in (
                    records,
                    told["records"] if records is None else records,
                ):
                    problem = f"rows unaccounted: {told['records']} of {records} records"
            if problem is not None:
                self.problems.append(
                    f"call {self.number}: {problem} <- {' '.join(arguments)[:300]}\n{called.trace[-700:]}"
                )
            for kept in (path.with_suffix(".kept") for path in self.rows):
                if kept.exists():
                    kept.replace(kept.with_suffix(".parquet"))


@pytest.fixture
def campaign(
    finished: Callable[..., Upstream],
    small_recipe: dict[str, Any],
    small_inputs: Path,
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Campaign]:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_recipe), encoding="utf-8")
    made = finished(load_recipe(path))
    store = made.store
    samples = next(Path(store.root).glob("scores/*/*/samples.parquet"))
    rows = sorted(Path(store.root).glob("preference_shard/*/*/rows.parquet"))
    monkeypatch.chdir(tmp_path)
    yield Campaign(
        home, tmp_path / "odd", small_recipe, path, small_inputs / "model", samples, rows, random.Random(SEED)
    )


def test_no_odd_input_ends_in_a_traceback_a_lost_row_a_hang_or_a_long_error(
    campaign: Campaign, align_command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def in_a_process(arguments: list[str]) -> Called:
        ended = subprocess.run([*align_command, *arguments], capture_output=True, text=True, check=False, timeout=HANG)
        return Called(arguments, ended.returncode, ended.stdout, ended.stderr)

    campaign.run(CALLS, in_process)
    campaign.run(PROCESSES, in_a_process)
    with capsys.disabled():
        codes = dict(sorted(campaign.codes.items()))
        print(f"\n{CALLS + PROCESSES} calls, by exit code {codes}, slowest {campaign.slowest:.1f} s")
        print(", ".join(f"{verb} {count}" for verb, count in campaign.counts.most_common()))
        print(f"{len(campaign.problems)} problems")
    assert not campaign.problems, "\n".join(campaign.problems)
