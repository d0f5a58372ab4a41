"""The tables of docs/planning.md are what the planner computes. `python -m` this module prints them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alignment.models.checkpoint import read_config
from alignment.models.shape import Shape, shape_of
from alignment.models.size import (
    ACCELERATORS,
    Operations,
    Work,
    forward_operations,
    training_operations,
)
from alignment_dags.planner.hours import ASSUMED_LENGTHS, UTILISATION
from alignment_dags.planner.loads import DEVICE, GIB, LORA, Lengths, Load
from resources.home import PROJECT

DOCUMENT = PROJECT / "docs" / "planning.md"
MODELS = {
    "Qwen2.5-0.5B": "qwen2.5_0.5b",
    "Mistral-7B": "mistral_7b_v0.1",
    "Llama-3-8B": "llama_3_8b",
    "Llama-3-70B": "llama_3_70b",
    "Llama-3.1-405B": "llama_3.1_405b",
}
PAIRS = 60_000
PRICE = 3.0
"""USD an hour of an H100."""
PASS = 16_384
LENGTHS = Lengths(ASSUMED_LENGTHS[0], ASSUMED_LENGTHS[1], "assumed")


def shape(name: str) -> Shape:
    known = shape_of(read_config(PROJECT / "alignment_dags" / "planner" / "models" / f"{MODELS[name]}.json"))
    assert known is not None
    return known


def load(
    name: str, kind: str = "train", *, tokens: int = PASS, shards: int = 1, lora: bool = False, quantised: bool = False
) -> Load:
    plain = Load("train", shape(name), "bfloat16", tokens, LENGTHS.pass_of_one, True, shards, checkpointing=True)
    return replace(plain, kind=kind, lora=LORA if lora or quantised else None, quantised=quantised)


def gib(one: Load) -> str:
    return f"{one.total / GIB:,.1f}"


def memory_table() -> list[str]:
    """GiB of one device."""
    return [
        f"| {name} | {gib(load(name))} | {gib(load(name, shards=8))} | {gib(load(name, lora=True))}"
        f" | {gib(load(name, lora=True, shards=8))} | {gib(load(name, quantised=True))}"
        f" | {gib(load(name, 'score'))} | {gib(load(name, 'answer'))} |"
        for name in MODELS
    ]


def training(name: str, pairs: int, lora: bool) -> Operations:
    work = Work.of(*ASSUMED_LENGTHS) * pairs
    return training_operations(shape(name), work, adapter=lora, recomputed=True)


def scoring(name: str, pairs: int) -> Operations:
    return forward_operations(shape(name), Work.of(*ASSUMED_LENGTHS) * pairs)


def hours(operations: float, accelerator: str = "H100", devices: int = 1, utilisation: float = UTILISATION) -> float:
    return operations / (utilisation * ACCELERATORS[accelerator].peak_flops * devices) / 3600


def kto_hours(name: str, lora: bool) -> float:
    """Of the pairs as two labelled completions each: every row has a partner, scored by reference and policy."""
    prompt, (chosen, _) = ASSUMED_LENGTHS
    rows, sizes = 2 * PAIRS, shape(name)
    reference = forward_operations(sizes, Work.of(prompt, (chosen, chosen)) * rows)
    work = Work.of(prompt, (chosen,)) * rows
    trained = training_operations(sizes, work, adapter=lora, recomputed=True)
    return hours(reference.done + trained.done + forward_operations(sizes, work).done)


def cost_table() -> list[str]:
    """GPU hours and USD of an epoch: reference and training, full and with LoRA, with a reference, without, by KTO."""
    lines = []
    for name in MODELS:
        reference = hours(scoring(name, PAIRS).done)
        cells = []
        for lora in (False, True):
            for with_reference in (True, False):
                spent = hours(training(name, PAIRS, lora).done) + with_reference * reference
                cells.append(f"{spent:,.1f} h, {spent * PRICE:,.0f} USD")
            spent = kto_hours(name, lora)
            cells.append(f"{spent:,.1f} h, {spent * PRICE:,.0f} USD")
        lines.append(f"| {name} | {reference:,.1f} h | {' | '.join(cells)} |")
    return lines


def published_table() -> list[str]:
    """Published sizings, ours, and why they differ."""
    seven, large, largest = shape("Mistral-7B"), shape("Llama-3-70B"), shape("Llama-3.1-405B")
    state = 18 * seven.parameters / 1e9
    with_reference = [
        hours(scoring("Llama-3-70B", 50_000).done + training("Llama-3-70B", 50_000, lora).done, devices=devices)
        for lora, devices in ((True, 8), (False, 32))
    ]
    one = [
        hours(scoring("Mistral-7B", PAIRS).done + training("Mistral-7B", PAIRS, x).done, "A100") for x in (True, False)
    ]
    implied = [one[0] * UTILISATION / published for published in (4, 2)]
    two, three = (load("Llama-3.1-405B", tokens=2048, shards=devices, lora=True) for devices in (16, 24))
    h200 = load("Llama-3.1-405B", tokens=4096, shards=16, lora=True)
    small = load("Mistral-7B", tokens=8192, quantised=True)
    return [
        f"| 7B full: about 42 GB on one A100 | {state:.0f} GB before activations | 42 GB is 6 bytes a parameter:"
        " weight, gradient and 2 bytes of optimiser. AdamW with float32 masters and moments holds 18. LoRA takes"
        f" {gib(load('Mistral-7B', lora=True))} GiB in all, full training sharded over 8"
        f" {gib(load('Mistral-7B', shards=8))} GiB a device |",
        f"| 7B with QLoRA: one GPU of 24 GB (22.4 GiB) | {gib(small)} GiB, passes of 8,192 | the weights are"
        f" {small.parts()['weights'] / GIB:.1f} GiB with the adapter; answering and registering load the merged model"
        f" whole, which takes {gib(load('Mistral-7B', 'answer', tokens=8192))} GiB |",
        f"| 70B in bfloat16: 140 GB a copy | {2 * large.parameters / 1e9:.0f} GB | the same; the published figure is"
        " rounded. The cached reference is no second copy |",
        f"| 50,000 pairs of 70B: 6 to 12 h on 8 H100s | LoRA: {with_reference[0]:.1f} h on 8; full:"
        f" {with_reference[1]:.1f} h on 32 | full training does not fit 8"
        f" ({gib(load('Llama-3-70B', shards=8))} GiB a device). A trainer that runs the reference in every step, pads"
        " rows and computes a prompt twice has more to do; here log-probs are scored once and prompts are shared |",
        f"| 60,000 pairs of 7B: 2 to 4 h on one A100 | LoRA: {one[0]:.1f} h; full, which does not fit: {one[1]:.1f} h |"
        f" at our lengths 2 to 4 h would be {implied[0]:.0%} to {implied[1]:.0%} of the peak with LoRA, and we assume"
        f" {UTILISATION:.0%}; shorter pairs take less |",
        f"| 405B on two nodes | LoRA: {gib(two)} GiB a device on 16 H100s, passes of 2,048 tokens: does not fit |"
        f" {2 * largest.parameters / 1e9:.0f} GB of weights do fit 16 × 80 GB, but two gathered layers and the head"
        f" take {two.parts()['gathered'] / GIB:.1f} GiB, and activations and the adapter come on top. Two nodes of"
        f" H200s hold it ({gib(h200)} GiB, passes of 4,096), or three of H100s ({gib(three)} GiB) |",
    ]


TABLES = {"memory": memory_table, "cost": cost_table, "published": published_table}


@pytest.mark.parametrize("table", sorted(TABLES))
def test_the_tables_are_what_the_planner_computes(table: str) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [line for line in TABLES[table]() if line not in text] == []


def test_the_accelerators_and_the_assumptions_are_those_of_the_planner() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, one in ACCELERATORS.items():
        row = f"| {name} | {one.peak_flops / 1e12:,.0f} | {one.memory / 1e9:.0f} | {one.bandwidth / 1e12:.2f} |"
        assert row in text
    prompt, (chosen, rejected) = ASSUMED_LENGTHS
    assert f"{prompt:.0f} + {chosen:.0f} + {rejected:.0f} tokens" in text
    assert f"{UTILISATION:.0%} of the peak" in text
    assert f"{DEVICE / GIB:.0f} GiB for CUDA" in text


if __name__ == "__main__":
    for tabled in TABLES.values():
        print("\n".join(tabled()), end="\n\n")
