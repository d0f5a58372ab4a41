"""Thousands of calls of every command on odd input: each ends in an answer or in one short line, and no row is lost."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
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
from tests.campaigns.calls import Calls
from tests.campaigns.records import forms

pytestmark = pytest.mark.campaign

SEED, CALLS, PROCESSES = 16, 1_900, 100
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
"""FUZZ_FIRST and FUZZ_CALLS take a part of the campaign, to run it in slices or one call again: a call is a function of
the seed and its number. FUZZ_SEED makes another campaign, and FUZZ_SHOW prints how each call ended."""
HANG, WAITING, LONGEST = 60, 600, 2_000
"""Seconds of work and of waiting that a call may take, and characters that a line of an error may have. Work is counted
by the processor's clock, so that a busy machine makes no hangs."""
MEMORY = 4 << 20
"""KiB that a process may take."""


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


TIMERS = ((signal.SIGPROF, signal.ITIMER_PROF, HANG), (signal.SIGALRM, signal.ITIMER_REAL, WAITING))


def in_process(arguments: list[str]) -> Called:
    """The command's own function, with its exit and its streams kept."""
    out, err = io.StringIO(), io.StringIO()

    def hung(*_: Any) -> None:
        raise Hung

    before, sys.argv = sys.argv, ["align", *arguments]
    for name, timer, seconds in TIMERS:
        signal.signal(name, hung)
        signal.setitimer(timer, seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        return Called(arguments, int(end.code or 0), out.getvalue(), err.getvalue())
    except (Exception, Hung):
        return Called(arguments, None, out.getvalue(), err.getvalue(), traceback.format_exc())
    finally:
        for _, timer, _ in TIMERS:
            signal.setitimer(timer, 0)
        sys.argv = before
    raise AssertionError("`main` always exits")


@dataclass
class Campaign:
    """The calls, and what came of each."""

    calls: Calls
    say: Callable[[str], None]
    counts: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest: float = 0.0
    rows: int = 0

    def run(self, numbers: range, call: Callable[[list[str]], Called], monkeypatch: pytest.MonkeyPatch) -> None:
        seed = int(os.environ.get("FUZZ_SEED", SEED))
        for number in numbers:
            arguments, records, checks = self.calls.draw(number, seed)
            began = time.process_time()
            with monkeypatch.context() as only:
                for name, value in self.calls.environ.items():
                    only.setenv(name, value)
                called = call(arguments)
            self.slowest = max(self.slowest, time.process_time() - began)
            grouped = arguments[0] in ("prefs", "recipes", "judge", "ab", "pools")
            self.counts[" ".join(arguments[: 2 if grouped else 1])[:20]] += 1
            self.codes[-1 if called.code is None else called.code] += 1
            if os.environ.get("FUZZ_SHOW"):
                last = (called.err.strip() or called.out.strip() or "-").splitlines()[-1]
                self.say(f"{number} [{called.code}] {' '.join(arguments)[:120]} -> {last[:300]}")
            problem = called.problem or (self.unaccounted(called, records) if checks and called.code == 0 else None)
            if problem is None and peak() > MEMORY and not any("GiB" in known for known in self.problems):
                problem = f"{peak() / (1 << 20):.1f} GiB of memory"
            if problem is not None:
                told = f"call {number}: {problem} <- {' '.join(arguments)[:300]} {self.calls.environ}"
                self.problems.append(f"{told}\n{called.trace[-1500:]}")
                self.say(f"\n{self.problems[-1]}")
            for kept in (path.with_suffix(".kept") for path in self.calls.rows):
                if kept.exists():
                    kept.replace(kept.with_suffix(".parquet"))

    def unaccounted(self, called: Called, records: int | None) -> str | None:
        """What is wrong with the counts of a check of preferences."""
        told = json.loads(called.out)
        self.rows += told["rows"]
        whole = told["rows"] == told["accepted"] + told["quarantined"] and records in (None, told["records"])
        return None if whole else f"rows unaccounted: {told['records']} of {records} records"


def peak() -> int:
    """KiB of the most memory that this process, or one that it has waited for, has taken."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


@pytest.fixture
def campaign(
    finished: Callable[..., Upstream],
    small_recipe: dict[str, Any],
    small_inputs: Path,
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Campaign]:
    def say(told: str) -> None:
        with capsys.disabled():
            print(told, flush=True)

    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_recipe), encoding="utf-8")
    recipes = forms(small_recipe, tmp_path)
    for name, form in recipes.items():
        (whole := tmp_path / f"{name}.whole.yaml").write_text(yaml.safe_dump(form), encoding="utf-8")
        load_recipe(whole)  # what is odd in a call is what the campaign put into it
        whole.unlink()
    store = finished(load_recipe(path)).store
    samples = next(Path(store.root).glob("scores/*/*/samples.parquet"))
    rows = sorted(Path(store.root).glob("preference_shard/*/*/rows.parquet"))
    monkeypatch.chdir(tmp_path)
    calls = Calls(
        tmp_path / "odd", recipes, path, small_inputs / "model", samples, rows, random.Random(SEED), environ={}
    )
    yield Campaign(calls, say)


def test_no_odd_input_ends_in_a_traceback_a_lost_row_a_hang_or_a_long_error(
    campaign: Campaign, align_command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_a_process(arguments: list[str]) -> Called:
        try:
            ended = subprocess.run(
                [*align_command, *arguments],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=WAITING,
            )
        except subprocess.TimeoutExpired as error:
            return Called(arguments, None, "", "", f"Hung: {error}")
        return Called(arguments, ended.returncode, ended.stdout, ended.stderr)

    last = FIRST + int(os.environ.get("FUZZ_CALLS", CALLS + PROCESSES))
    every = range(FIRST, last)
    campaign.run(range(FIRST, min(last, CALLS)), in_process, monkeypatch)
    campaign.run(range(max(FIRST, CALLS), last), in_a_process, monkeypatch)
    campaign.say(
        f"\n{len(every)} calls, by exit code {dict(sorted(campaign.codes.items()))}, {campaign.rows} rows accounted"
        f" for; the slowest took {campaign.slowest:.1f} s of work, the largest {peak() / (1 << 20):.1f} GiB\n"
        + ", ".join(f"{verb} {count}" for verb, count in campaign.counts.most_common())
        + f"\n{len(campaign.problems)} problems"
    )
    assert not campaign.problems, "\n".join(campaign.problems)
