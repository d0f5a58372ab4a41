"""`optimise: {method: …}` and the older `dpo: {loss: …}` spell the same request; errors name what was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.errors import BadInput
from alignment.methods import LOSS, METHOD, METHODS, NORMALISED
from alignment.recipe import Recipe, load_recipe, parse_recipe
from alignment.stages.policy import DpoRequest
from alignment.stages.policy_checkpoint import STAGE
from alignment.store import Artifact
from alignment_dags.cli.setup import recipes_check
from alignment_dags.planner.forecast import forecast
from alignment_dags.run.run import run_recipe
from alignment_dags.run.workspace import Workspace
from resources.pools import load_pools

SMALLEST: dict[str, Any] = {"name": "small", "base_model": {"embedded": "micro"}, "preferences": {"embedded": "micro"}}
SFT: dict[str, Any] = {"sft": {"dataset": {"embedded": "micro"}}}
NEEDED: dict[str, Any] = {"cdpo": {"label_smoothing": 0.1}, "robust": {"label_smoothing": 0.1}}


def recipe_of(**sections: Any) -> Recipe:
    return parse_recipe(SMALLEST | sections, "-", {})


def of_method(loss: str, **sections: Any) -> Recipe:
    """The recipe with the SFT section that its method takes."""
    return recipe_of(**(SFT if METHODS[loss].start == "sft_checkpoint" else {}), **sections)


def key(recipe: Recipe) -> str:
    made = Artifact(kind="preference_manifest", key="0" * 40, attempt="a", digest="m")
    return STAGE.key(
        DpoRequest(manifest=made, checkpoint=made, settings=recipe.dpo, tokens=recipe.tokens, seed=recipe.seed)
    )


@pytest.mark.parametrize("loss", METHODS)
def test_both_spellings_of_a_method_have_one_key(loss: str) -> None:
    settings = NEEDED.get(loss, {}) | {"learning_rate": 2e-6, "lora": {"rank": 32}}
    names = [name for name, other in METHOD.names.items() if other == loss] or ["dpo"]
    per_token = {"length_normalised": True} if loss == NORMALISED else {}
    old = of_method(loss, dpo={"loss": loss, **settings})
    for name in names:
        new = of_method(loss, optimise={"method": name, **settings, **per_token})
        assert (key(new), new.dpo, new.method) == (key(old), old.dpo, old.method)
        assert new.training.called == f"method: {name}" and old.training.called == f"loss: {loss}"


def test_settings_reach_the_request_under_either_spelling() -> None:
    for settings in (
        {"method": "ipo", "length_normalised": False, "beta": 0.2},
        {"method": "simpo", "gamma_ratio": 0.3},
        {"method": "dpo", "sft_weight": 0.2, "precision": "float32", "save_steps": 7},
    ):
        sections = SFT | {"reference": {"precision": settings.get("precision", "bfloat16")}}
        new, old = recipe_of(optimise=settings, **sections), dict(settings)
        old["loss"] = METHOD.names[str(old.pop("method"))]
        assert key(new) == key(recipe_of(dpo=old, **sections)) != key(recipe_of(**SFT))


def test_a_recipe_without_either_section_is_dpo_in_todays_spelling() -> None:
    recipe = recipe_of(**SFT)
    assert key(recipe) == key(recipe_of(**SFT, optimise={})) == key(recipe_of(**SFT, dpo={}))
    assert recipe.training.called == "method: dpo" and recipe.written == SMALLEST | SFT


def test_a_recipe_is_recorded_as_it_was_spelled() -> None:
    recipe = Recipe.model_validate(SMALLEST | SFT | {"optimise": {"method": "ipo"}})
    assert recipe.written["optimise"]["method"] == "ipo" and "dpo" not in recipe.written
    assert key(parse_recipe(recipe.written, "-", {})) == key(recipe)


def test_orpo_has_a_rate_of_its_own() -> None:
    orpo = recipe_of(optimise={"method": "orpo"})
    assert orpo.dpo.learning_rate == 8e-6 and orpo.training.outside_practice() == []
    assert recipe_of(optimise={"method": "orpo", "learning_rate": 1e-5}).dpo.learning_rate == 1e-5
    assert recipe_of(**SFT, optimise={"method": "simpo"}).dpo.learning_rate == 5e-7


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {**SFT, "dpo": {}, "optimise": {}},
        "optimise and dpo are two spellings of one section: give one of them",
    ),
    (
        {**SFT, "optimise": {"method": "orpo"}},
        "method: orpo starts from the base model, without SFT: take the section sft out",
    ),
    ({**SFT, "dpo": {"loss": "orpo"}}, "loss: orpo starts from the base model, without SFT: take the section sft out"),
    ({}, "sft is missing, and method: dpo starts from an SFT checkpoint: give sft a dataset, or adopt; orpo starts"),
    ({"dpo": {"loss": "simpo"}}, "sft is missing, and loss: simpo starts from an SFT checkpoint"),
    (
        {**SFT, "optimise": {"method": "cdpo", "label_smoothing": 0.5}},
        "field 'optimise.label_smoothing': must be below 0.5",
    ),
    (
        {**SFT, "dpo": {"loss": "cdpo", "label_smoothing": 0.5}},
        "field 'dpo.label_smoothing': must be below 0.5",
    ),
    (
        {**SFT, "optimise": {"method": "robust_dpo"}},
        "field 'optimise': method: robust_dpo needs label_smoothing above 0",
    ),
    (
        {**SFT, "optimise": {"label_smoothing": 0.0}},
        "field 'optimise': label_smoothing counts only with method: cdpo or robust_dpo",
    ),
    (
        {**SFT, "optimise": {"method": "dpo", "gamma_ratio": 0.5}},
        "field 'optimise': gamma_ratio counts only with method: simpo",
    ),
    (
        {**SFT, "optimise": {"method": "simpo", "length_normalised": True}},
        "field 'optimise': length_normalised counts only with method: dpo or ipo or step_dpo",
    ),
    ({"optimise": {"method": "orpo", "beta": 0.1}}, "field 'optimise': beta counts only with method: dpo or "),
    (
        {**SFT, "optimise": {"method": "dpo", "odds_weight": 0.1}},
        "field 'optimise': odds_weight counts only with method: orpo",
    ),
    (
        {**SFT, "optimise": {"method": "robst_dpo"}},
        "field 'optimise.method': there is no 'robst_dpo'; did you mean robust_dpo?",
    ),
    ({**SFT, "optimise": {"method": "sigmoid"}}, "field 'optimise.method': there is no 'sigmoid'; did you mean dpo?"),
    (
        {**SFT, "optimise": {"method": "sigmoid_norm"}},
        "there is no 'sigmoid_norm'; did you mean dpo with length_normalised: true?",
    ),
    ({**SFT, "optimise": {"method": "ppo2"}}, "field 'optimise.method': there is no 'ppo2'; "),
    ({**SFT, "dpo": {"loss": "robust_dpo"}}, "field 'dpo.loss': there is no 'robust_dpo'; did you mean robust?"),
    ({**SFT, "optimise": {"loss": "ipo"}}, "field 'optimise.loss': unknown key"),
    ({**SFT, "dpo": {"method": "ipo"}}, "field 'dpo.method': unknown key"),
    (
        {**SFT, "optimise": {"precision": "float32"}},
        "reference.precision and optimise.precision must be the same",
    ),
]


@pytest.mark.parametrize(("sections", "told"), WRONG, ids=[told[:60] for _, told in WRONG])
def test_what_is_wrong_is_one_line_wherever_the_recipe_is_read(
    tmp_path: Path, sections: dict[str, Any], told: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SMALLEST | sections), encoding="utf-8")
    doors: list[Callable[[], Any]] = [
        lambda: recipes_check([path]),
        lambda: forecast(Workspace(load_recipe(path), load_pools())),
        lambda: run_recipe(path, print),
    ]
    for door in doors:
        with pytest.raises(BadInput) as refused:
            door()
        assert told in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_name_that_is_nearly_right_is_named_and_otherwise_all_are() -> None:
    for spelling in (LOSS, METHOD):
        assert [spelling.known(name) for name in spelling.names] == list(spelling.names)
        with pytest.raises(ValueError, match=r"it is one of .*orpo"):
            spelling.known("qqq")


def test_notes_name_the_field_as_the_recipe_spells_it() -> None:
    new = recipe_of(**SFT, optimise={"method": "dpo", "length_normalised": True, "epochs": 9})
    assert new.training.outside_practice() == [
        "optimise.epochs 9 is outside 1 to 2, which practice supports for method: dpo with all weights",
        "optimise.beta 0.1 is outside 1 to 10, which practice supports for method: dpo with all weights",
    ]
    old = recipe_of(**SFT, dpo={"loss": "ipo", "epochs": 9})
    assert old.training.outside_practice() == [
        "dpo.epochs 9 is outside 1 to 2, which practice supports for loss: ipo with all weights"
    ]


def test_a_recipe_that_takes_another_method_than_its_preset_leaves_out_what_only_the_presets_method_takes(
    tmp_path: Path,
) -> None:
    """Nobody could unset `beta` otherwise; what both methods take stays."""
    path = tmp_path / "mine.yaml"
    path.write_text("extends: quickstart\nname: mine\noptimise: {method: orpo}\nsft: null\n", encoding="utf-8")
    made = load_recipe(path).dpo
    assert (made.loss, made.learning_rate, made.batch_size) == ("orpo", 5e-5, 32)
    path.write_text("extends: quickstart\nname: mine\noptimise: {method: ipo}\n", encoding="utf-8")
    assert (load_recipe(path).dpo.beta, load_recipe(path).dpo.sft_weight) == (0.1, 0.1), "ipo takes both"
    path.write_text("extends: quickstart\nname: mine\noptimise: {method: orpo, beta: 1}\nsft: null\n", encoding="utf-8")
    with pytest.raises(BadInput, match="beta counts only with"):
        load_recipe(path)
