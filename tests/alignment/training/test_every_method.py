"""Every method teaches a tiny model what its pairs hold, with all weights and with adapters."""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from alignment.data.rows import PreferenceRow, paired_row
from alignment.data.validate import halves
from alignment.methods import METHODS, Method, method_of
from alignment.recipe import Lora
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.training.held_out import logps_of
from alignment.training.held_out_pairs import HELD_OUT_FILE, HeldOutRow, parse_held_out, partner_ratios


def letters(rng: random.Random, alphabet: str) -> str:
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(4, 8)))


def rows() -> list[PreferenceRow]:
    """Chosen completions of the first letters, rejected ones of the last."""
    rng = random.Random(5)
    texts = [(letters(rng, "abcdefghij"), letters(rng, "abc"), letters(rng, "hij")) for _ in range(64)]
    return [paired_row(*text, "pairs.jsonl", number + 1) for number, text in enumerate(texts)]


def rewards(method: Method, rows: list[HeldOutRow]) -> tuple[float, float]:
    """(accuracy, mean margin) by the method's own rewards."""
    logps, ratios = logps_of(rows), torch.tensor(partner_ratios(rows))
    chosen, rejected = method.rewards(logps)
    return float(method.right(logps, method.prepare(ratios)).mean()), float(chosen.mean() - rejected.mean())


def before_training(row: HeldOutRow) -> HeldOutRow:
    """What its reference makes of it."""
    cells = asdict(row)
    return replace(row, **{name.removeprefix("ref_"): value for name, value in cells.items() if name[:4] == "ref_"})


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("loss", METHODS)
def test_held_out_pairs_are_told_apart_better_after_training(lab: Any, loss: str, lora: Lora | None) -> None:
    needed = {"label_smoothing": 0.1} if loss in ("cdpo", "robust") else {"beta": 2.0} if loss == "sigmoid_norm" else {}
    checkpoint = lab.checkpoint(kind="qwen2")
    method = METHODS[loss]
    if method.coupled or method.first_tokens:
        made = [half for row in rows() for half in halves(row)] if method.data == "unpaired" else rows()
        manifest = lab.scored_manifest(checkpoint, made, method, held_out_fraction=0.3)
    else:
        manifest = lab.manifest(checkpoint, rows(), held_out_fraction=0.3, referenced=method.needs_reference)
    given = {"loss": loss, "learning_rate": 2e-3 if lora is None else 1e-2, "lora": lora, **needed}
    request = lab.dpo_request(checkpoint, manifest, epochs=3, **given)
    commit = execute(STAGE, request, lab.store)
    held_out = parse_held_out(lab.store.read(commit.artifact, HELD_OUT_FILE))
    trained = method_of(request.settings)
    (before, start), (after, end) = rewards(trained, list(map(before_training, held_out))), rewards(trained, held_out)
    assert len(held_out) > 8 and after > before and end > start
    assert commit.summary["held_out"]["accuracy"] == pytest.approx(after, rel=1e-5)
