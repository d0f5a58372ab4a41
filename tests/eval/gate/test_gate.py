from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from alignment.recipe import Gate, Requirement
from alignment.stages import Context, Result, Stage, execute
from alignment.store import Artifact, CorruptArtifact, Store
from eval.answers.files import Response, write_responses
from eval.gate.baselines import PublishedFigure
from eval.gate.evidence import recompute
from eval.gate.scores import WrongEvidence, lack_items
from eval.stages.evaluation_report import STAGE, ReportRequest
from eval.stages.responses import ResponsesRequest
from eval.stages.scores import STAGE as SCORES
from eval.stages.scores import ScoresRequest
from eval.suites import SuiteSpec
from eval.suites.rows import write_records

GATE = Gate(metrics={"gsm8k/exact_match,strict-match": Requirement(improve=0.0)})
SPEC = SuiteSpec(name="gsm8k", embedded="micro", max_new_tokens=8)
NASTY = "<script>alert('x')</script><img src=http://example.com/x.png>"

Scores = Callable[..., Artifact]


@pytest.fixture
def score(store: Store) -> Scores:
    """Commits answers to 60 items of which some are right, and their scores, as of a checkpoint."""

    def commit(checkpoint: Artifact, correct: int, spec: SuiteSpec = SPEC, failed: int = 0) -> Artifact:
        def run(request: ResponsesRequest, context: Context) -> Result:
            folder = context.out / "gsm8k"
            folder.mkdir()
            items = [{"id": str(n), "item": {"question": f"{n} {NASTY}", "answer": f"#### {n}"}} for n in range(60)]
            write_records(folder / "items.jsonl", items)
            answers = [f"{NASTY} #### {n if n < correct else 'none'}" for n in range(60)]
            whole = [Response(str(n), (answer,)) for n, answer in enumerate(answers[: 60 - failed])]
            lost = [Response(str(n), (), failed="no room") for n in range(60 - failed, 60)]
            write_responses(folder / "responses.jsonl", [*whole, *lost])
            return Result(digest=f"{request.checkpoint.digest}-{correct}-{failed}")

        stage = Stage("responses", 1, ResponsesRequest, run)
        request = ResponsesRequest(
            checkpoint=checkpoint, suites={"gsm8k": spec}, seed=correct + failed, precision="float32", batch_tokens=1
        )
        responses = execute(stage, request, store).artifact
        return execute(SCORES, ScoresRequest(responses=responses, suite=spec, judge=None, seed=0), store).artifact

    return commit


class World:
    """An SFT checkpoint and a policy with their scores, and the report over them."""

    def __init__(self, store: Store, commit: Callable[..., Artifact], score: Scores, correct: int = 40) -> None:
        self.store = store
        self.sft, self.policy, self.other = commit("sft"), commit("policy"), commit("other")
        self.request = ReportRequest(
            sft=self.sft,
            policy=self.policy,
            sft_scores={"gsm8k": score(self.sft, 10)},
            policy_scores={"gsm8k": score(self.policy, correct)},
            champion=None,
            champion_scores={},
            gate=GATE,
        )

    def report(self, **changes: object) -> Artifact:
        return execute(STAGE, self.request.model_copy(update=changes), self.store).artifact


@pytest.fixture
def world(store: Store, commit_checkpoint: Callable[..., Artifact], score: Scores) -> World:
    return World(store, commit_checkpoint, score)


def test_the_verdict_comes_out_the_same_when_it_is_recomputed(world: World) -> None:
    report = world.report()
    written = json.loads((world.store.fetch(report) / "verdict.json").read_text())
    again = recompute(world.store, report, world.policy, GATE)
    assert again.outcome == written["outcome"] == "pass"
    assert again.model_dump(mode="json") == written


def test_an_edited_verdict_changes_nothing(world: World, score: Scores) -> None:
    report = world.report(policy_scores={"gsm8k": score(world.policy, 2)})
    path = world.store.fetch(report) / "verdict.json"
    assert json.loads(path.read_text())["outcome"] == "fail"
    size = path.stat().st_size
    path.write_text(path.read_text().replace('"outcome": "fail"', '"outcome": "pass"'))
    assert path.stat().st_size == size
    with pytest.raises(CorruptArtifact, match=r"verdict\.json"):
        recompute(world.store, report, world.policy, GATE)


def test_a_pass_that_an_older_version_gave_over_items_the_baseline_lacks_is_not_taken(
    world: World, score: Scores
) -> None:
    def as_version_0_1_0(request: ReportRequest, context: Context) -> Result:
        (context.out / "verdict.json").write_text(json.dumps({"outcome": "pass"}))
        return Result("passed", {"verdict": "pass"})

    request = world.request.model_copy(update={"sft_scores": {"gsm8k": score(world.sft, 10, failed=30)}})
    stale = execute(Stage(STAGE.name, STAGE.code_version, ReportRequest, as_version_0_1_0), request, world.store)
    assert recompute(world.store, stale.artifact, world.policy, GATE).outcome == "inconclusive"

    scores = [*request.sft_scores.values(), *request.policy_scores.values()]
    assert lack_items(world.store, scores) and not lack_items(world.store, world.request.sft_scores.values())
    anew = execute(STAGE, request.model_copy(update={"incomplete": True}), world.store)
    assert anew.key != stale.key and anew.summary["verdict"] == "inconclusive"
    assert "the SFT baseline lacks 30 of the 60 values that the candidate has" in anew.summary["reasons"][0]


def test_a_comparison_in_which_nothing_is_missing_is_written_as_before(world: World) -> None:
    report = world.report()
    written = json.loads((world.store.fetch(report) / "comparison.json").read_text())
    fields = written["sft"]["suites"]["gsm8k"]["exact_match,strict-match"]
    assert "missing" in fields and not {"baseline_own", "candidate_own"} & fields.keys()


def test_an_edited_sample_is_found_by_its_sha256(world: World) -> None:
    report = world.report()
    path = world.store.fetch(world.request.sft_scores["gsm8k"]) / "samples.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptArtifact, match=r"samples.parquet: sha256"):
        recompute(world.store, report, world.policy, GATE)


def test_a_report_about_another_policy_or_gate_is_refused(world: World) -> None:
    report = world.report()
    with pytest.raises(WrongEvidence, match="about policy"):
        recompute(world.store, report, world.other, GATE)
    lenient = Gate(metrics={"gsm8k/exact_match,strict-match": Requirement(at_least=0.0)})
    with pytest.raises(WrongEvidence, match="other gate settings"):
        recompute(world.store, report, world.policy, lenient)


def test_scores_of_another_checkpoint_are_refused(world: World, score: Scores) -> None:
    with pytest.raises(WrongEvidence, match="the gsm8k scores are of checkpoint other"):
        world.report(policy_scores={"gsm8k": score(world.other, 60)})


def test_a_champion_measured_with_other_settings_leaves_the_verdict_open(world: World, score: Scores) -> None:
    other = SPEC.model_copy(update={"max_new_tokens": 9})
    report = world.report(champion=world.other, champion_scores={"gsm8k": score(world.other, 5, other)})
    commit = world.store.commit_of(report)
    assert commit.summary["verdict"] == "inconclusive"
    assert "GSM8K against the champion: measured with other settings" in commit.summary["notes"]
    (reason,) = commit.summary["reasons"]
    assert "the champion was measured with other settings; `align run` measures it again" in reason
    assert "`align promote --override`" in reason
    fair = world.report(champion=world.other, champion_scores={"gsm8k": score(world.other, 5)})
    assert world.store.commit_of(fair).summary["verdict"] == "pass"


def test_a_suite_on_one_side_only_is_left_out_by_name(world: World) -> None:
    commit = world.store.commit_of(world.report(sft_scores={}))
    assert commit.summary["notes"] == ["GSM8K: measured on one side only"]
    assert (commit.summary["verdict"], commit.summary["comparisons"]) == ("inconclusive", {})


def test_the_summary_holds_what_a_person_compares(world: World) -> None:
    commit = world.store.commit_of(world.report())
    found = commit.summary["comparisons"]["gsm8k"]["exact_match,strict-match"]
    assert (found["n"], found["gained"], found["lost"]) == (60, 30, 0)
    assert found["difference"] == pytest.approx(0.5)
    assert commit.summary["verdict"] == "pass" and commit.summary["reasons"]


def test_the_report_depends_on_statistics_and_verdict_only(world: World) -> None:
    first = world.store.commit_of(world.report())
    again = execute(Stage(STAGE.name, 99, ReportRequest, STAGE.run), world.request, world.store)
    assert first.key != again.key and first.digest == again.digest


class _Page(HTMLParser):
    """A page's tags, addresses, ids, and the texts of its tables' cells; complains of tags that cross."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.styles: list[str] = []
        self.unlabelled: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.addresses += [given[name] or "" for name in ("src", "href", "action", "data", "srcset") if name in given]
        self.ids += [given["id"] or ""] if "id" in given else []
        self.styles += [given["style"] or ""] if "style" in given else []
        if tag == "svg" and not given.get("aria-label"):
            self.unlabelled.append(self.get_starttag_text() or tag)
        if tag not in ("meta", "link", "br", "wbr", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(world: World, report: Artifact) -> str:
    return (world.store.fetch(report) / "report.html").read_text()


def test_the_report_is_one_escaped_page_without_outside_requests(world: World, score: Scores) -> None:
    text = read(world, world.report(champion=world.other, champion_scores={"gsm8k": score(world.other, 5)}))
    page = _Page(text)
    assert {"script", "img", "iframe", "object", "form"} & set(page.tags) == set()
    assert {address for address in page.addresses if not address.startswith("#")} == {"data:,"}
    assert not re.search(r"url\(|@import", text) and "expression" not in "".join(page.styles)
    assert "&lt;script&gt;" in text and 'name="viewport"' in text
    assert page.unlabelled == [] and page.tags.count("svg") == 6
    assert "+50.0" in text


def test_the_pages_links_lead_to_its_sections_verdict_first(world: World, score: Scores) -> None:
    text = read(world, world.report(champion=world.other, champion_scores={"gsm8k": score(world.other, 5)}))
    page = _Page(text)
    links = [address[1:] for address in page.addresses if address.startswith("#")]
    assert links and set(links) <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert page.ids[0] == "verdict" and text.index("Passed: the policy may be promoted") < text.index("<table")
    places = [page.ids.index(name) for name in ("gate", "sft", "champion", "items", "lineage")]
    assert places == sorted(places)


def test_the_page_names_recipe_versions_date_and_judge(world: World) -> None:
    text = read(world, world.report(recipe="night_one"))
    assert text.count("night_one") >= 2 and "policy" in text
    assert f">{world.policy.digest[:12]}<" in text and f">{world.sft.digest[:12]}<" in text
    assert "none before this" in text and "none asked" in text
    assert re.search(r"<dt>Evaluated</dt><dd>\d+ \w+ 20\d\d</dd>", text)


def test_gains_are_shown_ten_at_most_and_that_nothing_was_lost_is_said(world: World) -> None:
    text = read(world, world.report())
    assert text.count("<details>") == 10
    assert "Gained: 30 items, the 10 largest" in text and "Lost: none" in text


def test_published_figures_stand_beside_ours_with_their_source(world: World) -> None:
    figures = [
        PublishedFigure(model="<i>Theirs</i>", metric="gsm8k", value=0.9, source="Somebody 2024"),
        PublishedFigure(model="Per cent", metric="gsm8k", value=61.0, source="blog"),
        PublishedFigure(model="Elsewhere", metric="mmlu", value=0.5, source="blog"),
    ]
    text = read(world, world.report(baselines=figures))
    assert "&lt;i&gt;Theirs&lt;/i&gt;" in text and "90.0 %" in text and "Somebody 2024" in text
    assert "61 is not a fraction from 0 to 1" in text and "Elsewhere, mmlu: not measured here" in text


def test_names_prices_and_published_figures_change_the_page_and_not_the_data_version(world: World) -> None:
    plain = world.store.commit_of(world.report())
    told = world.store.commit_of(world.report(recipe="r", prices={"responses": 3.0}))
    assert told.key != plain.key and told.digest == plain.digest
    text = read(world, told.artifact)
    assert ">cost<" in text and ">cost<" not in read(world, plain.artifact)


def test_the_figures_are_kept_as_small_pictures_too(world: World) -> None:
    folder = world.store.fetch(world.report())
    assert [path.name for path in folder.glob("*.png")] == ["differences.png"]
    picture = (folder / "differences.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 60_000


def test_the_report_says_when_nothing_can_be_compared(world: World) -> None:
    report = world.report(sft_scores={}, gate=None)
    text = (world.store.fetch(report) / "report.html").read_text()
    assert "No gate: nothing is promoted" in text and "measured on one side only" in text
