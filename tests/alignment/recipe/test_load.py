"""Recipes: what a person writes wrong is named by file and field."""

from __future__ import annotations

import json
import re
import time
from datetime import date
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from alignment.errors import BadInput
from alignment.recipe import Recipe, load_recipe, parse_recipe
from alignment.recipe.load import read_yaml
from resources.home import PROJECT
from resources.pools import Pools, load_pools

SMALLEST = """
name: small
base_model: {embedded: micro}
sft: {dataset: {embedded: micro}}
preferences: {embedded: micro}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def shipped() -> list[Path]:
    return sorted(path for path in (PROJECT / "recipes").glob("*.yaml") if path.name != "pools.yaml")


def test_a_date_is_written_as_yaml_has_it(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALLEST + "tokens: {today: 2025-02-03}\n"))
    assert recipe.tokens.today == date(2025, 2, 3)
    assert recipe.tokens.model_dump(mode="json") == {"max_length": 2048, "truncation": "drop", "today": "2025-02-03"}
    with pytest.raises(BadInput, match=r"tokens\.today"):
        load_recipe(write(tmp_path, SMALLEST + "tokens: {today: tomorrow}\n"))


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_well_formed_and_names_pools_that_exist(path: Path) -> None:
    recipe = load_recipe(path)
    pools = load_pools()
    assert all(pools[name].slots >= 1 for name in recipe.pools.model_dump().values())


@pytest.mark.parametrize(
    "name",
    ["team/llama", "it's", "x:1", "model@2", 'a"b', "a`b", "a\\\\b", "a\\tb", "", " ", "..", "-x", "x ", "x" * 257],
)
def test_a_model_name_that_the_registry_or_our_own_commands_refuse_is_refused_here(tmp_path: Path, name: str) -> None:
    text = SMALLEST + f"registry: {{model_name: {json.dumps(name)}}}\n"
    with pytest.raises(BadInput, match=r"field 'registry\.model_name': .*letters, digits, blanks") as refused:
        load_recipe(write(tmp_path, text))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["llama", "Llama 3.2_1B-dpo+sft", "catalog.schema.model", "modèle", "x" * 256])
def test_other_model_names_are_taken(tmp_path: Path, name: str) -> None:
    assert load_recipe(write(tmp_path, SMALLEST + f"registry: {{model_name: {json.dumps(name)}}}\n")).model_name == name


@pytest.mark.parametrize(
    ("preferences", "more", "told"),
    [
        ({"max_length_gap": -1}, {}, "field 'preferences.max_length_gap'"),
        ({"min_reference_logp": 1}, {}, "field 'preferences.min_reference_logp'"),
        ({"near_duplicates": 0.3}, {}, "field 'preferences.near_duplicates'"),
        ({"decontaminate": ["gsm8k"]}, {}, "preferences.decontaminate names gsm8k, which evals does not select"),
        (
            {"min_reference_logp": -5},
            {"dpo": {"loss": "simpo"}},
            "preferences.min_reference_logp needs a reference, and loss: simpo has none",
        ),
    ],
)
def test_a_filter_of_rows_that_cannot_be_meant_is_named(
    preferences: dict[str, object], more: dict[str, object], told: str
) -> None:
    micro = {"embedded": "micro"}
    data = {"name": "small", "base_model": micro, "sft": {"dataset": micro, "precision": "float32"}}
    with pytest.raises(BadInput, match=re.escape(told)):
        parse_recipe(data | {"preferences": micro | preferences} | more, "-", {})


def test_the_smallest_recipe_is_enough(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, SMALLEST)).name == "small"


@pytest.mark.parametrize(
    ("addition", "told"),
    [
        ("betta: 1", "field 'betta': unknown key"),
        ("dpo: {betta: 1}", "field 'dpo.betta': unknown key"),
        ("seed: many", "field 'seed'"),
        ("dpo: {beta: -1}", "field 'dpo.beta'"),
        ("dpo: {label_smoothing: 0.1}", "label_smoothing counts only with loss: cdpo or robust"),
        ("dpo: {precision: float32}", "must be the same"),
        ("gate: {metrics: {a/b: {improve: 0, at_least: 1}}}", "exactly one of no_regression, improve, at_least"),
        ("dpo: {tf32: true}", "field 'dpo': tf32 counts only with precision: float32, and precision is bfloat16"),
        ("dpo: {adam_betas: [0.9, 1]}", "field 'dpo.adam_betas.1': must be below 1"),
        ("dpo: {adam_betas: [0.9]}", "field 'dpo.adam_betas.1'"),
        ("dpo: {weighted: true}", "weighted needs preferences.weight_column, the column of the data that holds it"),
        ("dpo: {target_margin: column}", "target_margin: column needs preferences.margin_column"),
        ("dpo: {max_steps: 0}", "field 'dpo.max_steps'"),
        ("dpo: {epochs: .inf}", "field 'dpo.epochs': must be a finite number"),
        ("evals: {lm_eval: {mmlu: {}}}", "field 'evals.lm_eval.mmlu': give either data (a file) or hub (a data set)"),
        ("evals: {lm_eval: {mmlu: {data: a, hub: b}}}", "give data or hub, not both"),
        ("evals: {lm_eval: {mmlu: {data: a, config: all}}}", "revision, config and few_shot_split go with hub"),
        ("evals: {generate: {kind: endpoint}}", "base_url goes with kind: endpoint"),
        ("evals: {generate: {kind: endpoint, base_url: h, model: m}}", "model must hold {digest}"),
        ("evals: {generate: {kind: endpoint, base_url: 'http://u:p@h'}}", "no user or password"),
        *(
            (f"judge: {{kind: openai, model: m, base_url: '{url}'}}", "base_url must be as in http://host:8000/v1")
            for url in (
                "",
                "localhost:8000/v1",
                "http://",
                "ftp://h/v1",
                "http://h:port",
                "http://h:99999",
                "http://a b",
            )
        ),
        ("evals: {generate: {kind: endpoint, base_url: h:8000}}", "base_url must be as in http://host:8000/v1"),
        ("evals: {xstest: {}}", "field 'evals.xstest': give either data (a file) or hub (a data set)"),
        ("evals: {lm_eval: {gsm8k: {data: a}}}", "gsm8k has a section of its own"),
        ("evals: {lm_eval: {a/b: {data: a}}}", "'a/b' cannot name a suite"),
        ("evals: {gsm8k: {embedded: micro, temperature: -1}}", "field 'evals.gsm8k.temperature'"),
        ("gate: {metrics: {}}", "field 'gate.metrics'"),
        ("held_out_fraction: &a [*a]", "nested too deeply"),
        ("description: ${NOT_SET_ANYWHERE}", "environment variable NOT_SET_ANYWHERE is not set"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, addition: str, told: str) -> None:
    path = write(tmp_path, SMALLEST + addition)
    with pytest.raises(BadInput) as caught:
        load_recipe(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sft_rows_without_a_data_set_to_take_them_of_are_refused(tmp_path: Path) -> None:
    adopting = SMALLEST.replace("dataset:", "adopt:")
    path = write(tmp_path, adopting + "dpo: {sft_rows_fraction: 0.1}")
    with pytest.raises(BadInput, match=r"sft_rows_fraction takes rows of sft\.dataset, and the recipe has none"):
        load_recipe(path)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MERGED = "b0: &b0 {x: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 10)}]}}\n" for n in range(1, 10))
CHAIN = "c0: &c0 [x]\n" + "".join(f"c{n}: &c{n} [*c{n - 1}]\n" for n in range(1, 5000))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB, "more than 100,000 keys and values with its aliases expanded"),
        (MERGED, "more than 100,000 keys and values with its aliases expanded"),
        (CHAIN, "nested too deeply: more than 50 levels"),
        (f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 200)}]\n", "more than 100,000 keys and values"),
        ("a: &a {b: *a}\n", "nested too deeply: an anchor contains itself"),
        ("a: " + "[" * 60 + "]" * 60 + "\n", "nested too deeply: more than 50 levels"),
        ("a: " + "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_few_lines_that_stand_for_billions_of_nodes_are_refused_in_one_line_at_once(
    tmp_path: Path, text: str, told: str
) -> None:
    path = write(tmp_path, text)
    began = time.process_time()
    for read in (load_recipe, load_pools):
        with pytest.raises(BadInput, match=re.escape(told)) as refused:
            read(path)
        assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert time.process_time() - began < 10


def test_anchors_and_merged_mappings_mean_what_they_say(tmp_path: Path) -> None:
    path = write(tmp_path, "a: &a {x: 1, y: [2]}\nb: {<<: *a, x: 3}\nc: *a\n")
    assert read_yaml(path, "recipe") == {"a": {"x": 1, "y": [2]}, "b": {"x": 3, "y": [2]}, "c": {"x": 1, "y": [2]}}


@pytest.mark.parametrize("text", ["", "- a list", "name: [unclosed", "name: x\x00y"])
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput, match=r"recipe\.yaml"):
        load_recipe(write(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_what_variables_hold_is_not_in_what_was_written() -> None:
    smallest = yaml.safe_load(SMALLEST)
    data = smallest | {"description": "${TOKEN}", "name": "${NAME:-small}"}
    recipe = parse_recipe(data, "-", {"TOKEN": "s3cret"})
    assert (recipe.description, recipe.name) == ("s3cret", "small")
    assert recipe.written == data
    assert Recipe.model_validate(smallest).written == smallest


def test_environment_variables_fill_paths_and_have_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST.replace("preferences: {embedded: micro}", 'preferences: {files: ["${A}/${B:-b}"]}'))
    assert load_recipe(path, {"A": "/data"}).preferences.files == ["/data/b"]


def test_the_schema_knows_every_key_and_refuses_others() -> None:
    schema = Recipe.model_json_schema()
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False


def test_the_schema_that_editors_read_is_that_of_the_model() -> None:
    shipped_schema = json.loads((PROJECT / "recipes" / "recipe.schema.json").read_text(encoding="utf-8"))
    run = "run: align recipes schema --out recipes/recipe.schema.json"
    assert shipped_schema == json.loads(json.dumps(Recipe.model_json_schema())), run


@pytest.mark.parametrize("model", [Recipe, Pools], ids=["recipe", "pools file"])
def test_every_key_says_what_it_means(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    sections = {model.__name__: schema, **schema["$defs"]}
    silent = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, value in section["properties"].items()
        if len(value.get("description", "").split()) < 3
    ]
    assert not silent, "give these a docstring below the field"
