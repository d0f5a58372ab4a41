"""What the policy stage leaves of every held-out pair, against the plain definition on the saved checkpoint."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from alignment.data.manifest import read_manifest
from alignment.data.rows import paired_row
from alignment.data.tokens import Tokenization, TokenSequence
from alignment.models.checkpoint import load_model, load_tokenizer
from alignment.recipe import TokenPolicy
from alignment.stages import execute, policy_checkpoint
from alignment.stages.policy_checkpoint import STAGE
from alignment.training.held_out import MOST_PAIRS, measured
from alignment.training.held_out_pairs import HELD_OUT_FILE, HeldOutPair, parse_held_out
from alignment.training.models import TrainedModel
from alignment.training.pairs import PolicyPair
from alignment.training.row_files import PairsFile, PolicyPairs

BETA = 0.3


@pytest.fixture
def trained(lab: Any) -> dict[str, Any]:
    """A policy trained on rows of which every prompt stands twice, and what it wrote."""
    checkpoint = lab.checkpoint()
    rows = lab.rows(24)
    rows += [paired_row(row.prompt, row.rejected, row.chosen + " a", "pairs.jsonl", 99) for row in rows]
    manifest = lab.manifest(checkpoint, rows, held_out_fraction=0.3)
    commit = execute(STAGE, lab.dpo_request(checkpoint, manifest, beta=BETA), lab.store)
    pairs = parse_held_out(lab.store.read(commit.artifact, HELD_OUT_FILE))
    return {"lab": lab, "checkpoint": checkpoint, "manifest": manifest, "rows": rows, "commit": commit, "pairs": pairs}


def test_every_pair_has_the_log_probs_of_the_saved_policy_and_of_its_reference(
    trained: dict[str, Any], score_alone: Callable[..., float]
) -> None:
    store = trained["lab"].store
    folders = store.fetch(trained["commit"].artifact), store.fetch(trained["checkpoint"])
    policy, reference = (load_model(folder, "float32") for folder in folders)
    tokens = Tokenization(load_tokenizer(folders[0]), TokenPolicy(max_length=64))
    rows = {row.row_id: row for row in trained["rows"]}
    shard = read_manifest(store.fetch(trained["manifest"])).shards[0]
    scored = pq.read_table(store.fetch(shard.reference) / "logprobs.parquet").to_pylist()
    keys = {cells["row_id"]: (cells["chosen_key"], cells["rejected_key"]) for cells in scored}
    assert [pair.row_id for pair in trained["pairs"]] == sorted(pair.row_id for pair in trained["pairs"])
    for found in trained["pairs"]:
        sequences = tokens.pair(rows[found.row_id])
        assert isinstance(sequences, tuple)
        sides = [(sequence.prompt_ids, sequence.completion_ids) for sequence in sequences]
        assert (found.chosen_logp, found.rejected_logp) == pytest.approx([score_alone(policy, *s) for s in sides])
        assert (found.ref_chosen_logp, found.ref_rejected_logp) == pytest.approx(
            [score_alone(reference, *s) for s in sides]
        )
        assert (found.chosen_tokens, found.rejected_tokens) == tuple(len(completion) for _, completion in sides)
        assert found.keys == keys[found.row_id]
    assert any(abs(pair.chosen_ratio) > 0.1 for pair in trained["pairs"]), "the policy has not moved"


def test_pairs_of_one_prompt_are_named_alike_and_others_are_not(trained: dict[str, Any]) -> None:
    prompts = {row.row_id: row.prompt for row in trained["rows"]}
    named: dict[str, set[str]] = {}
    for pair in trained["pairs"]:
        named.setdefault(pair.prompt_id, set()).add(prompts[pair.row_id])
    assert all(len(same) == 1 for same in named.values())
    assert 1 < len(named) == len(trained["pairs"]) / 2


def test_the_summary_holds_their_means(trained: dict[str, Any]) -> None:
    pairs: list[HeldOutPair] = trained["pairs"]
    margins = [pair.chosen_ratio - pair.rejected_ratio for pair in pairs]
    assert trained["commit"].summary["held_out"] == pytest.approx(
        {
            "pairs": trained["commit"].summary["rows_held_out"],
            "loss": sum(math.log1p(math.exp(-BETA * margin)) for margin in margins) / len(pairs),
            "accuracy": sum(margin > 0 for margin in margins) / len(pairs),
            "margin": BETA * sum(margins) / len(pairs),
        },
        rel=1e-5,
    )


def test_the_trained_model_is_out_of_memory_when_the_saved_one_is_loaded(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer is full of cycles, and holds sixteen bytes a weight."""
    trained: list[weakref.ref[Any]] = []
    made, load = TrainedModel.__init__, policy_checkpoint.load_model

    def making(self: TrainedModel, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        trained.append(weakref.ref(self.model))

    def loading(*args: Any, **kwargs: Any) -> Any:
        assert [model() for model in trained] == [None]
        return load(*args, **kwargs)

    monkeypatch.setattr(TrainedModel, "__init__", making)
    monkeypatch.setattr(policy_checkpoint, "load_model", loading)
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(20), held_out_fraction=0.3)
    gc.disable()  # which collects now and then, and not where memory is needed
    try:
        commit = execute(STAGE, lab.dpo_request(checkpoint, manifest), lab.store)
    finally:
        gc.enable()
    assert commit.summary["held_out"]["pairs"]


def test_with_nothing_held_out_the_file_is_there_and_empty(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    commit = execute(STAGE, lab.dpo_request(checkpoint, lab.manifest(checkpoint, lab.rows(4))), lab.store)
    assert parse_held_out(lab.store.read(commit.artifact, HELD_OUT_FILE)) == []
    assert commit.summary["held_out"] == {"pairs": 0}


def test_of_very_many_those_of_lowest_row_id_are_measured(tmp_path: Path) -> None:
    file = PairsFile(tmp_path / "held_out.arrow")
    for number in reversed(range(MOST_PAIRS + 50)):
        sequence = TokenSequence((0,), (1,) * (1 + number % 7))
        file.add(PolicyPair(f"{number:04d}", sequence, sequence, 0.0, 0.0, "p"))
    file.close()
    chosen = measured(PolicyPairs(tmp_path / "held_out.arrow"))
    assert [one.row_id for one in chosen] == [f"{number:04d}" for number in range(MOST_PAIRS)]
