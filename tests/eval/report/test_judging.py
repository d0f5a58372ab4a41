"""What judging took, from a judge that is really asked to the page that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.data import overlap as overlaps
from alignment.data.files import pin_file
from alignment.recipe import Dpo, Judge
from alignment.stages import Context, Request, Result, Stage, execute
from alignment.stages.preference_manifest import STAGE as MANIFEST
from alignment.stages.preference_manifest import ManifestRequest
from alignment.stages.preference_shard import STAGE as SHARD
from alignment.stages.preference_shard import ShardRequest
from alignment.store import Artifact, Commit, Store
from alignment.store.erase import erase
from eval.answers.files import ITEMS_FILE, RESPONSES_FILE, Response, write_responses
from eval.report.facts import Judging, facts_of, items_of, judging
from eval.report.preference_data import preference_findings
from eval.stages.evaluation_report import STAGE, ReportRequest
from eval.stages.responses import ResponsesRequest
from eval.stages.scores import STAGE as SCORES
from eval.stages.scores import ScoresRequest
from eval.suites import MT_BENCH, SuiteSpec
from eval.suites.items import load_items
from eval.suites.rows import write_records

QUESTIONS = 4
PRICE = {"input_usd": 1000.0, "output_usd": 5000.0}


@pytest.fixture
def report(
    store: Store, commit_checkpoint: Callable[..., Artifact], server: Any, tmp_path: Path
) -> Callable[..., ReportRequest]:
    """The request of a report on MT-Bench, judged by the server for a price (or for none)."""
    rows = ({"question_id": n, "category": "writing", "turns": [f"a {n}", f"b {n}"]} for n in range(QUESTIONS))
    write_records(tmp_path / "questions.jsonl", rows)
    spec = SuiteSpec(name="mt_bench", data=pin_file(str(tmp_path / "questions.jsonl")), max_new_tokens=8)

    def answer(request: ResponsesRequest, context: Context) -> Result:
        items = load_items(MT_BENCH, spec, 0)
        folder = context.out / "mt_bench"
        folder.mkdir()
        write_records(folder / ITEMS_FILE, ({"id": item.id, "item": item.fields} for item in items))
        said = request.checkpoint.digest
        write_responses(folder / RESPONSES_FILE, (Response(item.id, (said, f"{said} too")) for item in items))
        return Result(said)

    def scored(checkpoint: Artifact, judge: Judge) -> Artifact:
        asked = ResponsesRequest(
            checkpoint=checkpoint, suites={"mt_bench": spec}, seed=0, precision="float32", batch_tokens=1
        )
        answers = execute(Stage("responses", 1, ResponsesRequest, answer), asked, store).artifact
        return execute(SCORES, ScoresRequest(responses=answers, suite=spec, judge=judge, seed=0), store).artifact

    def request(**more: Any) -> ReportRequest:
        given = {"kind": "openai", "model": "grader", "base_url": server.url, "api_key_env": "TEST_JUDGE_KEY"}
        judge = Judge.model_validate(given | more)
        sft, policy = commit_checkpoint("sft"), commit_checkpoint("policy")
        return ReportRequest(
            sft=sft,
            policy=policy,
            sft_scores={"mt_bench": scored(sft, judge)},
            policy_scores={"mt_bench": scored(policy, judge)},
            champion=None,
            champion_scores={},
            gate=None,
            prices={"scores": 3600.0},
        )

    return request


def page(store: Store, request: ReportRequest) -> str:
    return (store.fetch(execute(STAGE, request, store).artifact) / "report.html").read_text(encoding="utf-8")


def test_both_models_judgments_are_told_and_their_price_is_in_the_total(
    report: Callable[..., ReportRequest], store: Store
) -> None:
    request = report(price=PRICE)
    facts = facts_of(store, request)
    calls = 2 * 2 * QUESTIONS
    usd = calls * (10 * PRICE["input_usd"] + 5 * PRICE["output_usd"]) * 1e-6
    assert facts.judging == Judging(calls, 10 * calls, 5 * calls, pytest.approx(usd))
    (scores,) = [stage for stage in facts.stages if stage.stage == "scores"]
    assert facts.total_cost == pytest.approx((scores.cost or 0.0) + usd)
    text = page(store, request)
    assert f">{calls}</td>" in text and f"{10 * calls} tokens asked, {5 * calls} answered" in text
    assert f">{usd:.2f}</td>" in text and "cost in USD" in text


def test_the_judgments_of_the_champion_are_in_the_bill_once(report: Callable[..., ReportRequest], store: Store) -> None:
    request = report(price=PRICE)
    alone = facts_of(store, request).judging
    assert alone is not None and alone.usd is not None
    champion = report(price=PRICE, model="another grader")
    compared = request.model_copy(update={"champion": champion.policy, "champion_scores": champion.policy_scores})
    judged = facts_of(store, compared).judging
    assert judged is not None and judged.usd == pytest.approx(1.5 * alone.usd)
    assert judged.judgments == alone.judgments + 2 * QUESTIONS
    same = request.model_copy(update={"champion": request.policy, "champion_scores": request.policy_scores})
    assert facts_of(store, same).judging == alone


class Trained(Request):
    settings: Dpo


def test_the_policys_settings_outside_of_what_practice_supports_are_on_the_page_and_in_the_notes(
    report: Callable[..., ReportRequest], store: Store
) -> None:
    request = report()
    assert facts_of(store, request).outside_practice == []
    trained = Stage("policy_checkpoint", 1, Trained, lambda request, context: Result("policy"))
    policy = execute(trained, Trained(settings=Dpo(loss="ipo", epochs=50)), store).artifact
    commit = execute(STAGE, request.model_copy(update={"policy": policy}), store)
    note = "epochs 50 is outside 1 to 2, which practice supports for ipo with all weights"
    assert note in commit.summary["notes"]
    assert f"<p>{note}.</p>" in (store.fetch(commit.artifact) / "report.html").read_text(encoding="utf-8")


class TrainedOn(Request):
    manifest: Artifact


def test_what_the_numbers_of_the_pairs_say_is_on_the_page_and_which_items_they_hold(
    report: Callable[..., ReportRequest], store: Store, tmp_path: Path
) -> None:
    request = report()
    question = " ".join(f"word{n}" for n in range(20))
    asked = items_of(store, request.policy_scores["mt_bench"], "mt_bench")
    pairs = [{"prompt": f"p{n}", "chosen": "the longer one", "rejected": f"no {n}"} for n in range(80)]
    pairs.append({"prompt": question, "chosen": "yes", "rejected": "no"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    shard = execute(SHARD, ShardRequest(file=pin_file(str(path))), store).artifact
    manifest = execute(MANIFEST, ManifestRequest(shards={"one": shard}, held_out_fraction=0.1), store).artifact
    found = {
        finding.name: finding
        for finding in preference_findings(store, manifest, {"mt_bench": asked | {"7": {"turns": [question]}}})
    }
    assert "mt_bench: 1 row holds 1 of its items (7)" in found["contamination"].sentence
    assert (found["contamination"].passed, found["length_bias"].passed) == (False, False)
    trained = Stage("policy_checkpoint", 1, TrainedOn, lambda request, context: Result("policy"))
    policy = execute(trained, TrainedOn(manifest=manifest), store).artifact
    text = page(store, request.model_copy(update={"policy": policy}))
    assert "Preference data" in text
    assert "the chosen answer is the longer one in 100 % of the pairs" in text


def test_items_are_looked_for_in_new_shards_only_and_a_damaged_record_is_made_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = " ".join(f"word{n}" for n in range(20))
    shards = {}
    for name in ("one", "two", "three"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps({"prompt": f"{name} {question}", "chosen": "yes", "rejected": "no"}) + "\n")
        shards[name] = execute(SHARD, ShardRequest(file=pin_file(str(path))), store).artifact
    looked: list[Path] = []

    def counted(folder: Path, asked: overlaps.ItemRuns) -> overlaps.ShardOverlap:
        looked.append(folder)
        return overlap(folder, asked)

    overlap = overlaps.overlap
    monkeypatch.setattr(overlaps, "overlap", counted)

    def found(*names: str) -> int:
        request = ManifestRequest(shards={name: shards[name] for name in names}, held_out_fraction=0.0)
        made = execute(MANIFEST, request, store).artifact
        return overlaps.overlap_of(store, made, {"suite": {"q": [question]}}).rows["suite"]

    assert (found("one"), len(looked)) == (1, 1)
    assert (found("one", "two"), len(looked)) == (2, 2)
    (kept, _) = sorted(Path(store.path("cache", "overlap")).rglob("*.json"))
    assert question not in kept.read_text()
    kept.write_text(kept.read_text()[:-4])
    assert (found("one", "two", "three"), len(looked)) == (3, 4)
    erase(store, store.commit_of(shards["three"]), ["rows.parquet"], "rows were withdrawn")
    assert (found("one", "two", "three"), len(looked)) == (3, 4), "what was found is known without the rows"


def test_a_judge_without_a_price_is_told_by_its_tokens(report: Callable[..., ReportRequest], store: Store) -> None:
    request = report().model_copy(update={"prices": {}})
    facts = facts_of(store, request)
    assert facts.judging is not None and facts.judging.usd is None and facts.total_cost is None
    text = page(store, request)
    assert "tokens asked" in text and "No pool of these stages and no judge names a price." in text


def test_a_bill_of_an_interrupted_judging_counts_all_its_judgments(
    report: Callable[..., ReportRequest], store: Store
) -> None:
    def billed(**bill: Any) -> Commit:
        commit = store.commit_of(request.sft_scores["mt_bench"])
        return commit.model_copy(update={"summary": {"judge": {"input_tokens": 7, "output_tokens": 3} | bill}})

    request = report()
    resumed, older, unjudged = (
        billed(asked=2, judgments=9, usd=1.5),
        billed(asked=4, usd=None),
        billed().model_copy(update={"summary": {}}),
    )
    assert judging([resumed, older, unjudged]) == Judging(13, 14, 6, 1.5)
    assert judging([unjudged]) is None
