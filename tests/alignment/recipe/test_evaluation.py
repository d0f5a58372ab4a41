from __future__ import annotations

from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.recipe import Recipe, parse_recipe

SMALLEST: dict[str, Any] = {
    "name": "small",
    "base_model": {"embedded": "micro"},
    "sft": {"dataset": {"embedded": "micro"}},
    "preferences": {"embedded": "micro"},
}
OPENAI = {"kind": "openai", "model": "m"}
ALPACA = {"alpaca_eval": {"data": "a.json"}}


def recipe(**more: Any) -> Recipe:
    return parse_recipe(SMALLEST | more, "r.yaml", {})


def test_judged_suites_are_selected_like_any_other() -> None:
    evals = ALPACA | {"arena_hard": {"data": "q", "baseline_answers": "b"}, "harmless": {"data": "h"}}
    assert list(recipe(evals=evals, judge=OPENAI).evals.selected()) == ["alpaca_eval", "arena_hard", "harmless"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"judge": OPENAI | {"budget_usd": 5}}, "field 'judge': budget_usd needs price"),
        ({"judge": OPENAI | {"price": {"input_usd": 1}}}, "judge.price.output_usd"),
        ({"judge": OPENAI | {"budget_tokens": -1}}, "judge.budget_tokens"),
        ({"judge": OPENAI | {"timeout_seconds": 0}}, "judge.timeout_seconds"),
        ({"judge": {"kind": "openai"}}, "needs model"),
        ({"evals": {"arena_hard": {"data": "q"}}}, "evals.arena_hard.baseline_answers"),
        ({"evals": {"alpaca_eval": {}}}, "give either data"),
        ({"evals": {"harmless": {"embedded": "micro"}}}, "evals.harmless.embedded"),
        ({"evals": ALPACA, "judge": {"kind": "rubric"}}, "rubric grades only the embedded questions"),
    ],
)
def test_settings_that_do_not_fit_are_named(more: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        recipe(**more)


def test_a_password_in_the_endpoint_s_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(BadInput, match="base_url must hold no user or password") as caught:
        recipe(judge=OPENAI | {"base_url": "https://me:sk-hidden@host/v1"})
    assert "sk-hidden" not in str(caught.value)
