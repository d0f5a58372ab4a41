"""docs/recipe.md: every key that a person can write, once, as the program has it today."""

from __future__ import annotations

import re

from alignment.methods import METHODS, ON_POLICY
from alignment.recipe import Dpo, Gsm8k, Optimise, Recipe
from alignment_dags.cli.keys import places, recipe_page
from resources.home import PROJECT
from resources.pools import Pools


def section(heading: str) -> dict[str, str]:
    """Key to the rest of its row, of the table below a heading."""
    text = recipe_page().split(f"\n{heading}\n", 1)[1].split("\n#", 1)[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE))


def test_the_page_is_what_the_definitions_say() -> None:
    page = (PROJECT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert page == recipe_page(), "run: align recipes reference --out docs/recipe.md"


def test_every_section_stands_under_the_paths_of_its_keys() -> None:
    found = places(Recipe.model_json_schema())
    assert found["Lora"] == ["sft.lora", "optimise.lora", "reward_model.lora", "dpo.lora"]
    assert found["ModelSource"][:2] == ["base_model", "sft.adopt"] and "merge.model" in found["ModelSource"]
    assert found["Link"] == found["Optimise"] == ["optimise"]
    assert found["LmEvalTask"] == ["evals.lm_eval.NAME"]
    assert found["Requirement"] == ["gate.metrics.NAME"]
    assert found.keys() == Recipe.model_json_schema()["$defs"].keys()
    launchers = ("torchrun", "ray", "kuberay", "kubernetes")
    assert list(places(Pools.model_json_schema()).values()) == [
        ["pools.NAME"],
        *([f"pools.NAME.{launcher}"] for launcher in launchers),
    ]


def test_a_key_has_its_range_its_default_and_its_meaning() -> None:
    keys = section("### `dpo`")
    assert keys.keys() == Dpo.model_fields.keys()
    assert keys["beta"].startswith("a number above 0 | `0.1` | β: a larger value keeps the policy nearer")
    assert keys["label_smoothing"].startswith("a number from 0 below 0.5 | `0.0` | ")
    assert keys["loss"].startswith(", ".join(f"`{name}`" for name in METHODS | ON_POLICY) + " | `sigmoid` | ")
    assert section("## The recipe")["name"].startswith("a text | required | ")


def test_the_healthy_range_that_beta_names_is_that_of_every_method() -> None:
    ranges = {method.name: method.healthy["beta"] for method in METHODS.values() if "beta" in method.settings()}
    for section_of in (Dpo, Optimise, Optimise):
        beta = section_of.model_fields["beta"].description or ""
        assert all(f"{low:g} to {high:g}" in " ".join(beta.split()) for low, high in ranges.values())
    assert {name for name, healthy in ranges.items() if healthy != ranges["sigmoid"]} == {
        "sigmoid_norm",
        "simpo",
        "kto",
    }


def test_what_every_suite_has_stands_once_and_other_defaults_with_their_suite() -> None:
    shared = section("### Every suite in `evals`")
    assert shared.keys() | section("### `evals.gsm8k`").keys() == Gsm8k.model_fields.keys()
    assert section("### `evals.ifeval`").keys() == {"max_new_tokens"}
    assert "embedded" in shared and "embedded" not in section("### `evals.xstest`"), "null alone is nothing to write"
