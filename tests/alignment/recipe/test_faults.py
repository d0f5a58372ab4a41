"""What is wrong in a recipe is said in words of our own, with the key that was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.recipe import Recipe, parse_recipe
from resources.pools import load_pools

MICRO = {"embedded": "micro"}
SMALLEST: dict[str, Any] = {"name": "r", "base_model": MICRO, "sft": {"dataset": MICRO}, "preferences": MICRO}


def told(recipe: dict[str, Any]) -> str:
    with pytest.raises(BadInput) as refused:
        parse_recipe(recipe, "r.yaml", {})
    return str(refused.value)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dop": {}}, "field 'dop': unknown key; did you mean dpo?"),
        ({"beta": 0.1, "dpo": {}}, "field 'beta': unknown key"),
        ({"label_smoothing": 0.1}, "field 'label_smoothing': unknown key"),
        ({"dpo": {"learning_rat": 1}}, "field 'dpo.learning_rat': unknown key; did you mean learning_rate?"),
        ({"evals": {"gsm8k": MICRO | {"num_fewshots": 1}}}, "'evals.gsm8k.num_fewshots': unknown key; did you mean "),
        ({"quarterly": 1}, "field 'quarterly': unknown key"),
        ({"optimise": {"loss": "dpo"}}, "field 'optimise.loss': unknown key; did you mean method?"),
        ({"optimise": {"keep_by": "margin"}}, "field 'optimise': keep_by counts only with keep_steps"),
        ({"dpo": {"method": "dpo"}}, "field 'dpo.method': unknown key"),
        (
            {"optimise": {"keep_steps": 5, "sharded": True}},
            "keep_steps needs the whole model in one process: leave out ",
        ),
        (
            {"sft": {"dataset": MICRO, "patience": 2, "sharded": True}},
            "field 'sft': patience needs the whole model in one process: leave out patience or sharded",
        ),
        ({"reward_model": {"lora": {"quantise": "nf4"}}}, "'reward_model': lora.quantise has no effect on a reward mo"),
        ({"reward_model": {"router_aux_loss_coef": 0.1}}, "'reward_model': router_aux_loss_coef has no effect on a "),
        ({"dpo": {"gradient_checkpointing": "some"}}, "field 'dpo.gradient_checkpointing"),
        ({"optimise": {"adam_betas": [0.9, 0.99, 0.9]}}, "field 'optimise.adam_betas': must have 2 values at most"),
        ({"optimise": {"method": "kto", "desirable_weight": 0, "undesirable_weight": 0}}, ": method: kto needs a "),
        ({"dpo": {"truncation": "x"}}, "field 'dpo.truncation': unknown key"),
        ({"tokens": {"truncation": "dorp"}}, "must be one of drop, keep_start, keep_end; did you mean drop?"),
        ({"dpo": {"loss": "simpoo"}}, "did you mean simpo?"),
        ({"name": "Seven Words"}, "field 'name': is not of the right form: Lower-case letters, digits and _"),
        ({"seed": "many"}, "field 'seed': must be a whole number"),
        ({"seed": 1.5}, "field 'seed': must be a whole number"),
        ({"seed": "\ud800"}, "field 'seed': holds half of a surrogate pair, which is not a character"),
        ({"": 1}, "field '': unknown key"),
        ({"seed": True}, "field 'seed': must be a number, not true or false"),
        ({"dpo": {"learning_rate": False}}, "field 'dpo.learning_rate': must be a number, not true or false"),
        ({"optimise": {"adam_betas": [True, 0.9]}}, "'optimise.adam_betas': must be a number, not true or false"),
        ({"optimise": {}, "sweep": {"beta": [True, 0.2]}}, "field 'sweep.beta': must be a number, not true or false"),
        ({"evals": {"ifeval": MICRO | {"limit": True}}}, "field 'evals.ifeval.limit': must be a number, not true or"),
        ({"dpo": {"beta": -1}}, "field 'dpo.beta': must be above 0"),
        ({"held_out_fraction": 0.5}, "field 'held_out_fraction': must be below 0.5"),
        ({"preferences": {"files": "a.jsonl"}}, "field 'preferences.files': must be a list"),
        ({"preferences": {"files": [7]}}, "field 'preferences.files.0': must be a text"),
        ({"dpo": 7}, "field 'dpo': must be a section with keys of its own"),
        ({"gate": "nome"}, "field 'gate': must be a section with keys of its own or one of none, default"),
        (
            {"gate": {"metrics": {"a/b": {"improv": 0}}}},
            "'gate.metrics.a/b.improv': unknown key; did you mean imp",
        ),
        (
            {"evals": {"lm_eval": {"mmlu": {"data": "a", "limt": 1}}}},
            "field 'evals.lm_eval.mmlu.limt': unknown key; did you mean limit?",
        ),
    ],
)
def test_a_mistake_is_named_in_plain_words_with_the_key_that_was_meant(more: dict[str, Any], words: str) -> None:
    assert words in told(SMALLEST | more)


def test_a_number_may_be_written_as_a_text_because_yaml_reads_1e_3_as_one() -> None:
    recipe = parse_recipe(
        {**SMALLEST, "seed": "7", "optimise": {"learning_rate": "5e-7", "sharded": True}}, "r.yaml", {}
    )
    assert (recipe.seed, recipe.dpo.learning_rate, recipe.dpo.sharded) == (7, 5e-7, True)


def test_a_key_that_belongs_into_a_section_is_shown_with_it() -> None:
    assert told(SMALLEST | {"cron": "0 2 * * *"}) == "r.yaml, field 'cron': unknown key; did you mean schedule.cron?"


def test_all_missing_keys_are_named() -> None:
    assert told({"name": "r"}) == "r.yaml, field 'base_model': missing; missing too: preferences"


def test_no_words_of_pydantic_reach_a_person_for_any_key_of_a_recipe() -> None:
    """Every key, given a value that no key takes."""
    for path in every_key(Recipe.model_json_schema()):
        recipe: dict[str, Any] = {**SMALLEST}
        place = recipe
        for key in path[:-1]:
            place[key] = dict(place.get(key) or {})
            place = place[key]
        place[path[-1]] = [{"x": {}}]
        words = told(recipe)
        assert "Input should" not in words and "Field required" not in words, words


def every_key(schema: dict[str, Any]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def visit(part: dict[str, Any], path: tuple[str, ...]) -> None:
        for key, value in part.get("properties", {}).items():
            found.append((*path, key))
            names = [choice.get("$ref") for choice in (value, *value.get("anyOf", ()))]
            for name in filter(None, names):
                visit(schema["$defs"][name.rsplit("/", 1)[-1]], (*path, key))

    visit(schema, ())
    return found


def test_no_value_is_repeated_as_it_may_be_a_secret() -> None:
    assert "hunter2" not in told(SMALLEST | {"dpo": {"loss": "https://me:hunter2@host"}, "seed": "hunter2"})


def test_a_pools_file_is_told_in_the_same_words(tmp_path: Path) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text("pools: {local: {slot: 1}}")
    with pytest.raises(BadInput, match=r"field 'pools\.local\.slots': missing \(and 1 more\)"):
        load_pools(path)
    path.write_text("pools: {local: {slots: 1, launcher: torchrum}}")
    with pytest.raises(
        BadInput, match=r"field 'pools\.local\.launcher': must be one of step, torchrun, .* did you mean"
    ):
        load_pools(path)
    path.write_text("pools: {local: {slots: 1}}")
    with pytest.raises(BadInput, match=r"no pool 'lokal'; pools\.yaml has local; did you mean local\?"):
        load_pools(path)["lokal"]
