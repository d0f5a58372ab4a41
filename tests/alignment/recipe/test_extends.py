"""A recipe that is laid over a preset."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from alignment.errors import BadInput
from alignment.recipe import load_recipe, parse_recipe
from alignment.recipe.load import RECIPES, merged, read_recipe


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_recipe_is_the_preset_with_its_own_keys_over_it(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.yaml",
        "extends: presets/zephyr_7b\nname: mine\noptimise: {beta: 0.05}\npreferences: {files: [pairs.jsonl]}\n",
    )
    mine, preset = load_recipe(path), load_recipe(RECIPES / "presets" / "zephyr_7b.yaml")
    assert (mine.name, mine.description, mine.extends) == ("mine", "", None)
    assert mine.dpo == preset.dpo.model_copy(update={"beta": 0.05})
    assert mine.tokens == preset.tokens and mine.evals == preset.evals and mine.pools == preset.pools
    assert mine.preferences.files == ["pairs.jsonl"] and mine.preferences.hub is None, (
        "another place replaces the section"
    )
    assert "extends" not in mine.written and mine.written["optimise"]["learning_rate"] == 5e-7, "what is kept and shown"
    assert parse_recipe(yaml.safe_load(yaml.safe_dump(mine.written)), "-", {}) == mine


def test_a_preset_is_looked_for_beside_the_recipe_first(tmp_path: Path) -> None:
    preset = "name: other\nbase_model: {embedded: micro}\nsft: {dataset: {embedded: micro}}\n"
    write(tmp_path / "presets" / "zephyr_7b.yaml", preset + "preferences: {embedded: micro}\n")
    path = write(tmp_path / "mine.yaml", "extends: presets/zephyr_7b\nname: mine\n")
    assert load_recipe(path).base_model.embedded == "micro"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("extends: " + "x" * 300 + "\nname: mine\n", "field 'extends': there is no 'xxx"),
        ("extends: presets/zefyr_7b\nname: mine\n", "there is no 'presets/zefyr_7b'; did you mean presets/zephyr_7b?"),
        (
            "extends: presets/gpt\nname: mine\n",
            "there is no 'presets/gpt'; there are presets/ 7b_qlora_24gb, dpo_then_simpo, kto",
        ),
        ("extends: [presets/zephyr_7b]\nname: mine\n", "must be the name of a preset"),
        ("extends: mine\nname: mine\n", "mine.yaml extends itself"),
        ("extends: presets/zephyr_7b\n", "field 'name': missing"),
        (
            "extends: presets/zephyr_7b\nname: mine\noptimise: {betta: 1}\n",
            "'optimise.betta': unknown key; did you mean beta?",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BadInput) as error:
        load_recipe(write(tmp_path / "mine.yaml", text))
    assert told in str(error.value) and "\n" not in str(error.value) and "mine.yaml" in str(error.value)


def test_a_circle_of_two_files_ends(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "extends: b\nname: a\n")
    path = write(tmp_path / "b.yaml", "extends: a\nname: b\n")
    with pytest.raises(BadInput, match=r"b\.yaml extends itself"):
        load_recipe(path)


def test_a_section_in_place_of_a_value_and_a_value_in_place_of_a_section() -> None:
    below = {"gate": {"metrics": {"a": 1}}, "judge": None, "pools": {"sft": "x", "policy": "y"}}
    over = {"gate": "default", "judge": {"kind": "rubric"}, "pools": {"policy": "z"}}
    assert merged(below, over) == {"gate": "default", "judge": {"kind": "rubric"}, "pools": {"sft": "x", "policy": "z"}}
    assert below["pools"] == {"sft": "x", "policy": "y"}, "the preset's own data is left"


def test_a_preset_costs_less_than_a_tenth_of_a_second(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "extends: presets/smollm3_apo\nname: mine\n")
    began = time.process_time()
    read_recipe(path)
    assert time.process_time() - began < 0.1
