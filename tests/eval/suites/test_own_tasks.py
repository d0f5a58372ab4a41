from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.recipe import parse_recipe
from assets.evals import scores_request
from assets.pins import suite_spec
from eval.commands import score_files
from eval.gate.default import gate_of
from eval.suites import pin_tasks, suite_named, suite_of
from eval.suites.rows import write_records
from eval.suites.samples import read_samples

COLOURS = """
task: colours
tag: mine
dataset_path: json
dataset_kwargs: {data_files: somewhere.jsonl}
test_split: test
output_type: generate_until
doc_to_text: "Which colour has {{thing}}?"
doc_to_target: "{{colour}}"
generation_kwargs: {until: ["\\n"]}
process_results: !function scoring.first_word
metric_list:
  - {metric: right, aggregation: mean, higher_is_better: true}
"""
CHOICES = """
task: bright
dataset_path: json
test_split: test
output_type: multiple_choice
doc_to_text: "{{thing}} is"
doc_to_choice: [dark, bright]
doc_to_target: "{{bright}}"
"""
SCORING = """
def first_word(doc, results):
    words = results[0].lower().split()
    return {"right": float(words[:1] == [doc["colour"]])}
"""
ITEMS = [
    {"thing": "snow", "colour": "white", "bright": 1},
    {"thing": "grass", "colour": "green", "bright": 1},
    {"thing": "coal", "colour": "black", "bright": 0},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "my_tasks"
    (place / "deep").mkdir(parents=True)
    (place / "colours.yaml").write_text(COLOURS)
    (place / "scoring.py").write_text(SCORING)
    (place / "deep" / "bright.yaml").write_text(CHOICES)
    write_records(tmp_path / "items.jsonl", ITEMS)
    return place


def recipe_with(folder: Path, **more: Any) -> Any:
    micro = {"embedded": "micro"}
    task = {"include_path": str(folder), "data": str(folder.parent / "items.jsonl")}
    data = {"name": "own", "base_model": micro, "sft": {"dataset": micro}, "preferences": micro}
    return parse_recipe(data | {"evals": {"lm_eval": {"colours": task}}} | more, "r", {})


def test_an_own_task_is_scored_from_stored_answers_by_its_own_function(folder: Path, tmp_path: Path) -> None:
    answers = [["white"], ["Green, of course"], ["Black as night"]]
    write_records(tmp_path / "answers.jsonl", ({"id": place, "turns": turns} for place, turns in enumerate(answers)))
    scored = score_files(
        "colours", tmp_path / "answers.jsonl", tmp_path / "items.jsonl", out=tmp_path, include_path=folder
    )
    assert (scored["n"], round(scored["metrics"]["right"]["value"], 6)) == (3, 0.666667)
    assert [sample.value for sample in read_samples(tmp_path)] == [1.0, 0.0, 1.0]


def test_an_own_task_of_choices_is_scored_from_stored_log_likelihoods(folder: Path, tmp_path: Path) -> None:
    values = [(-3.0, -1.0), (-1.0, -2.0), (-0.5, -4.0)]
    records = [
        {"id": place, "loglikelihoods": [[dark, dark > bright], [bright, bright > dark]]}
        for place, (dark, bright) in enumerate(values)
    ]
    write_records(tmp_path / "answers.jsonl", records)
    scored = score_files(
        "bright", tmp_path / "answers.jsonl", tmp_path / "items.jsonl", out=tmp_path, include_path=folder
    )
    assert scored["metrics"]["acc"]["value"] == pytest.approx(2 / 3)


def test_a_recipe_asks_scores_and_gates_an_own_task(folder: Path) -> None:
    recipe = recipe_with(folder, gate="default")
    suite = suite_of(recipe.evals, "colours")
    assert (suite.metrics, suite.output, suite.needs_judge) == (("right",), "generate_until", False)
    gate = gate_of(recipe)
    assert gate is not None and "colours/right" in gate.metrics


def test_a_change_of_the_task_or_of_its_code_is_another_suite(folder: Path) -> None:
    from alignment.store import Artifact

    settings = recipe_with(folder).evals.lm_eval["colours"]
    before = suite_spec("colours", settings)
    assert len(before.tasks) == 3 and len({file.sha256 for file in before.tasks}) == 3
    artifact = Artifact(kind="responses", key="0" * 64, attempt="a", digest="d")
    request = scores_request(recipe_with(folder), "colours", settings, artifact)
    assert request.suite.tasks == before.tasks and request.judge is None
    (folder / "scoring.py").write_text(SCORING.replace("[:1]", "[-1:]"))
    after = suite_spec("colours", settings)
    assert after.digest() != before.digest()
    assert json.dumps(after.identity()) != json.dumps(before.identity())
    moved = folder.rename(folder.parent / "elsewhere")
    assert suite_spec("colours", settings.model_copy(update={"include_path": str(moved)})).digest() == after.digest()


def test_pinned_tasks_that_were_edited_since_are_refused_and_known_ones_stay_as_they_were(folder: Path) -> None:
    pinned = pin_tasks(str(folder))
    assert suite_named("colours", pinned).metrics == ("right",)
    (folder / "scoring.py").write_text(SCORING + "\n# a remark\n")
    edited = pin_tasks(str(folder))
    assert suite_named("colours", pinned).metrics == ("right",)  # from the bytes that were pinned
    (folder / "scoring.py").write_text(SCORING + "\n# another\n")
    with pytest.raises(BadInput, match="has changed since it was pinned"):
        suite_named("colours", edited)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("colors", {}, "no task 'colors' in this folder; it has bright, colours, mine"),
        ("colors", {"number.yaml": "task: 0\n"}, "number.yaml, field 'task': the name of a task is a text"),
        ("colours", {"colours.yaml": "task: colours\n  doc: ["}, r"no task 'colours'; colours.yaml cannot be read"),
        ("colours", {"colours.yaml": COLOURS.replace("aggregation: mean", "aggregation: median")}, "no metric that is"),
        (
            "colours",
            {"colours.yaml": COLOURS.replace("metric: right, aggregation: mean", "metric: right")},
            "says `agg",
        ),
        ("colours", {"colours.yaml": COLOURS.replace("test_split: test", "")}, "colours has no split to test on"),
        ("colours", {"scoring.py": "import no_such_package\n" + SCORING}, "needs the package no_such_package"),
    ],
)
def test_what_an_own_task_lacks_is_said_in_one_line(
    folder: Path, name: str, change: dict[str, str], words: str
) -> None:
    for file, text in change.items():
        (folder / file).write_text(text)
    with pytest.raises(BadInput, match=words) as error:
        suite_named(name, pin_tasks(str(folder)))
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_a_folder_that_is_none_or_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("task: x")
    for place, words in (("none", "no such folder"), ("file", "not a folder"), ("empty", "holds no .yaml file")):
        with pytest.raises(BadInput, match=words):
            pin_tasks(str(tmp_path / place))
