from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignment.data.files import pin_file
from alignment.errors import BadInput
from alignment.recipe import Judge
from alignment.stages import execute
from alignment.store import Artifact, Store
from eval.answers.files import read_responses
from eval.stages.checkpoint_check import STAGE as CHECK
from eval.stages.checkpoint_check import CheckRequest
from eval.stages.responses import STAGE, ResponsesRequest
from eval.stages.scores import STAGE as SCORES
from eval.stages.scores import ScoresRequest
from eval.suites import GSM8K, IFEVAL, MT_BENCH, SUITES, SuiteSpec
from eval.suites.rows import read_records
from eval.suites.samples import read_samples

EMBEDDED = {suite.name: suite for suite in (GSM8K, IFEVAL, MT_BENCH)}


def specs(**changes: Any) -> dict[str, SuiteSpec]:
    return {
        name: SuiteSpec(name=name, embedded="micro", limit=6, max_new_tokens=20).model_copy(update=changes)
        for name in EMBEDDED
    }


@pytest.fixture
def checkpoint(commit_checkpoint: Callable[..., Artifact], micro_folder: Path) -> Artifact:
    return commit_checkpoint("micro", micro_folder)


def request(checkpoint: Artifact, suites: dict[str, SuiteSpec], batch_tokens: int = 4096) -> ResponsesRequest:
    return ResponsesRequest(
        checkpoint=checkpoint, suites=suites, seed=1, precision="float32", batch_tokens=batch_tokens
    )


def test_all_suites_are_answered_with_one_model_load(
    store: Store, checkpoint: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    import alignment.generation.engine as module

    loads: list[Any] = []
    load = module.load_model
    monkeypatch.setattr(module, "load_model", lambda *args, **how: loads.append(args) or load(*args, **how))
    commit = execute(STAGE, request(checkpoint, specs()), store)
    assert len(loads) == 1
    assert {name: found["answered"] for name, found in commit.summary["suites"].items()} == dict.fromkeys(EMBEDDED, 6)
    folder = store.fetch(commit.artifact)
    for name in EMBEDDED:
        answers = read_responses(folder / name / "responses.jsonl")
        items = read_records(folder / name / "items.jsonl")
        assert [answer.id for answer in answers] == [item["id"] for item in items]
        assert {len(answer.turns) for answer in answers} == {SUITES[name].turns}


def test_texts_and_choices_share_the_one_model_and_are_scored_from_what_is_stored(
    store: Store, checkpoint: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import alignment.generation.engine as module

    loads: list[Any] = []
    load = module.load_model
    monkeypatch.setattr(module, "load_model", lambda *args, **how: loads.append(args) or load(*args, **how))
    items = [{"question": f"{n}?", "choices": list("abcd"), "answer": n % 4, "subject": "virology"} for n in range(9)]
    (tmp_path / "mmlu.jsonl").write_text("\n".join(map(json.dumps, items)))
    mmlu = SuiteSpec(name="mmlu", data=pin_file(str(tmp_path / "mmlu.jsonl")), limit=5, max_new_tokens=8)
    commit = execute(STAGE, request(checkpoint, {"gsm8k": specs()["gsm8k"], "mmlu": mmlu}), store)
    assert len(loads) == 1
    assert commit.summary["suites"]["mmlu"] == {"items": 5, "answered": 5, "failed": 0}
    stored = read_responses(store.fetch(commit.artifact) / "mmlu" / "responses.jsonl")
    assert {len(response.loglikelihoods) for response in stored} == {4}
    monkeypatch.setattr(module, "load_model", lambda *_, **__: pytest.fail("loaded"))
    scores = execute(SCORES, ScoresRequest(responses=commit.artifact, suite=mmlu, judge=None, seed=1), store)
    samples = {s.id: s for s in read_samples(store.fetch(scores.artifact))}
    likeliest = {r.id: max(range(4), key=lambda place: r.loglikelihoods[place][0]) for r in stored}
    assert {name: s.value for name, s in samples.items()} == {
        name: float(place == int(name) % 4) for name, place in likeliest.items()
    }
    assert {s.response for s in samples.values()} <= set("ABCD")


def test_how_answers_were_generated_stands_beside_them(store: Store, checkpoint: Artifact) -> None:
    drawn = specs(temperature=0.7, top_p=0.9)["gsm8k"]
    commit = execute(STAGE, request(checkpoint, {"gsm8k": drawn, "ifeval": specs()["ifeval"]}), store)
    settings = {
        name: json.loads((store.fetch(commit.artifact) / name / "generation.json").read_text())
        for name in ("gsm8k", "ifeval")
    }
    assert settings["gsm8k"] == {
        "chat_template": True,
        "max_new_tokens": 20,
        "temperatures": [0.7],
        "top_p": 0.9,
        "seed": 1,
    }
    assert settings["ifeval"]["temperatures"] == [0.0]


def test_a_suite_says_how_an_item_is_drawn_and_the_recipe_overrules_it(
    store: Store, checkpoint: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = replace(SUITES["mt_bench"], temperature_of=lambda item: 0.7 if item.fields["category"] == "writing" else 0.0)
    monkeypatch.setitem(SUITES, "mt_bench", warm)

    def answers(**changes: Any) -> tuple[list[Any], dict[str, Any]]:
        spec = specs(limit=20, **changes)["mt_bench"]
        folder = store.fetch(execute(STAGE, request(checkpoint, {"mt_bench": spec}), store).artifact) / "mt_bench"
        return read_responses(folder / "responses.jsonl"), json.loads((folder / "generation.json").read_text())

    (own, settings), (greedy, _) = answers(), answers(temperature=0.0)
    assert settings["temperatures"] == [0.0, 0.7]
    assert 0 < sum(one != other for one, other in zip(own, greedy, strict=True)) < 20


def test_the_length_of_answers_is_told_and_is_no_metric(store: Store, checkpoint: Artifact) -> None:
    spec = specs()["mt_bench"]
    responses = execute(STAGE, request(checkpoint, {"mt_bench": spec}), store).artifact
    scores = execute(SCORES, ScoresRequest(responses=responses, suite=spec, judge=None, seed=1), store)
    stored = read_responses(store.fetch(responses) / "mt_bench" / "responses.jsonl")
    assert scores.summary["length"] == {
        "answers": 6.0,
        "characters": pytest.approx(sum(len("".join(r.turns)) for r in stored) / 6, abs=1e-3),
        "tokens": pytest.approx(sum(sum(r.tokens) for r in stored) / 6, abs=1e-3),
    }


def test_answers_repeat_and_batches_do_not_count(store: Store, checkpoint: Artifact, tmp_path: Path) -> None:
    first = execute(STAGE, request(checkpoint, specs()), store)
    other_store = Store(str(tmp_path / "again"))
    for kind in ("checkpoint",):
        source = Path(store.path(kind))
        (tmp_path / "again").mkdir()
        (tmp_path / "again" / kind).symlink_to(source)
    again = execute(STAGE, request(checkpoint, specs(), batch_tokens=64), other_store)
    assert (first.key, first.digest) == (again.key, again.digest)


def test_the_second_turn_sees_the_first_answer(
    store: Store, checkpoint: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.generation.generator import Generator

    asked: list[Any] = []
    answer = Generator.answer

    def spy(self: Generator, prompts: Any, *rest: Any) -> Any:
        asked.append(list(prompts))
        return answer(self, prompts, *rest)

    monkeypatch.setattr(Generator, "answer", spy)
    commit = execute(STAGE, request(checkpoint, {"mt_bench": specs()["mt_bench"]}), store)
    folder = store.fetch(commit.artifact) / "mt_bench"
    items, answers = read_records(folder / "items.jsonl"), read_responses(folder / "responses.jsonl")
    first, second = asked
    for index, (item, given) in enumerate(zip(items, answers, strict=True)):
        turns = item["item"]["turns"]
        assert first[index] == [{"role": "user", "content": turns[0]}]
        assert second[index] == [
            {"role": "user", "content": turns[0]},
            {"role": "assistant", "content": given.turns[0]},
            {"role": "user", "content": turns[1]},
        ]


def test_items_that_do_not_fit_are_listed_as_failed_with_the_reason(
    store: Store, checkpoint: Artifact, tmp_path: Path
) -> None:
    questions = [{"question": "a", "answer": "#### 1"}, {"question": "b" * 300, "answer": "#### 2"}]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, questions)))
    spec = SuiteSpec(name="gsm8k", data=pin_file(str(tmp_path / "test.jsonl")), max_new_tokens=20)
    commit = execute(STAGE, request(checkpoint, {"gsm8k": spec}), store)
    assert commit.summary["suites"]["gsm8k"] == {"items": 2, "answered": 1, "failed": 1}
    answers = read_responses(store.fetch(commit.artifact) / "gsm8k" / "responses.jsonl")
    assert answers[1].failed is not None and answers[1].failed.endswith("tokens + 16 new > 256")
    scores = execute(SCORES, ScoresRequest(responses=commit.artifact, suite=spec, judge=None, seed=1), store)
    assert (scores.summary["n"], scores.summary["failed"]) == (1, 1)


def test_few_shot_examples_need_a_file_to_come_from(store: Store, checkpoint: Artifact) -> None:
    suites = {"gsm8k": specs(num_fewshot=2)["gsm8k"]}
    with pytest.raises(BadInput, match="few_shot_data"):
        execute(STAGE, request(checkpoint, suites), store)


def test_a_limit_changes_no_prompt(store: Store, checkpoint: Artifact) -> None:
    few = execute(STAGE, request(checkpoint, specs(limit=3)), store)
    more = execute(STAGE, request(checkpoint, specs(limit=6)), store)
    for name in EMBEDDED:
        path = f"{name}/responses.jsonl"
        answers = {a.id: a for a in read_responses(store.fetch(more.artifact) / path)}
        assert all(answers[a.id] == a for a in read_responses(store.fetch(few.artifact) / path))


def test_every_suite_is_scored_from_the_stored_answers(store: Store, checkpoint: Artifact) -> None:
    suites = specs()
    responses = execute(STAGE, request(checkpoint, suites), store).artifact
    for name, spec in suites.items():
        judge = Judge(kind="rubric") if name == "mt_bench" else None
        commit = execute(SCORES, ScoresRequest(responses=responses, suite=spec, judge=judge, seed=1), store)
        folder = store.fetch(commit.artifact)
        assert commit.summary["judged"] and commit.summary["n"] == 6
        measured = tuple(metric for metric in EMBEDDED[name].metrics if metric != "win_rate")  # there is no baseline
        assert tuple(commit.summary["metrics"]) == measured
        assert json.loads((folder / "metrics.json").read_text()) == commit.summary["metrics"]
        samples = read_samples(folder)
        assert {s.metric for s in samples} == set(measured)
        assert {s.suite for s in samples} == {name}
        assert (folder / "judgments.jsonl").exists() == (name == "mt_bench")


def test_mt_bench_without_a_judge_is_answered_and_not_judged(store: Store, checkpoint: Artifact) -> None:
    spec = specs()["mt_bench"]
    responses = execute(STAGE, request(checkpoint, {"mt_bench": spec}), store).artifact
    commit = execute(SCORES, ScoresRequest(responses=responses, suite=spec, judge=None, seed=1), store)
    assert (commit.summary["judged"], commit.summary["metrics"]) == (False, {})
    assert read_samples(store.fetch(commit.artifact)) == []


def test_how_a_judge_is_reached_is_not_in_the_key(checkpoint: Artifact) -> None:
    def key(suite: str, **settings: Any) -> str:
        judge = Judge(kind="openai", **({"model": "m"} | settings))
        return SCORES.key(ScoresRequest(responses=checkpoint, suite=specs()[suite], judge=judge, seed=1))

    assert key("mt_bench") == key("mt_bench", in_flight=3, api_key_env="OTHER")
    assert key("mt_bench") != key("mt_bench", model="n")
    assert key("gsm8k") == key("gsm8k", model="n")
    assert len({key("mt_bench", **of) for of in ({}, {"snapshot": "m-1"}, {"snapshot": "m-2"})}) == 3


def test_scores_of_another_address_snapshot_or_way_of_reading_are_not_compared(
    checkpoint: Artifact, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = store.commit_of(checkpoint)

    def scored(suite: str = "mt_bench", **settings: Any) -> ScoresRequest:
        judge = Judge.model_validate({"kind": "openai", "model": "m"} | settings)
        spec = SuiteSpec(name=suite, embedded="micro", max_new_tokens=4)
        return ScoresRequest(responses=checkpoint, suite=spec, judge=judge, seed=1)

    urls = {"base_url": "http://one/v1"}, {"base_url": "http://two/v1"}
    judges: list[dict[str, Any]] = [{}, *urls, {"snapshot": "m-1"}, {"snapshot": "m-2"}]
    assert len({scored(**of).settings(answers) for of in judges}) == len(judges)
    assert scored(in_flight=3).settings(answers) == scored().settings(answers)
    rubric = {"kind": "rubric", "model": None}
    names = ("mt_bench", {}), ("xstest", rubric), ("mt_bench", rubric), ("gsm8k", {})
    before = [(SCORES.key(scored(name, **of)), scored(name, **of).settings(answers)) for name, of in names]
    by_judge = scored("xstest").model_copy(
        update={"suite": scored("xstest").suite.model_copy(update={"scored_by": "judge"})}
    )
    assert by_judge.identity()["judge"]["model"] == "m" and by_judge.identity()["reading"]
    assert scored("xstest").identity()["judge"] is None
    assert by_judge.settings(answers) != scored("xstest").settings(answers)
    assert by_judge.suite.for_answering() == scored("xstest").suite
    monkeypatch.setattr("eval.stages.scores.READING", 99)
    monkeypatch.setitem(SUITES, "xstest", replace(SUITES["xstest"], classifier="other rules"))
    after = [(SCORES.key(scored(name, **of)), scored(name, **of).settings(answers)) for name, of in names]
    moved = [(one[0] != other[0], one[1] != other[1]) for one, other in zip(before, after, strict=True)]
    assert moved == [(True, True), (True, True), (False, False), (False, False)]


def test_the_rubric_grades_embedded_questions_only(store: Store, checkpoint: Artifact, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 1, "category": "stem", "turns": ["a", "b"]}))
    spec = SuiteSpec(name="mt_bench", data=pin_file(str(tmp_path / "q.jsonl")), max_new_tokens=4)
    responses = execute(STAGE, request(checkpoint, {"mt_bench": spec}), store).artifact
    with pytest.raises(BadInput, match="embedded questions only"):
        execute(SCORES, ScoresRequest(responses=responses, suite=spec, judge=Judge(kind="rubric"), seed=1), store)


def test_a_checkpoint_is_loaded_back_and_answers(store: Store, checkpoint: Artifact) -> None:
    commit = execute(CHECK, CheckRequest(checkpoint=checkpoint, prompt="Hello", precision="float32"), store)
    assert commit.summary["tokens"] > 0
    assert (store.fetch(commit.artifact) / "answer.txt").read_text() == commit.summary["answer"]
