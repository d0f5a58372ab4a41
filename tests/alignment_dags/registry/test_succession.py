"""`align judge succeed` on a recipe's stored judgments and on files, through the command."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.data.files import pin_file
from alignment.recipe import Judge, load_recipe
from alignment.stages import Context, Request, Result, Stage, execute
from alignment.stages.execute import REQUEST_FILE
from alignment.store import Artifact, Ref, Store
from alignment_dags.cli import main
from alignment_dags.registry.succession import Succession
from alignment_dags.run.upgrade import Moved, Upgrades, moved_stages, told
from alignment_dags.run.workspace import Workspace
from assets.champion import Champion
from assets.champion_evals import change_of_judge
from eval.answers.files import ITEMS_FILE, RESPONSES_FILE, Response, write_responses
from eval.judge.judgment import READING
from eval.stages.scores import STAGE as SCORES
from eval.stages.scores import ScoresRequest
from eval.suites import MT_BENCH, SuiteSpec
from eval.suites.items import load_items
from eval.suites.rows import read_records, write_records
from resources.pools import load_pools
from resources.store import ArtifactStore
from tests.eval.conftest import JudgeServer

QUESTIONS = 15


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("TEST_JUDGE_KEY", "sk-secret-0123456789abcdef")
    server = JudgeServer()
    yield server
    server.close()


@pytest.fixture
def recipe(server: JudgeServer, tmp_path: Path) -> Path:
    """A recipe whose SFT model and policy were judged by `old`: the policy's answers are far better."""
    data = tmp_path / "questions.jsonl"
    rows = ({"question_id": n, "category": "writing", "turns": [f"a {n}", f"b {n}"]} for n in range(QUESTIONS))
    write_records(data, rows)
    path = tmp_path / "small.yaml"
    given = {
        "name": "small",
        "base_model": {"embedded": "micro"},
        "sft": {"dataset": {"embedded": "micro"}},
        "preferences": {"embedded": "micro"},
        "evals": {"mt_bench": {"data": str(data)}},
        "judge": {"kind": "openai", "model": "old", "base_url": server.url, "api_key_env": "TEST_JUDGE_KEY"},
    }
    path.write_text(yaml.safe_dump(given))
    server.verdict = lambda user: f"[[{9 if 'policy' in user else 1}]]"
    store, parsed = ArtifactStore().open(), load_recipe(path)
    for model in ("sft", "policy"):
        answers = answered(store, model, data)
        spec = SuiteSpec(name="mt_bench", max_new_tokens=8, data=None, embedded="micro")
        request = ScoresRequest(responses=answers, suite=spec, judge=parsed.judge, seed=0)
        ref = Ref(artifact=execute(SCORES, request, store).artifact)
        store.write_ref(ref, "small", f"{model}_evals/mt_bench")
    server.asked.clear()
    return path


def answered(store: Store, model: str, data: Path) -> Artifact:
    class Asked(Request):
        model: str

    def answer(request: Asked, context: Context) -> Result:
        spec = SuiteSpec(name="mt_bench", data=pin_file(str(data)), max_new_tokens=8)
        items = load_items(MT_BENCH, spec, 0)
        folder = context.out / "mt_bench"
        folder.mkdir()
        write_records(folder / ITEMS_FILE, ({"id": item.id, "item": item.fields} for item in items))
        write_responses(folder / RESPONSES_FILE, (Response(item.id, (model, f"{model} too")) for item in items))
        return Result(model)

    return execute(Stage("responses", 1, Asked, answer), Asked(model=model), store).artifact


def align(*arguments: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["align", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_comparison_says_that_another_judge_registered_the_champion(server: JudgeServer, recipe: Path) -> None:
    store, parsed = ArtifactStore().open(), load_recipe(recipe)
    ref = store.read_ref("small", "policy_evals/mt_bench")
    assert ref is not None and parsed.judge is not None
    champion = Champion(version="3", scores={"mt_bench": ref.artifact})
    asked = ScoresRequest.model_validate_json(store.read(ref.artifact, REQUEST_FILE))

    def judged_by(**changes: Any) -> dict[str, Artifact]:
        judge = asked.judge.model_copy(update=changes) if asked.judge is not None else None
        return {"mt_bench": execute(SCORES, asked.model_copy(update={"judge": judge}), store).artifact}

    for changes, now in (({"model": "new"}, "new"), ({"snapshot": "old-2"}, r"old \(old-2\)")):
        server.served = changes.get("snapshot")
        told = change_of_judge(store, champion, judged_by(**changes))
        expected = (
            rf"On mt_bench the champion, version 3, was registered with old at {server.url} as judge. Here {now} at"
        )
        assert re.match(expected, told), told
    assert change_of_judge(store, champion, {"mt_bench": ref.artifact}) == ""
    assert change_of_judge(store, champion, judged_by(max_tokens=99)) == "", "the same judge, asked otherwise"


def test_a_recipe_s_judge_is_followed_by_one_that_sees_no_difference(
    server: JudgeServer,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server.verdict = lambda user: "[[3]]"
    out = tmp_path / "new.jsonl"
    given = ("judge", "succeed", "old", "new", "--recipe", recipe, "--out", out)
    capfd.readouterr()
    assert align(*given, "--json", monkeypatch=monkeypatch) == 0
    told = json.loads(capfd.readouterr().out)
    (one,) = told["suites"]
    assert (one["suite"], one["n"], one["questions"], one["old"], one["new"]) == ("mt_bench", 60, 15, 5.0, 3.0)
    (past,) = one["verdicts"]
    assert (past["baseline"], past["candidate"], past["old_verdict"]) == ("sft", "policy", "improved")
    assert past["changed"] and past["new_difference"] == 0.0
    assert server.requests == 60 and {body["model"] for body in server.bodies[-60:]} == {"new"}
    assert {record["model"] for record in read_records(out)} == {"sft", "policy"}
    assert align(*given, monkeypatch=monkeypatch) == 0  # nothing is asked again
    shown = capfd.readouterr().out
    assert "offset -2.0000" in shown and "sft -> policy, 30 turns: CHANGED" in shown and server.requests == 60


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none", "new", "--recipe", "{recipe}"], "small.yaml, field 'OLD': no stored judgment of none; .* old"),
        (["old", "new"], "field '--recipe': give either --recipe or --judgments"),
        (["old", "new", "--recipe", "{recipe}", "--suite", "ifeval"], "nothing was judged yet on ifeval"),
        (["old", "new", "--recipe", "{recipe}", "--base-url", "ftp://x"], "base_url must be as in"),
        (["old", "new", "--judgments", "none.jsonl"], "none.jsonl: no such file"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    recipe: Path,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    capfd.readouterr()
    given = [word.format(recipe=recipe) for word in arguments]
    assert align("judge", "succeed", *given, monkeypatch=monkeypatch) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert re.search(words, err)


def test_the_new_judge_has_the_recipe_s_settings_but_not_what_is_the_old_model_s(recipe: Path) -> None:
    text = yaml.safe_load(recipe.read_text())
    text["judge"] |= {"retires": "2027-01-14", "snapshot": "old-1", "in_flight": 3, "budget_tokens": 5}
    recipe.write_text(yaml.safe_dump(text))
    chosen = Succession("old", "new", recipe, (), given={"temperature": "none", "timeout_seconds": 7.0}).judge()
    assert chosen == Judge.model_validate(
        {k: text["judge"][k] for k in ("kind", "base_url", "api_key_env", "in_flight")}
        | {"model": "new", "temperature": None, "timeout_seconds": 7.0}
    )
    assert Succession("old", "old", recipe, ()).judge().snapshot == "old-1"


def test_nights_wait_where_verdicts_are_read_otherwise_until_a_person_accepts(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(load_recipe(recipe), load_pools())

    def moved() -> tuple[Moved, ...]:
        return moved_stages(workspace.nodes, workspace.upstream())

    assert moved() == ()
    for module in ("eval.stages.scores", "alignment_dags.run.upgrade"):
        monkeypatch.setattr(f"{module}.READING", READING + 1)
    expected = [(f"{model}_evals/mt_bench", READING, READING + 1) for model in ("sft", "policy")]
    assert [(one.stage, one.old, one.new) for one in moved()] == expected
    assert f"sft_evals/mt_bench (reading of verdicts {READING} → {READING + 1}, 1 artifact)" in told(moved())
    upgrades = Upgrades(workspace.store, "small")
    assert upgrades.waiting(moved()) == moved()
    upgrades.accept([Moved("sft_evals/mt_bench", 1, 99)], "somebody", datetime(2026, 11, 28, tzinfo=UTC))
    assert upgrades.waiting(moved()) == moved(), "a code version that was accepted says nothing of the reading"
    upgrades.accept(moved(), "somebody", datetime(2026, 11, 28, tzinfo=UTC))
    assert upgrades.waiting(moved()) == ()
    node = next(node for node in workspace.nodes if node.name == "sft_evals/mt_bench")
    scored = workspace.upstream()("sft_evals/mt_bench")
    answers = workspace.store.commit_of(scored).inputs["responses"]
    workspace.store.write_ref(Ref(artifact=answers), "small", "sft_responses")
    request = node.request(workspace.upstream(), None)
    assert isinstance(request, ScoresRequest) and request.earlier == scored, "whose judgments are then read anew"
