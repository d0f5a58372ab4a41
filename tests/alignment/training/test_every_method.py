"""Every method teaches a tiny model what its pairs hold, with all weights and with adapters."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from alignment.data.rows import PreferenceRow, paired_row
from alignment.methods import METHODS, Method, method_of
from alignment.recipe import Lora
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.training.held_out import logps_of
from alignment.training.held_out_pairs import HELD_OUT_FILE, HeldOutPair, parse_held_out


def letters(rng: random.Random, alphabet: str) -> str:
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(4, 8)))


def rows() -> list[PreferenceRow]:
    """Chosen completions of the first letters, rejected ones of the last."""
    rng = random.Random(5)
    texts = [(letters(rng, "abcdefghij"), letters(rng, "abc"), letters(rng, "hij")) for _ in range(64)]
    return [paired_row(*text, "pairs.jsonl", number + 1) for number, text in enumerate(texts)]


def rewards(method: Method, pairs: list[HeldOutPair]) -> tuple[float, float]:
    """(accuracy, mean margin) by the method's own rewards."""
    chosen, rejected = method.rewards(logps_of(pairs))
    right = (chosen > rejected).double() + 0.5 * (chosen == rejected).double()
    return float(right.mean()), float((chosen - rejected).mean())


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("loss", METHODS)
def test_held_out_pairs_are_told_apart_better_after_training(lab: Any, loss: str, lora: Lora | None) -> None:
    needed = {"label_smoothing": 0.1} if loss in ("cdpo", "robust") else {"beta": 2.0} if loss == "sigmoid_norm" else {}
    checkpoint = lab.checkpoint(kind="qwen2")
    manifest = lab.manifest(checkpoint, rows(), held_out_fraction=0.3, referenced=METHODS[loss].needs_reference)
    given = {"loss": loss, "learning_rate": 2e-3 if lora is None else 1e-2, "lora": lora, **needed}
    request = lab.dpo_request(checkpoint, manifest, epochs=3, **given)
    commit = execute(STAGE, request, lab.store)
    pairs = parse_held_out(lab.store.read(commit.artifact, HELD_OUT_FILE))
    untrained = [
        replace(pair, chosen_logp=pair.ref_chosen_logp, rejected_logp=pair.ref_rejected_logp) for pair in pairs
    ]
    method = method_of(request.settings)
    (before, start), (after, end) = rewards(method, untrained), rewards(method, pairs)
    assert len(pairs) > 8 and after > before and end > start
    assert commit.summary["held_out"]["accuracy"] == pytest.approx(after, rel=1e-5)
