"""docs/methods.md has a section for every method that a recipe can name, with its ranges and its first loss."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alignment.methods import METHOD, METHODS, NORMALISED, ON_POLICY, Method
from alignment.methods.method import HEALTHY_EPOCHS, HEALTHY_RANK, LORA_RATE, short

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
SHOWN = {there: here for here, there in reversed(METHOD.names.items())} | {NORMALISED: "length_normalised"}
"""What the page calls a method: the first of its names."""
SHARED, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)


def section(name: str) -> str:
    (found,) = (text for text in SECTIONS if f"`{name}`" in text.splitlines()[0])
    return " ".join(found.split())


@pytest.mark.parametrize("method", (METHODS | ON_POLICY).values(), ids=lambda method: method.name)
def test_a_method_has_its_screen(method: type[Method]) -> None:
    text = section(SHOWN[method.name])
    assert f"| `{SHOWN[method.name]}" in SHARED, "the table names it"
    for part in (
        "loss = ",
        "**Data, reference:**",
        "**Settings:**",
        "**First loss:**",
        "**What goes wrong:**",
        "](http",
    ):
        assert part in text
    own = {
        name: bounds for name, bounds in method.healthy.items() if name != "sft_weight" or not method.needs_reference
    }
    for name, bounds in own.items():
        assert f"`{name}`" in text and "from {} to {}".format(*map(short, bounds)) in text


def test_every_name_that_a_recipe_may_give_has_a_section() -> None:
    assert all(section(name) and f"| `{name}`" in SHARED for name in METHOD.names)


def test_the_ranges_that_methods_share_are_named_once() -> None:
    shared = " ".join(SHARED.split())
    rates = {method.healthy_rate for method in METHODS.values() if method.needs_reference}
    assert rates == {Method.healthy_rate} and LORA_RATE == 10
    assert "a learning rate of {} to {} for all weights".format(*map(short, Method.healthy_rate)) in shared
    assert "{} or {} epochs; LoRA ranks of {} to {}".format(*map(short, (*HEALTHY_EPOCHS, *HEALTHY_RANK))) in shared
