"""What a source did, and whether a recipe gives the same again: policies of derived recipes, made as any other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from alignment.data.withdrawal import Tombstone, bury, read_withdrawn, tombstone
from alignment.errors import BadInput
from alignment.recipe import Recipe, load_recipe, parse_recipe
from alignment.stages import execute
from alignment.stages.policy_logprobs import STAGE as POLICY_LOGPROBS
from alignment.stages.policy_logprobs import PolicyLogprobsRequest
from alignment.store import Artifact, Ref
from alignment_dags.cli.models import lines
from alignment_dags.cli.worth import show_certificate, show_sources
from alignment_dags.recipes import derive, derived
from alignment_dags.registry.cards import card_for
from alignment_dags.registry.lineage import lineage_of
from alignment_dags.registry.reports import write_report
from alignment_dags.registry.reproduce import certify, reproduce, with_seed
from alignment_dags.registry.source_values import badness, corrected, effect
from alignment_dags.registry.sources import sources_of
from alignment_dags.retention.withdraw import restore
from alignment_dags.run.workspace import Workspace
from assets.building.node import NotNeeded
from assets.building.upstream import Upstream
from assets.certificate import Certified
from assets.reference_logprobs import scoring
from eval.gate.baselines import PublishedFigure, WrittenFigure, read_baselines
from eval.gate.default import gate_of
from eval.gate.evidence import ReportRequest, recompute
from eval.gate.held_out import read_held_out
from eval.report.guards import drift_guards
from eval.stages.evaluation_report import ReportSummary
from eval.stages.new_rows import STAGE as NEW_ROWS
from eval.statistics import paired_interval, repeats
from eval.suites.items import sample_positions
from eval.suites.suite import Item
from eval.summaries import NewRowsSummary
from resources.home import PROJECT
from resources.pools import load_pools
from resources.store import ArtifactStore

Say = Callable[[str], None]
NEW = {"new_rows": {}}
PASSES = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}}


@pytest.fixture
def write(small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the small recipe with changes, as the only one in use."""

    def write(**changed: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(small_recipe | changed), encoding="utf-8")
        monkeypatch.setenv("ALIGN_RECIPES", str(path))
        return path

    return write


def run(file: Path, say: Say) -> None:
    """A recipe is brought up to date by its stages alone, without Dagster and MLflow, and registers nothing."""
    workspace = Workspace(load_recipe(file), load_pools())
    for node in workspace.nodes[:-1]:
        for shard in workspace.upstream().shards(workspace.recipe) if node.partitioned else [None]:
            with suppress(NotNeeded):
                made = execute(node.stage, node.request(workspace.upstream(), shard), workspace.store)
                ref = Ref(artifact=made.artifact, mlflow_run_id="none")
                workspace.store.write_ref(ref, workspace.recipe.name, node.name, shard)


def test_a_planted_bad_source_comes_out_worst_with_its_value_proved_below_zero(
    write: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its rows ask for the opposite of what the others ask for."""

    def source(name: str, chosen: str, rejected: str) -> dict[str, Any]:
        rows = [{"prompt": f"{name} {n}", "chosen": chosen, "rejected": rejected} for n in range(30)]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return {"name": name, "files": [str(file)]}

    listed = [source("list", "Yes.", "No."), source("ask", "Yes.", "No."), source("planted", "No.", "Yes.")]
    path = write(preferences=listed, held_out_fraction=0.3, evals={}, tokens={"max_length": 64})
    said: list[str] = []
    priced = sources_of(path, [], False, True, said.append, run)
    assert (priced["policies"], priced["to_train"], priced["sources"]) == (4, 4, [])
    assert said == [
        "4 of 4 policies are to be trained and evaluated; what one takes is known after the first `align run`"
    ]
    found = sources_of(path, ["ask", "planted"], False, False, said.append, run)
    worst, other = found["sources"]
    assert (worst["source"], worst["recipe"], worst["rows"]) == ("planted", "small_without_planted", 30)
    value = worst["metrics"]["preferences/margin"]
    assert value["ci95"][1] < 0 and effect(value) == "harm", value
    every = [each for one in found["sources"] for each in one["metrics"].values()]
    assert len(every) == 4 and value["p_holm"] == 4 * min(each["p_value"] for each in every), "of all, not of a metric"
    assert other["metrics"]["preferences/margin"]["difference"] > value["difference"]
    again = sources_of(path, ["ask", "planted"], False, True, said.append, run)
    assert again["to_train"] == 0, "everything is there"
    store = ArtifactStore().open()
    policy = store.read_ref("small_whole", "policy_checkpoint")
    assert policy is not None and store.commit_of(policy.artifact).summary["rows_trained"] > 0
    page = tmp_path / "history.html"
    write_report(path, page, history=True)
    text = page.read_text(encoding="utf-8")
    assert "What each source did" in text and "one training, with training noise of its own" in text
    for colour, shown in (("regressed", "harm"), ("improved", "good")):
        assert text.count(f'class="{colour}" data-label="value"') == [effect(each) for each in every].count(shown)
    show_sources(found)
    assert "planted  30    preferences/margin" in capsys.readouterr().out
    with pytest.raises(BadInput, match="no source 'plantd'; did you mean planted"):
        sources_of(path, ["plantd"], False, True, said.append, run)
    with pytest.raises(BadInput, match=r"'preferences\.sources': a source's value"):
        sources_of(write(), [], False, True, said.append, run)


def lines_of(name: str, chosen: str, rejected: str, numbers: range, folder: Path) -> dict[str, Any]:
    """A source whose file has a pair for each number."""
    rows = [{"prompt": f"{name} {n}", "chosen": chosen, "rejected": rejected} for n in numbers]
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"name": name, "files": [str(file)]}


@pytest.mark.parametrize("links", [1, 2])
def test_a_source_counts_only_where_nothing_but_its_shards_tells_both_policies_from_each_other(
    write: Callable[..., Path], small_recipe: dict[str, Any], tmp_path: Path, links: int
) -> None:
    """Else an old policy without a source is compared with a new one of all sources, and what changed between them
    passes for the source's value."""
    settings = small_recipe.pop("dpo") | {"method": "dpo"}

    def use(rows: int, beta: float, answer: int) -> Path:
        listed = [
            lines_of("ask", "Yes.", "No.", range(30), tmp_path),
            lines_of("web", "No.", "Yes.", range(rows), tmp_path),
        ]
        trainings = [settings | {"beta": beta}] * links
        suite = small_recipe["evals"]["ifeval"] | {"max_new_tokens": answer}
        evals = small_recipe["evals"] | {"ifeval": suite} if links == 1 else {}
        section = {"optimise": trainings if links > 1 else trainings[0], "evals": evals}
        return write(preferences=listed, held_out_fraction=0.3, tokens={"max_length": 64}, **section)

    def page(path: Path) -> tuple[str, list[str]]:
        write_report(path, tmp_path / "history.html", history=True)
        text = (tmp_path / "history.html").read_text(encoding="utf-8")
        section = text[text.index('id="sources"') :]
        return section, [name for name in ("ask", "web") if f'role="rowheader">{name}<' in section]

    def measure(path: Path, *sources: str) -> list[str]:
        found = sources_of(path, sources, False, False, print, run)
        assert found["out_of_date"] == []
        return [one["source"] for one in found["sources"]]

    stale = "was measured on other data or settings than the last policy of all sources"
    path = use(30, 0.1, 8)
    assert sorted(measure(path)) == ["ask", "web"]
    section, listed = page(path)
    assert listed == ["ask", "web"] and stale not in section
    assert f"{datetime.now(UTC):%-d %B %Y}" in section
    changes = {"settings": (30, 0.5, 8), "data": (40, 0.5, 8)} | ({"questions": (40, 0.5, 4)} if links == 1 else {})
    for change in changes.values():
        measure(use(*change), "web")
        section, listed = page(path)
        assert listed == ["web"] and f"<em>ask</em> {stale}" in section
        assert sorted(measure(path)) == page(path)[1] == ["ask", "web"]


def test_a_policy_without_a_weighted_source_has_the_same_rows_of_the_others(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    """Else the value of a small source would mostly be that of many more rows of a large one."""
    listed = [
        lines_of("small", "Yes.", "No.", range(12), tmp_path) | {"weight": 1},
        lines_of("large", "Yes.", "No.", range(60), tmp_path) | {"weight": 1},
        lines_of("other", "Yes.", "No.", range(10), tmp_path),
    ]
    path = write(preferences=listed, held_out_fraction=0.3, evals={}, tokens={"max_length": 64})
    assert sources_of(path, ["small"], False, True, print, run)["to_train"] == 2
    found = sources_of(path, ["small"], False, False, print, run)
    assert [one["source"] for one in found["sources"]] == ["small"] and found["out_of_date"] == []
    assert sources_of(path, ["small"], False, True, print, run)["to_train"] == 0, "everything is there"
    store = ArtifactStore().open()

    def kept(recipe: str) -> dict[str, set[str]]:
        ref = store.read_ref(recipe, "preference_manifest")
        assert ref is not None
        rows = pq.read_table(store.fetch(ref.artifact) / "split.parquet").to_pylist()
        return {
            name: {row["row_id"] for row in rows if row["split"] != "dropped" and row["shard"].startswith(name)}
            for name in ("small", "large", "other")
        }

    whole = kept("small_whole")
    assert {name: len(rows) for name, rows in whole.items()} == {"small": 12, "large": 12, "other": 10}
    assert kept("small_without_small") == whole | {"small": set()}


def test_a_recipe_that_is_run_again_with_other_seeds_gets_a_certificate_that_is_kept_with_the_version(
    write: Callable[..., Path],
    finished: Callable[[Recipe], Upstream],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(gate=PASSES)
    upstream = finished(load_recipe(path))
    figures = tmp_path / "published.csv"
    metric, accuracy = "preferences/margin", "ifeval/prompt_level_strict_acc"
    report = ReportSummary.of(upstream.store.commit_of(upstream("evaluation_report")))
    own = report.comparisons["preferences"]["margin"].candidate
    rows = (f"ours,{metric},1e6,a paper", f"ours,{metric},{own},a page", "ours,ifeval,1.0,a talk")
    figures.write_text("\n".join(("model,metric,value,source", *rows)), encoding="utf-8")
    said: list[str] = []
    priced = reproduce(path, 2, figures, "ours", True, said.append, run)
    assert (priced["to_train"], priced["certificate"]) == (1, None), "the first seed's policy is the recipe's own"
    assert said[0].startswith("1 of 2 policies is to be trained and evaluated: about ")
    made = reproduce(path, 2, figures, "ours", False, said.append, run)["certificate"]
    assert made["seeds"] == [0, 1] and made["policy"] == upstream("policy_checkpoint").digest
    one = next(one for one in made["metrics"] if one["metric"] == metric)
    expected = repeats(list(one["values"].values()))
    assert (one["mean"], one["deviation"], one["low"], one["high"]) == pytest.approx(
        (expected.mean, expected.deviation, expected.low, expected.high)
    )
    assert [figure["noise"] for figure in one["published"]] == ["outside", "within"]
    equal = next(one for one in made["metrics"] if one["metric"] == accuracy)
    assert (equal["deviation"], [figure["noise"] for figure in equal["published"]]) == (0.0, ["unknown"])
    assert made["comparisons"] == 3 and not made["reproduced"]
    store, recipe, by_seed = upstream.store, load_recipe(path), {0: "small_seed_0", 1: "small_seed_1"}
    high = repeats(list(one["values"].values()), 2).high or 0.0  # of two figures
    digits, outside = next(  # a value that lies outside of the interval by less than half of its last digit
        (digits, value)
        for digits in range(1, 9)
        if 0.01 < ((value := math.ceil(high * 10**digits) / 10**digits) - high) * 10**digits < 0.4
    )
    texts = [f"{outside:.{digits}f}", f"{outside:.{digits + 3}f}"]
    about = {"model": "ours", "metric": metric, "source": "a page"}
    given = [WrittenFigure(PublishedFigure(value=float(text), **about), text, "page.csv", 2) for text in texts]
    told = {
        one.metric: [each.noise for each in one.published] for one in certify(store, recipe, by_seed, given).metrics
    }
    assert told[metric] == ["within", "outside"], "the same number with more digits is known more exactly"
    per_cent = WrittenFigure(PublishedFigure(**about | {"metric": accuracy}, value=90.0), "90.0", "page.csv", 7)
    with pytest.raises(
        BadInput, match=r"page\.csv, row 7, field 'value': ours: 90\.0 is no value of ifeval/.* fractions"
    ):
        certify(store, recipe, by_seed, [per_cent])

    assert one["deviation"] > 0 and one["own"] == one["values"]["0"]

    lineage = lineage_of("small")
    assert lineage["certificate"]["told"].startswith("repeated with 2 seeds on ")
    assert "(a page) is within run-to-run noise" in lineage["certificate"]["told"]
    assert "certificate: repeated with 2 seeds" in "\n".join(lines(lineage))
    assert "The recipe was repeated with 2 seeds" in card_for(ArtifactStore().open(), "small").text
    page = tmp_path / "history.html"
    write_report(path, page, history=True)
    assert "The recipe was repeated with 2 seeds" in page.read_text(encoding="utf-8")
    show_certificate({"recipe": "small", "certificate": made})
    shown = capsys.readouterr().out
    assert f"{metric}: ours 1e+06 (a paper) is outside run-to-run noise" in shown
    assert f"{accuracy}: ours 1 (a talk) cannot be judged: the runs are all equal" in shown
    assert "3 published figures are compared with intervals that are wider than these (Bonferroni)" in shown
    assert reproduce(path, 2, figures, "ours", True, said.append, run)["certificate"] == made
    changed = write(gate=PASSES, dpo=yaml.safe_load(path.read_text())["dpo"] | {"learning_rate": 2e-3})
    priced = reproduce(changed, 2, figures, "ours", True, said.append, run)
    assert (priced["to_train"], priced["certificate"]) == (2, None), "the certificate is of other settings"
    with pytest.raises(BadInput, match="has no model 'our'; did you mean ours"):
        reproduce(path, 2, figures, "our", True, said.append, run)
    with pytest.raises(BadInput, match="'--published': no such file"):
        reproduce(path, 2, tmp_path / "none.csv", "ours", True, said.append, run)


def test_every_seed_asks_the_questions_of_the_recipes_own_seed(
    write: Callable[..., Path], small_recipe: dict[str, Any]
) -> None:
    """Else the spread of one and the same policy over five samples of questions would pass for run-to-run noise."""
    evals = small_recipe["evals"] | {"ifeval": small_recipe["evals"]["ifeval"] | {"limit": 3, "temperature": 1.0}}
    path = write(evals=evals, gate=PASSES, seed=1)
    run(path, print)
    reproduce(path, 3, None, None, False, print, run)
    store = ArtifactStore().open()

    def answers(recipe: str) -> Artifact:
        ref = store.read_ref(recipe, "policy_responses")
        assert ref is not None
        return ref.artifact

    def asked(recipe: str) -> list[str]:
        folder = store.fetch(answers(recipe)) / "ifeval"
        assert json.loads((folder / "generation.json").read_text())["seed"] == int(recipe[-1]), "answers are drawn anew"
        return [json.loads(line)["id"] for line in (folder / "items.jsonl").read_text().splitlines()]

    items = [Item(str(number), {}) for number in range(6)]
    own, others = (sample_positions(items, 3, seed) for seed in (1, 2))
    assert own != others, "the seed draws the questions"
    assert [asked(f"small_seed_{seed}") for seed in (1, 2, 3)] == [list(map(str, own))] * 3
    assert answers("small_seed_1") == answers("small"), "the first seed's answers are the recipe's own"


def test_a_seed_changes_nothing_but_itself_where_all_questions_are_asked_or_they_are_embedded() -> None:
    def recipe(**evals: Any) -> Recipe:
        micro = {"embedded": "micro"}
        smallest = {"name": "small", "base_model": micro, "sft": {"dataset": micro}, "preferences": micro}
        return parse_recipe(smallest | {"evals": evals}, "r", {})

    whole = recipe(ifeval={"data": "i.jsonl"}, gsm8k={"embedded": "micro", "limit": 50})
    assert with_seed(whole, 3) == ["seed=3"]
    tasks = {"mmlu": {"data": "m.jsonl", "limit": 9}, "arc_easy": {"data": "a.jsonl", "limit": 9, "sample_seed": 7}}
    sampled = recipe(ifeval={"data": "i.jsonl", "limit": 250}, lm_eval=tasks)
    assert with_seed(sampled, 3) == ["seed=3", "evals.ifeval.sample_seed=0", "evals.lm_eval.mmlu.sample_seed=0"]
    assert with_seed(sampled, 0) == ["seed=0"]


def test_a_published_figure_of_what_is_not_measured_is_told_before_anything_is_trained(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    figures, said = tmp_path / "published.csv", list[str]()
    header = "model,metric,value,source\n"
    figures.write_text(f"{header}ours,ifevl,0.5,a paper\nours,gsm8k,0.5,a paper\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"field 'metric': the recipe measures no ifevl; did you mean ifeval\?, nor any"):
        reproduce(write(), 2, figures, "ours", True, said.append, run)
    figures.write_text(f"{header}ours,ifeval,0.5,a paper\nours,gsm8k,0.5,a paper\n", encoding="utf-8")
    for named in ("ifeval", "ifeval/inst_level_loose_acc", "preferences", "preferences/ranking_accuracy"):
        figures.write_text(f"{header}ours,gsm8k,61.0,a paper\nours,{named},90.0,a paper\n", encoding="utf-8")
        with pytest.raises(
            BadInput, match=rf"published\.csv, row 3, .*ours: 90\.0 is no value of {named}, .* fractions"
        ):
            reproduce(write(), 2, figures, "ours", True, said.append, run)
    assert not said, "nothing was priced or run"
    rows = ("ours,preferences/margin,90.0,a paper", "ours,ifeval,1.0,a paper", "theirs,ifeval,90.0,a paper")
    figures.write_text(header + "\n".join(rows), encoding="utf-8")
    reproduce(write(), 2, figures, "ours", True, said.append, run)
    figures.write_text(f"{header}ours,ifeval,0.5,a paper\nours,gsm8k,0.5,a paper\n", encoding="utf-8")
    reproduce(write(), 2, figures, "ours", True, said.append, run)
    assert said[-1] == "published figures that this recipe does not measure: gsm8k"


def test_what_was_withdrawn_from_a_recipe_is_withdrawn_from_those_that_are_derived_from_it(
    write: Callable[..., Path],
) -> None:
    """Else `align sources` and `align reproduce` would train policies on rows that somebody asked to go."""
    path, store = write(), ArtifactStore().open()
    bury(store, "small", "rows", [Tombstone(id="aa", at="2026-01-01T00:00:00+00:00", reason="asked")])
    bury(store, "small", "shards", [Tombstone(id="pairs", at="2026-01-01T00:00:00+00:00", artifacts=["k"])])
    reproduce(path, 2, None, None, True, print, run)
    assert not read_withdrawn(store, "small_seed_1").rows, "a dry run writes nothing"
    for seed in range(2):
        name = derive(path, [f"seed={seed}"], f"small_seed_{seed}").stem
        withdrawn = read_withdrawn(store, name)
        assert (withdrawn.rows, withdrawn.shards) == ({"aa"}, {"pairs"})
    stone = tombstone(store, "small", "rows", "aa")
    assert stone and stone.model_copy(update={"inherited_from": "small"}) == tombstone(
        store, "small_seed_1", "rows", "aa"
    )


def test_what_was_restored_to_a_recipe_is_restored_to_those_that_are_derived_from_it_again(
    write: Callable[..., Path],
) -> None:
    """Else the certificate would be of a policy that lacks rows which the recipe's own has."""
    path, store = write(), ArtifactStore().open()
    withdrawn = [Tombstone(id=row, at="2026-01-01T00:00:00+00:00") for row in ("aa", "bb")]
    bury(store, "small", "rows", withdrawn)
    bury(store, "small", "shards", [Tombstone(id="pairs", at="2026-01-01T00:00:00+00:00", artifacts=["k"])])
    derive(path, ["seed=1"], "small_seed_1")
    bury(store, "small_seed_1", "rows", withdrawn[1:])
    restore(path, ["aa", "bb"], ["pairs"])
    again = derived(path, ["seed=1"], "small_seed_1")
    assert read_withdrawn(store, "small_seed_1").rows == {"aa", "bb"}, "nothing is written yet"
    for found in (again.withdrawn(store), read_withdrawn(store, again.write().stem)):
        assert (found.rows, found.shards) == ({"bb"}, set()), "somebody withdrew it from the derived recipe itself"
    restore(again.file, ["bb"], [])
    assert not read_withdrawn(store, "small_seed_1").rows


def places_of(policy: Artifact) -> tuple[int, int]:
    """How many rows a policy was trained on, and how many were held out."""
    table = pq.read_table(ArtifactStore().open().fetch(policy) / "training_rows.parquet", columns=["split"])
    places = table["split"].to_pylist()
    return places.count("train"), places.count("held_out")


def test_the_champion_is_measured_on_rows_that_it_never_saw_before_they_train_anything(
    write: Callable[..., Path],
    finished: Callable[[Recipe], Upstream],
    small_recipe: dict[str, Any],
    tmp_path: Path,
) -> None:
    """The new rows ask for the opposite of what the champion learnt; each is scored once, as a reference's are."""
    champion = finished(load_recipe(write(gate=PASSES)))("policy_checkpoint")
    old = small_recipe["preferences"]["files"]
    seen = [json.loads(line) for line in Path(old[0]).read_text(encoding="utf-8").splitlines()]
    known, (trained, held_out) = seen[:6], places_of(champion)
    assert trained + held_out == len({row["prompt"] for row in seen}) == len(seen) and held_out
    fresh = [{"prompt": f"Name {n}", "chosen": "No.", "rejected": f"It is {n}."} for n in range(100, 120)]
    corrected = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in seen]
    lines = "".join(json.dumps(row) + "\n" for row in [*known, *corrected, *fresh])
    (tmp_path / "new.jsonl").write_text(lines, encoding="utf-8")
    asked = {"metrics": PASSES["metrics"] | {"new_rows/accuracy": {"at_least": 0.6}}}
    path = write(
        gate=asked,
        preferences=small_recipe["preferences"] | {"files": [*old, str(tmp_path / "new.jsonl")]},
        evals=small_recipe["evals"] | {"new_rows": {"max_rows": 12}},
    )
    run(path, print)
    workspace = Workspace(load_recipe(path), load_pools())
    store, upstream = workspace.store, workspace.upstream()
    made = store.commit_of(upstream("new_rows"))
    told = NewRowsSummary.of(made)
    assert made.inputs["checkpoint"] == champion != upstream("policy_checkpoint")
    assert told.trained_prompts == trained, "of labels that were corrected the champion learnt the opposite"
    new = 20 + held_out
    assert (told.new, told.measured, told.scored, told.dropped) == (new, 12, 24, 0), "known rows are not measured"
    assert told.accuracy is not None and told.accuracy < 0.2 and told.held_out_accuracy is not None
    (finding,) = drift_guards().findings(store, made)
    assert not finding.passed and "look at the new data" in finding.sentence, finding.sentence

    again = {"checkpoint": champion, "manifest": upstream("preference_manifest"), **scoring(workspace.recipe)}
    scored = execute(POLICY_LOGPROBS, PolicyLogprobsRequest(**again), store)
    places = store.fetch(scored.artifact).rglob("logprobs.parquet")
    expected = {row["row_id"]: row for place in places for row in pq.read_table(place).to_pylist()}
    pairs = read_held_out(store, made.artifact)
    assert pairs is not None and len(pairs.pairs) == 12
    assert all(expected[pair.row_id]["chosen_logp"] == pair.chosen_logp for pair in pairs.pairs)
    every = next(node for node in workspace.nodes if node.name == "new_rows").request(upstream, None)
    whole = NewRowsSummary.of(execute(NEW_ROWS, every.model_copy(update={"max_rows": 1000}), store))
    assert (whole.measured, whole.scored, whole.cache_hits) == (new, 0, 2 * new), "no model pass for known sequences"

    report = store.commit_of(upstream("evaluation_report"))
    assert report.inputs["new_rows"] == made.artifact
    verdict = ReportSummary.of(report)
    assert verdict.verdict == "fail" and verdict.reasons[0].startswith("new_rows/accuracy: ")
    assert any(note.startswith("new rows: the champion prefers") for note in verdict.notes)
    assert recompute(store, report.artifact, upstream("policy_checkpoint")).outcome == "fail"
    first = ReportRequest.model_validate_json(store.read(report.artifact, "request.json"))
    alone = first.model_copy(update={"new_rows": None}).asked
    assert alone is not None and set(alone.metrics) == set(PASSES["metrics"]), "without a champion nothing is asked"
    with pytest.raises(BadInput, match="measured on the champion, not on the policy"):
        gate_of(load_recipe(write(gate={"metrics": {"new_rows/accuracy": {"no_regression": 0.1}}}, evals=NEW)))


def test_new_rows_are_compared_with_held_out_pairs_of_their_own_source(
    write: Callable[..., Path], finished: Callable[[Recipe], Upstream], tmp_path: Path
) -> None:
    def source(name: str, chosen: str, rejected: str, *days: range, called: str = "") -> dict[str, Any]:
        for day, numbers in enumerate(days):
            rows = [{"prompt": f"{name} {n}", "chosen": chosen, "rejected": rejected} for n in numbers]
            file = tmp_path / f"{name}_{day}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files = [str(tmp_path / f"{name}_{day}.jsonl") for day in range(len(days))]
        return {"name": called or name, "files": files}

    def recipe(*days: range, called: str = "web") -> Path:
        listed = [source("ask", "Yes.", "No.", range(40)), source("web", "No.", "Yes.", *days, called=called)]
        new_rows = {"evals": {"ifeval": small["evals"]["ifeval"], "new_rows": {"max_rows": 12}}}
        return write(preferences=listed, held_out_fraction=0.3, gate=PASSES, tokens={"max_length": 64}, **new_rows)

    small = yaml.safe_load(write().read_text(encoding="utf-8"))
    champion = finished(load_recipe(recipe(range(40))))("policy_checkpoint")
    path = recipe(range(40), range(100, 130))
    run(path, print)
    workspace = Workspace(load_recipe(path), load_pools())
    made = workspace.store.commit_of(workspace.upstream()("new_rows"))
    told = NewRowsSummary.of(made)
    assert made.inputs["checkpoint"] == champion and list(told.sources) == ["web"]
    held_out = read_held_out(workspace.store, champion)
    assert held_out is not None
    split = pq.read_table(workspace.store.fetch(made.inputs["known"]) / "split.parquet")
    shards = {row["row_id"]: row["shard"] for row in split.to_pylist()}
    prefers = [one.chosen_ratio > one.rejected_ratio for one in held_out.pairs if shards[one.row_id] == "web-web_0"]
    assert 3 <= len(prefers) < len(held_out.pairs)
    assert told.held_out_accuracy == told.sources["web"].held_out_accuracy == pytest.approx(sum(prefers) / len(prefers))

    for stage in ("preference_shard", "reference_logprobs"):
        for old in ("web-web_0", "web-web_1"):
            workspace.store.remove_ref("small", stage, old)
    run(recipe(range(40), range(100, 130), range(200, 220), called="crawl"), print)
    renamed = NewRowsSummary.of(workspace.store.commit_of(workspace.upstream()("new_rows")))
    assert renamed.sources["crawl"].held_out_accuracy is not None and renamed.drift is not None


def test_sources_are_sorted_by_what_is_proved_and_where_they_are_alike_by_the_next_metric() -> None:
    def source(name: str, *values: tuple[float, float | None]) -> dict[str, Any]:
        metrics = {str(n): {"difference": value, "p_value": p_value} for n, (value, p_value) in enumerate(values)}
        return {"source": name, "metrics": metrics}

    proved = source("proved", (0.1, 0.2), (-0.5, 0.001))
    unproved = source("unproved", (0.2, None), (-0.5, 0.02))  # its interval lies below zero, among eight others
    better = source("better", (0.3, 0.0001), (0.3, 0.5))
    found = [better, source("good", (0.0, 0.9), (0.3, 0.4)), source("even", (0.0, 0.9), (0.2, 0.4)), unproved, proved]
    ordered = sorted(corrected(found), key=badness)
    assert [one["source"] for one in ordered] == ["proved", "even", "good", "unproved", "better"]
    assert [effect(each) for each in ordered[0]["metrics"].values()] == [None, "harm"]
    assert ordered[0]["metrics"]["1"]["p_holm"] == pytest.approx(8 * 0.001)
    assert [each["p_holm"] for each in ordered[3]["metrics"].values()] == [None, pytest.approx(7 * 0.02)]
    assert effect(ordered[4]["metrics"]["0"]) == "good"


def test_where_no_source_does_anything_harm_is_told_in_few_tables_whatever_their_size() -> None:
    """500 right-or-wrong items of which 8 % differ, by chance alone: 8 sources and 5 metrics, 500 tables."""
    generator, clusters, tables = np.random.default_rng(0), [str(item) for item in range(500)], 500

    @cache
    def compared(gained: int, lost: int) -> dict[str, Any]:
        found = paired_interval([1.0] * gained + [-1.0] * lost + [0.0] * (500 - gained - lost), clusters, 1.0)
        return {"difference": found.mean.value, "high": found.high, "p_value": found.p_value}

    below = harmed = 0
    for _ in range(tables):
        drawn = generator.multinomial(500, [0.04, 0.04, 0.92], size=(8, 5))
        named = [
            {"source": str(n), "metrics": {str(k): compared(int(g), int(b)) for k, (g, b, _) in enumerate(row)}}
            for n, row in enumerate(drawn)
        ]
        every = [each for one in corrected(named) for each in one["metrics"].values()]
        below += any(each["high"] < 0 for each in every)
        harmed += any(effect(each) == "harm" for each in every)
    assert below / tables > 0.5, "what the intervals alone would say"
    assert harmed / tables <= 0.08


def test_an_interval_of_a_fraction_ends_where_the_scale_does() -> None:
    about: dict[str, Any] = {"metric": "m", "values": {}, "mean": 0.9, "deviation": 0.1, "own": 0.9, "noise": "within"}
    assert Certified(**about, low=0.7, high=1.1, width=1.0).ends == (0.7, 1.0)
    assert Certified(**about, low=-0.7, high=1.1).ends == (-0.7, 1.1)
    assert Certified(**about, low=None, high=None, width=1.0).ends == (None, None)


def test_the_figures_of_the_quickstart_are_those_of_the_readme() -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    for figure in read_baselines(PROJECT / "recipes" / "baselines" / "quickstart.csv"):
        suite, _, metric = figure.metric.partition("/")
        row = next(line.split() for line in readme.splitlines() if line.split()[:2] == [suite, metric])
        assert float(row[4]) == figure.value, figure
