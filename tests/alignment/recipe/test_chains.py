"""Chains, sweeps and merges as a person writes them: what is wrong is one line at every door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.errors import BadInput
from alignment.recipe import Recipe, load_recipe
from alignment.recipe.load import RECIPES
from alignment_dags.cli.setup import recipes_check
from alignment_dags.planner.forecast import forecast
from alignment_dags.run.run import run_recipe
from alignment_dags.run.workspace import Workspace
from assets.evaluation_report import gate_and_baselines
from assets.graph import nodes_of
from assets.reference_logprobs import scoring
from resources.pools import load_pools

MICRO = {"embedded": "micro"}
SMALLEST: dict[str, Any] = {"name": "small", "base_model": MICRO, "preferences": MICRO, "sft": {"dataset": MICRO}}
SUITE = {"evals": {"ifeval": MICRO}}
POLICY = {"of": "policy", "weight": 0.5}
QLORA = {"rank": 4, "quantise": "nf4"}


def recipe_of(**sections: Any) -> Recipe:
    return Recipe.model_validate(SMALLEST | sections)


def names(recipe: Recipe) -> list[str]:
    return [node.name for node in nodes_of(recipe, load_pools())]


def test_a_chain_of_one_link_is_the_plain_training() -> None:
    plain, chain = recipe_of(optimise={"method": "ipo"}), recipe_of(optimise=[{"method": "ipo"}])
    assert plain.dpo == chain.dpo and names(plain) == names(chain)


def test_only_a_link_that_needs_them_has_log_probs_and_a_manifest_of_its_own() -> None:
    def own(*links: dict[str, Any]) -> list[str]:
        return [name for name in names(recipe_of(optimise=list(links))) if name.startswith("link_")]

    dpo, simpo = {"method": "dpo"}, {"method": "simpo"}
    assert own(dpo, simpo) == ["link_1/policy_checkpoint"]
    assert own(dpo, dpo | {"reference": "sft"}) == ["link_1/policy_checkpoint"]
    scored = ["link_1/policy_checkpoint", "link_1/policy_logprobs", "link_2/preference_manifest"]
    assert own(dpo, dpo) == own(dpo, simpo | {"select": {"disagreement": "20 %"}}) == scored
    assert "reference_logprobs" not in names(recipe_of(optimise=[simpo, dpo])), "its start is its reference"
    assert "reference_logprobs" in names(recipe_of(optimise=[simpo, simpo | {"select": {"disagreement": 0.2}}]))


def test_a_chain_may_begin_with_a_base_model() -> None:
    plain = {key: value for key, value in SMALLEST.items() if key != "sft"}
    chain = Recipe.model_validate(plain | {"optimise": [{"method": "orpo"}, {"method": "dpo"}], **SUITE})
    found = names(chain)
    assert chain.start == "base_model" and not [name for name in found if "sft" in name or name == "reference_logprobs"]
    assert {"link_1/policy_logprobs", "base_evals/ifeval", "policy_evals/ifeval"} <= set(found)


def test_log_probs_are_of_the_bits_that_the_links_with_a_reference_train_beside() -> None:
    def scored(*links: dict[str, Any]) -> tuple[Any, Any]:
        recipe = recipe_of(optimise=list(links))
        return scoring(recipe)["quantise"], recipe.reference_quantise

    dpo, simpo = {"method": "dpo"}, {"method": "simpo"}
    assert scored(dpo | {"lora": QLORA}, simpo) == ("nf4", "nf4"), "the last link reads none"
    assert scored(dpo, simpo | {"lora": QLORA}) == (None, None)
    assert scored(simpo, dpo | {"lora": QLORA}) == ("nf4", "nf4")


def test_every_link_that_is_as_fast_as_sft_is_noted() -> None:
    fast, slow = {"learning_rate": 2e-5}, {"learning_rate": 5e-7}
    for links in ([fast, slow], [slow, fast]):
        assert sum("is 1 times SFT's" in note for note in recipe_of(optimise=links).notes()) == 1, links


def test_a_model_of_the_hub_that_does_not_fit_is_refused_by_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"ours/base": 32, "theirs/other": 36}
    monkeypatch.setattr("assets.merge.hub_config", lambda name, revision: {"num_hidden_layers": sizes[name]})
    other = {"model": {"hub": "theirs/other"}, "weight": 0.5}
    recipe = recipe_of(base_model={"hub": "ours/base"}, sft={"adopt": {"hub": "ours/base"}}, merge=[POLICY, other])
    node = next(node for node in nodes_of(recipe, load_pools()) if node.name == "merge_2/sft_checkpoint")
    with pytest.raises(BadInput, match=r"merge\.1\.model.*: is of another architecture .* num_hidden_layers 36"):
        node.object_to(None, None)


def test_a_share_is_a_fraction_or_in_per_cent() -> None:
    for given in (0.2, "20 %", "20%", " 20.0 % "):
        chain = recipe_of(optimise=[{}, {"method": "simpo", "select": {"disagreement": given}}])
        assert chain.later_links[0].select is not None and chain.later_links[0].select.disagreement == 0.2


def test_the_names_of_points_stay_when_others_come() -> None:
    few = recipe_of(sweep={"beta": [0.1]}, **SUITE)
    more = recipe_of(sweep={"beta": [0.05, 0.1]}, **SUITE)
    assert few.sweep is not None and more.sweep is not None
    assert list(few.sweep.points) == ["point_beta_0_1"]
    assert list(more.sweep.points) == ["point_beta_0_05", "point_beta_0_1"]
    wide = recipe_of(sweep={"beta": [0.1], "learning_rate": [5e-7, 1e-6], "rows": [1000]}, **SUITE)
    assert wide.sweep is not None
    assert next(iter(wide.sweep.points)) == "point_beta_0_1_learning_rate_5e_7_rows_1000"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"optimise": []}, "field 'optimise': must not be empty"),
    ({"optimise": [{"method": "dpo"}, {"betta": 1}]}, "field 'optimise.1.betta': unknown key; did you mean beta?"),
    (
        {"optimise": [{"method": "dpo"}, {"method": "kto"}]},
        "link 2, method: kto, takes unpaired rows, and link 1, method: dpo, paired ones",
    ),
    ({"optimise": [{"method": "dpo"}, {"method": "orpo"}]}, "method: orpo starts from the base model"),
    ({"optimise": [{"select": {"disagreement": 0.2}}]}, "link 1 has no policy before it that could disagree"),
    (
        {"optimise": [{"method": "kto"}, {"method": "kto", "select": {"disagreement": 0.2}}]},
        "link 2 selects pairs, and method: kto takes none",
    ),
    (
        {"optimise": [{}, {"method": "simpo", "select": {"disagreement": "120 %"}}]},
        "field 'optimise.1.select.disagreement': must be at most 1",
    ),
    (
        {"optimise": [{"lora": QLORA}, {}]},
        "lora.quantise must be the same in all links with a reference, as they share log-probs",
    ),
    (
        {"optimise": [{"method": "simpo"}, {"lora": QLORA}], "reference": {"sharded": True}},
        "lora.quantise needs the whole model in one process: leave out lora.quantise or reference.sharded",
    ),
    ({"optimise": [{}, {"precision": "float32"}]}, "reference.precision and optimise.precision must be the same"),
    ({"sweep": {"beta": [0.1, 0.2]}}, "sweep has no items to pick a point by: select a suite in evals"),
    ({"sweep": {}, **SUITE}, "field 'sweep': give values of beta, learning_rate or rows"),
    ({"sweep": {"beta": [0.1, 0.1]}, **SUITE}, "field 'sweep': beta has a value twice"),
    (
        {"sweep": {"beta": [0.1, 0.2, 0.3, 0.4], "rows": [1, 2, 3, 4]}, **SUITE},
        "field 'sweep': 16 points are more than 12: take values out",
    ),
    ({"sweep": {"beta": [-1]}, **SUITE}, "field 'sweep.beta.0': must be above 0"),
    ({"sweep": {"beta": [0.1], "by": "gsm8k/exact_match"}, **SUITE}, "sweep.by names gsm8k, which evals does not"),
    ({"sweep": {"beta": [0.1], "by": "ifeval/speed"}, **SUITE}, "field 'sweep.by': ifeval has no such metric"),
    ({"sweep": {"beta": [0.1]}, "optimise": [{}, {}], **SUITE}, "sweep is of one training, and optimise is a chain"),
    ({"sweep": {"beta": [0.1]}, "evals": {"mt_bench": MICRO}}, "no suite of the recipe is scored without a judge"),
    ({"soups": {}, **SUITE}, "field 'soups': give weights of sft, or numbers of champions"),
    ({"soups": {"sft": [0.1, 0.1]}, **SUITE}, "field 'soups': sft has a value twice"),
    ({"soups": {"sft": [1.0]}, **SUITE}, "field 'soups.sft.0': must be below 1"),
    ({"soups": {"champions": [0]}, **SUITE}, "field 'soups.champions.0': must be at least 1"),
    (
        {"soups": {"champions": list(range(1, 13))}, **SUITE},
        "field 'soups': 13 candidates with the policy alone are more than 12: take values out",
    ),
    ({"soups": {"sft": [0.1], "by": "gsm8k/exact_match"}, **SUITE}, "soups.by names gsm8k, which evals does not"),
    ({"soups": {"sft": [0.1], "by": "ifeval/speed"}, **SUITE}, "field 'soups.by': ifeval has no such metric"),
    ({"soups": {"sft": [0.1]}, "sweep": {"beta": [0.1]}, **SUITE}, "soups and sweep: each makes the policy of its own"),
    ({"soups": {"sft": [0.1]}}, "soups have no items to pick a candidate by: select a suite in evals"),
    (
        {
            "soups": {"sft": [0.1]},
            "gate": {"metrics": {"ifeval/prompt_level_strict_acc": {"improve": 0}}, "seeds": 3},
            **SUITE,
        },
        "with soups it is none that was trained alone",
    ),
    ({"merge": [POLICY]}, "merge averages the policy, once, with at least one other checkpoint"),
    ({"merge": [POLICY, {"of": "sft", "weight": 0.4}]}, "the weights of merge add up to 0.9, not to 1"),
    ({"merge": [POLICY, {"weight": 0.5}]}, "field 'merge.1': give exactly one of of, model"),
    (
        {"merge": [POLICY, {"of": "sft", "weight": 0.5}], "sweep": {"beta": [0.1]}, **SUITE},
        "merge and sweep",
    ),
    (
        {
            "merge": [POLICY, {"of": "sft", "weight": 0.5}],
            "gate": {"metrics": {"ifeval/prompt_level_strict_acc": {"improve": 0}}, "seeds": 3},
            **SUITE,
        },
        "gate.seeds trains the policy again",
    ),
]


@pytest.mark.parametrize(("sections", "told"), WRONG, ids=[told[:50] for _, told in WRONG])
def test_what_is_wrong_is_one_line_at_check_plan_and_run(tmp_path: Path, sections: dict[str, Any], told: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SMALLEST | sections), encoding="utf-8")

    def plan() -> None:
        recipe = load_recipe(path)
        gate_and_baselines(recipe, str(path))
        forecast(Workspace(recipe, load_pools()))

    doors: list[Callable[[], Any]] = [lambda: recipes_check([path]), plan, lambda: run_recipe(path, print)]
    for door in doors:
        with pytest.raises(BadInput) as refused:
            door()
        assert told in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_the_chain_that_ships_is_priced_link_by_link() -> None:
    recipe = load_recipe(RECIPES / "presets" / "dpo_then_simpo.yaml")
    by_name = {node.name: node for node in nodes_of(recipe, load_pools())}
    assert by_name["policy_checkpoint"].rows(1000) == 200
    assert by_name["link_1/policy_checkpoint"].rows(1000) == by_name["link_1/policy_logprobs"].rows(1000) == 1000
