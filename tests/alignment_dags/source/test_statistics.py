"""`align prefs stats` and `align prefs noise`: files or a recipe in, numbers, sentences and a picture out."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from alignment.data.embedded import embedded
from alignment.data.overlap import item_texts
from alignment.recipe import Recipe, load_recipe
from alignment.stages import execute
from alignment.stages.preference_manifest import STAGE, ManifestRequest
from alignment.stages.preference_shard import STAGE as SHARD
from alignment.store import Ref
from alignment_dags.cli import main
from assets.building.factory import numbers
from assets.building.upstream import Upstream
from assets.graph import nodes_of
from assets.preference_manifest import evaluation_items
from resources.pools import load_pools
from resources.store import ArtifactStore

Align = Callable[..., tuple[int, str, str]]


@pytest.fixture
def align(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Align:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["align", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    records = [{"prompt": f"p{n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(8)]
    records += [records[3] | {"chosen": "no 3", "rejected": "yes 3"}, records[5] | {"chosen": "Yes,  5"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    micro = {"embedded": "micro"}
    asked = {
        "name": "mine",
        "base_model": micro,
        "sft": {"dataset": micro, "precision": "float32"},
        "preferences": {**micro, "decontaminate": ["gsm8k"]},
        "evals": {"gsm8k": micro},
    }
    path.write_text(yaml.safe_dump(asked), encoding="utf-8")
    return path


def test_rows_that_contradict_or_repeat_another_are_named_by_file_and_row(align: Align, pairs: Path) -> None:
    picture = pairs.with_name("pictures") / "stats.png"
    code, out, _ = align("prefs", "stats", str(pairs), "--picture", str(picture), "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["rows"], told["shards"], told["contradictory"]) == (10, 1, 2)
    assert sorted(row["source_row"] for row in told["contradictory_rows"]) == [4, 9]
    assert [row["source_row"] for row in told["near_duplicate_rows"]] == [10]
    assert told["near_duplicates"] == {"rows": 10, "near_duplicates": 1, "similarity": 0.9}
    assert told["pairs"]["pairs"] == 10
    assert {finding["name"]: finding["passed"] for finding in told["findings"]} == {
        "length_bias": True,  # of so few pairs nothing can be said
        "contradictions": False,
        "near_duplicates": False,
    }
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, out, _ = align("prefs", "stats", str(pairs))
    assert code == 0
    assert "LOOK  contradictions: 2 of 10 rows contradict another row" in out
    assert f"{pairs.stem}: {pairs}, row 9" in out


def test_a_recipe_that_was_never_built_is_measured_from_its_source(align: Align, recipe: Path) -> None:
    code, out, err = align("prefs", "stats", str(recipe), "--json")
    told = json.loads(out)
    assert (code, told["source"], told["shards"]) == (0, "the source of mine", 3), err
    assert told["overlap"] == {"rows": {"gsm8k": 0}, "items": {}, "asked": {"gsm8k": 250}}
    assert told["reference_logps"] is None


def test_a_recipe_is_measured_as_its_training_set_stands_and_decontaminate_makes_the_items_inputs(
    align: Align, recipe: Path
) -> None:
    mine = load_recipe(recipe)
    build(mine)
    code, out, err = align("prefs", "stats", str(recipe), "--json")
    assert (code, json.loads(out)["source"]) == (0, "the training set of mine"), err
    asked = [manifest_request(one) for one in (mine, without_decontaminate(recipe))]
    assert [set(request.decontaminate or ()) for request in asked] == [{"gsm8k"}, set()]
    items = item_texts((asked[0].decontaminate or {})["gsm8k"], "gsm8k")
    assert list(items.values()) == list(evaluation_items(mine)["gsm8k"].values())
    old = asked[1].model_dump(mode="json")
    assert not {"decontaminate", "near_duplicates", "max_length_gap", "min_reference_logp"} & set(old)


def test_flipped_labels_are_told_with_an_interval_and_a_remedy(align: Align, tmp_path: Path) -> None:
    paths = []
    for day in range(3):
        records = embedded("micro").preference_records(day, 0)
        for record in records[::5]:
            record["chosen"], record["rejected"] = record["rejected"], record["chosen"]
        paths.append(tmp_path / f"day-{day}.jsonl")
        paths[-1].write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    code, out, _ = align("prefs", "noise", *map(str, paths), "--json")
    told = json.loads(out)
    assert code == 0
    assert told["low"] <= 0.2 <= told["high"]
    (wrong,) = [finding for finding in told["findings"] if not finding["passed"]]
    assert wrong["name"] == "label_noise"
    assert "cdpo or ipo" in wrong["sentence"]
    code, out, _ = align("prefs", "noise", *map(str, paths))
    assert (code, "LOOK  label noise: about 2" in out) == (0, True)


def tasted(draw: random.Random, count: int, concise: bool) -> list[dict[str, str]]:
    """Pairs of a long and a short answer of random words; 80 % of the labels follow the taste."""
    words = [f"w{number}" for number in range(200)]
    pairs = []
    for _ in range(count):
        long, short = (" ".join(draw.choices(words, k=draw.randint(*size))) for size in ((25, 45), (5, 15)))
        chosen, rejected = (short, long) if concise == (draw.random() < 0.8) else (long, short)
        pairs.append({"prompt": f"p{draw.random()}", "chosen": chosen, "rejected": rejected})
    return pairs


@pytest.fixture
def two_tastes(tmp_path: Path) -> dict[str, list[str]]:
    """1,500 pairs that prefer long answers in 3 files, and 600 that prefer concise ones in 2."""
    draw, files = random.Random(0), dict[str, list[str]]()
    for name, parts, count in (("long", 3, 500), ("concise", 2, 300)):
        for part in range(parts):
            path = tmp_path / f"{name}-{part}.jsonl"
            records = tasted(draw, count, name == "concise")
            path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
            files.setdefault(name, []).append(str(path))
    return files


def of_sources(recipe: Path, files: dict[str, list[str]]) -> Path:
    written = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    written["preferences"] = [{"name": name, "files": own} for name, own in files.items()]
    recipe.write_text(yaml.safe_dump(written), encoding="utf-8")
    return recipe


def test_a_named_source_with_another_taste_is_not_called_swapped(
    align: Align, recipe: Path, two_tastes: dict[str, list[str]]
) -> None:
    code, out, _ = align("prefs", "noise", *(file for own in two_tastes.values() for file in own), "--json")
    told = json.loads(out)
    assert (code, set(told["swapped"]), told["pairs"], "sources" in told) == (
        0,
        {"concise-0", "concise-1"},
        1500,
        False,
    )
    assert "or these are of a source with another taste: name it under preferences.sources" in out

    code, out, err = align("prefs", "noise", str(of_sources(recipe, two_tastes)), "--json")
    told = json.loads(out)
    assert (code, told["swapped"], told["pairs"]) == (0, {}, 2100), err
    assert {name: own["pairs"] for name, own in told["sources"].items()} == {"long": 1500, "concise": 600}
    for own in told["sources"].values():
        assert own["agreement"] == pytest.approx(0.8, abs=0.04)
        assert own["low"] <= 0.2 <= own["high"]
    shards, labels = told["findings"]
    assert shards["passed"] and shards["sentence"] == "no shard says the opposite of the others of its source"
    assert not labels["passed"] and "long: about " in labels["sentence"] and "concise: about " in labels["sentence"]


def test_a_shard_that_is_swapped_within_its_named_source_is_still_found(
    align: Align, recipe: Path, two_tastes: dict[str, list[str]], tmp_path: Path
) -> None:
    turned = tmp_path / "turned.jsonl"
    records = tasted(random.Random(1), 300, concise=False)
    turned.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    two_tastes["concise"].append(str(turned))
    _, out, _ = align("prefs", "noise", str(of_sources(recipe, two_tastes)), "--json")
    told = json.loads(out)
    assert set(told["swapped"]) == {"concise-turned"}
    assert "the other shards' of the same source" in told["findings"][0]["sentence"]
    assert {name: own["pairs"] for name, own in told["sources"].items()} == {"long": 1500, "concise": 600}


def test_lengths_are_judged_source_by_source_by_command_and_guard(align: Align, recipe: Path, tmp_path: Path) -> None:
    files = {}
    for name, longer in (("long", 49), ("concise", 1)):
        pairs = [
            {"prompt": f"{name} {n}", "chosen": "yes " * (3 if n < longer else 1), "rejected": "no no"}
            for n in range(50)
        ]
        files[name] = [str(tmp_path / f"{name}.jsonl")]
        Path(files[name][0]).write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    _, out, _ = align("prefs", "stats", *(own[0] for own in files.values()), "--json")
    together = {finding["name"]: finding for finding in json.loads(out)["findings"]}["length_bias"]
    assert together["passed"] and together["numbers"]["chosen_longer"] == 0.5, "nobody said that there are two sources"

    mine = load_recipe(of_sources(recipe, files))
    build(mine)
    _, out, err = align("prefs", "stats", str(recipe), "--json")
    told = {finding["name"]: finding for finding in json.loads(out)["findings"]}["length_bias"]
    store = ArtifactStore().open()
    (node,) = [node for node in nodes_of(mine, load_pools()) if node.name == "preference_manifest"]
    ref = store.read_ref(mine.name, "preference_manifest")
    assert ref is not None and node.guards is not None
    commit = store.commit_of(ref.artifact)
    guard = {guard.name: guard for guard in node.guards.findings(store, commit)}["length_bias"]
    assert (guard.passed, guard.sentence, guard.numbers) == (False, told["sentence"], told["numbers"]), err
    assert "long: the chosen answer is the longer one in 98 % of the pairs" in guard.sentence
    assert "concise: the chosen answer is the longer one in 2.0 % of the pairs" in guard.sentence
    assert commit.summary["pairs"]["chosen_longer"] == guard.numbers["chosen_longer"] == 0.5, "as it is recorded"
    table = node.show(commit, store.fetch(ref.artifact)).markdown["preference_data"]
    assert "contradictions" in table and "length bias" not in table, "the guard says it of each source"


@pytest.mark.parametrize("verb", ["stats", "noise"])
def test_what_cannot_be_measured_is_one_line(align: Align, pairs: Path, recipe: Path, verb: str) -> None:
    empty = pairs.with_name("empty.jsonl")
    empty.write_text('{"prompt": "p"}\n', encoding="utf-8")
    for arguments, told in (
        (("none.jsonl",), "none.jsonl"),
        ((str(empty),), "no valid preference row; most common reason: "),
        ((str(recipe), str(pairs)), "give either one recipe or preference files"),
        (("none.yaml",), "none.yaml: no such recipe"),
    ):
        code, out, err = align("prefs", verb, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert told in err


def test_unpaired_rows_have_no_noise_of_pairs(align: Align, tmp_path: Path) -> None:
    path = tmp_path / "thumbs.jsonl"
    path.write_text('{"prompt": "p", "completion": "c", "label": true}\n', encoding="utf-8")
    assert align("prefs", "stats", str(path))[0] == 0
    code, _, err = align("prefs", "noise", str(path))
    assert (code, "no pairs" in err) == (2, True)


def test_dagster_shows_what_the_numbers_of_shards_and_manifest_say(recipe: Path) -> None:
    mine = load_recipe(recipe)
    build(mine)
    store = ArtifactStore().open()
    nodes = {node.name: node for node in nodes_of(mine, load_pools())}
    for name, shard in (("preference_shard", "day-1"), ("preference_manifest", None)):
        ref = store.read_ref(mine.name, name, shard)
        assert ref is not None
        commit = store.commit_of(ref.artifact)
        shown = nodes[name].show(commit, store.fetch(ref.artifact)).markdown["preference_data"]
        assert "length bias" in shown and "contradictions" in shown
        assert {"pairs/chosen_longer", "pairs/pairs", "contradictory"} <= set(numbers(commit.summary))


def without_decontaminate(recipe: Path) -> Recipe:
    written = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    del written["preferences"]["decontaminate"]
    other = recipe.with_name("other.yaml")
    other.write_text(yaml.safe_dump(written), encoding="utf-8")
    return load_recipe(other)


def build(recipe: Recipe) -> None:
    """Shards and a manifest without references, and their refs."""
    store = ArtifactStore().open()
    requests = Upstream(store, recipe.name).shards(recipe)
    made = {name: execute(SHARD, requests[name], store).artifact for name in requests}
    for name, artifact in made.items():
        store.write_ref(Ref(artifact=artifact), recipe.name, "preference_shard", name)
    manifest = execute(STAGE, ManifestRequest(shards=made, held_out_fraction=0.1), store)
    store.write_ref(Ref(artifact=manifest.artifact), recipe.name, "preference_manifest", None)
    store.write_ref(Ref(artifact=manifest.artifact), recipe.name, "sft_checkpoint", None)


def manifest_request(recipe: Recipe) -> ManifestRequest:
    (node,) = [node for node in nodes_of(recipe, load_pools()) if node.name == "preference_manifest"]
    request = node.request(Upstream(ArtifactStore().open(), recipe.name), None)
    assert isinstance(request, ManifestRequest)
    return request
