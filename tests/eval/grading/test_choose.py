"""Judged suites in the stage that scores: judgments kept over failures, costs in the summary, the key nowhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.data.files import pin_file
from alignment.recipe import Judge
from alignment.stages import Context, Request, Result, Stage, execute
from alignment.store import Artifact, Store
from eval.answers.files import ITEMS_FILE, RESPONSES_FILE, Response, write_responses
from eval.grading.choose import JudgeUnavailable
from eval.judge.files import read_judgments
from eval.judge.judgment import READING
from eval.stages.scores import STAGE, ScoresRequest, read_otherwise
from eval.suites import MT_BENCH, SuiteSpec
from eval.suites.items import load_items
from eval.suites.rows import read_records, write_records

N = 6


class _Answers(Request):
    suite: str
    questions: str


@pytest.fixture
def spec(tmp_path: Path) -> SuiteSpec:
    rows = ({"question_id": n, "category": "writing", "turns": [f"a {n}", f"b {n}"]} for n in range(N))
    write_records(tmp_path / "questions.jsonl", rows)
    return SuiteSpec(name="mt_bench", data=pin_file(str(tmp_path / "questions.jsonl")), max_new_tokens=8)


@pytest.fixture
def responses(store: Store, spec: SuiteSpec) -> Artifact:
    def run(request: _Answers, context: Context) -> Result:
        items = load_items(MT_BENCH, spec, 0)
        folder = context.out / "mt_bench"
        folder.mkdir()
        write_records(folder / ITEMS_FILE, ({"id": item.id, "item": item.fields} for item in items))
        write_responses(folder / RESPONSES_FILE, (Response(i.id, (f"ours {i.id}", f"ours too {i.id}")) for i in items))
        return Result("answers", {"precision": "float32"})

    stage = Stage("answers", 1, _Answers, run)
    return execute(stage, _Answers(suite="mt_bench", questions="q"), store).artifact


def judge(server: Any, **more: Any) -> Judge:
    given = {"model": "grader", "base_url": server.url, "api_key_env": "TEST_JUDGE_KEY", "retries": 0}
    return Judge.model_validate({"kind": "openai"} | given | more)


@pytest.fixture
def score(store: Store, responses: Artifact) -> Callable[[SuiteSpec, Judge], Any]:
    return lambda spec, judge: execute(
        STAGE, ScoresRequest(responses=responses, suite=spec, judge=judge, seed=0), store
    )


def test_a_failure_ends_the_stage_and_the_next_try_asks_for_the_rest_only(
    server: Any, spec: SuiteSpec, store: Store, score: Any, tmp_path: Path
) -> None:
    server.script = lambda user, times: (503, "busy", {}) if "ours 3" in user else None
    settings = judge(server, price={"input_usd": 1.0, "output_usd": 2.0})
    with pytest.raises(JudgeUnavailable, match="2 of 12 judgments failed: question 3 turn 1: HTTP 503 busy"):
        score(spec, settings)
    assert server.requests == 12
    server.script = lambda user, times: None
    server.asked.clear()
    commit = score(spec, settings)
    assert server.requests == 2 and commit.summary["metrics"]["average"]["n"] == 12
    bill = commit.summary["judge"]
    assert (bill["asked"], bill["input_tokens"], bill["output_tokens"], bill["refused"]) == (2, 120, 60, {})
    assert bill["usd"] == pytest.approx(240e-6)
    judgments = read_judgments(store.fetch(commit.artifact) / "judgments.jsonl")
    assert len(judgments) == 12 and {one.judge for one in judgments} == {"grader"}


def test_a_baseline_adds_the_win_rate_and_both_are_judged_in_one_go(
    server: Any, spec: SuiteSpec, store: Store, score: Any, tmp_path: Path
) -> None:
    write_records(tmp_path / "baseline.jsonl", ({"id": n, "turns": ["base", "base"]} for n in range(N)))
    server.verdict = lambda user: "[[7]]" if "base" not in user else "[[C]]"
    commit = score(
        spec.model_copy(update={"baseline_answers": pin_file(str(tmp_path / "baseline.jsonl"))}), judge(server)
    )
    values = {name: metric["value"] for name, metric in commit.summary["metrics"].items()}
    assert values == {"turn_1": 7.0, "turn_2": 7.0, "average": 7.0, "win_rate": 0.5}
    assert server.requests == 6 * N and commit.summary["unjudged"] == 0
    folder = store.fetch(commit.artifact)
    assert len(read_records(folder / "judgments.jsonl")) == len(read_records(folder / "pair_judgments.jsonl")) == 2 * N


def test_what_the_endpoint_will_not_take_is_left_out_by_name(server: Any, spec: SuiteSpec, score: Any) -> None:
    server.script = lambda user, times: (400, "content_filter", {}) if "ours 4" in user else None
    summary = score(spec, judge(server)).summary
    assert (summary["unjudged"], summary["metrics"]["average"]["n"]) == (2, 10)
    assert summary["judge"]["refused"]["question 4 turn 1"] == "HTTP 400 content_filter"


def test_a_budget_ends_the_stage_and_a_larger_one_goes_on(server: Any, spec: SuiteSpec, score: Any) -> None:
    server.usage = {"prompt_tokens": 500, "completion_tokens": 50}
    with pytest.raises(JudgeUnavailable, match="were not asked, as the budget of 3000 tokens is reached"):
        score(spec, judge(server, budget_tokens=3000, max_tokens=50))
    before = server.requests
    assert 0 < before < 12
    assert score(spec, judge(server, budget_tokens=90_000, max_tokens=50)).summary["judge"]["asked"] == 12 - before


def test_the_key_is_in_no_file_of_the_store_and_in_no_request(
    server: Any, spec: SuiteSpec, score: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    key = os.environ["TEST_JUDGE_KEY"]
    server.verdict = lambda user: f"Bearer {key} [[6]]"
    commit = score(spec, judge(server))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5 and all(key.encode() not in path.read_bytes() for path in files)
    assert key not in repr(commit) + caplog.text


# When only the rules that read verdicts are others, the stored judgments are read anew.


def rescored(
    store: Store, responses: Artifact, spec: SuiteSpec, judge: Judge, earlier: Artifact | None
) -> tuple[ScoresRequest, Any]:
    request = ScoresRequest(responses=responses, suite=spec, judge=judge, seed=0, earlier=earlier)
    return request, execute(STAGE, request, store)


def test_another_reading_of_verdicts_asks_for_no_judgment_again(
    server: Any, spec: SuiteSpec, store: Store, responses: Artifact, score: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = judge(server, price={"input_usd": 1.0, "output_usd": 2.0})
    first = score(spec, settings)
    assert server.requests == 12 and not read_otherwise(store, first.artifact)
    monkeypatch.setattr("eval.stages.scores.READING", READING + 1)
    assert read_otherwise(store, first.artifact)
    monkeypatch.setattr("eval.judge.judgment.parse_rating", lambda text, parsing: 9.0)
    request, commit = rescored(store, responses, spec, settings, first.artifact)
    assert commit.key != first.key and server.requests == 12
    assert commit.summary["metrics"]["average"]["value"] == 9.0  # from the texts that were stored
    assert commit.summary["settings"] != first.summary["settings"]
    assert commit.inputs == {"responses": responses}
    paid, bill = first.summary["judge"], commit.summary["judge"]
    assert (bill["asked"], bill["judgments"], bill["usd"]) == (0, 12, paid["usd"])
    assert not read_otherwise(store, commit.artifact)
    without = request.model_copy(update={"earlier": None})
    assert STAGE.key(without) == STAGE.key(request)


def test_judgments_of_another_judge_or_under_other_settings_are_asked_for(
    server: Any, spec: SuiteSpec, store: Store, responses: Artifact, score: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = score(spec, judge(server)).artifact
    monkeypatch.setattr("eval.stages.scores.READING", READING + 1)
    rescored(store, responses, spec, judge(server, model="other"), first)
    assert server.requests == 24
    rescored(store, responses, spec.model_copy(update={"limit": 5}), judge(server), first)
    assert server.requests == 36


def test_judgments_that_are_no_longer_there_are_asked_for(
    server: Any, spec: SuiteSpec, store: Store, responses: Artifact, score: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = score(spec, judge(server)).artifact
    monkeypatch.setattr("eval.stages.scores.READING", READING + 1)
    gone = first.model_copy(update={"attempt": "gone", "key": "0" * len(first.key)})
    rescored(store, responses, spec, judge(server), gone)
    assert server.requests == 24
