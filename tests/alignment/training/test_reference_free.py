"""Training without a reference: no log-prob of the start is cached, and only held-out pairs are scored with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from alignment.data.manifest import SPLIT_FILE, read_manifest
from alignment.data.rows import paired_row
from alignment.data.tokens import Dropped, Tokenization
from alignment.errors import BadInput
from alignment.methods import METHODS, PairLogps, method_of
from alignment.models.checkpoint import checkpoint_summary, digest_checkpoint, load_model, load_tokenizer
from alignment.recipe import Dpo, TokenPolicy
from alignment.stages import execute
from alignment.stages.policy import ROWS_FILE
from alignment.stages.policy_checkpoint import STAGE
from alignment.training.held_out_pairs import HELD_OUT_FILE, parse_held_out
from tests.alignment.training.conftest import TEMPLATE
from tests.tiny import letter_tokenizer, write_model

TOKENS = TokenPolicy(max_length=34)
FREE = sorted(name for name, method in METHODS.items() if not method.needs_reference)


def test_ids_beyond_the_models_embeddings_are_named(lab: Any) -> None:
    """With a reference the scorer says so; here nobody has looked at the rows before."""
    folder = write_model(lab.root / "small", letter_tokenizer(), "llama", vocab_size=20)
    checkpoint = lab.adopt(folder, digest_checkpoint(folder), checkpoint_summary(folder))
    rows = [paired_row("abcdefghij" * 4, "abc", "bcd", "f", 1), paired_row("a", "xyz", "b", "f", 2)]
    manifest = lab.manifest(checkpoint, rows, referenced=False)
    with pytest.raises(BadInput, match=r"the tokenizer gives id 29 \('z'\), and the model has embeddings for 20 only"):
        execute(STAGE, lab.dpo_request(checkpoint, manifest, loss="simpo"), lab.store)


def test_a_policy_made_where_more_rows_may_be_dropped_is_no_answer_to_who_allows_fewer(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(8), referenced=False)

    def key(loss: str, max_dropped: float) -> str:
        return STAGE.key(lab.dpo_request(checkpoint, manifest, loss=loss, tokens=TokenPolicy(max_dropped=max_dropped)))

    assert key("simpo", 0.5) != key("simpo", 0.05)
    assert key("sigmoid", 0.5) == key("sigmoid", 0.05)  # the stage of its references looks


def by_hand(settings: Dpo, model: Any, pairs: list[Any], score: Callable[..., float]) -> list[float]:
    """The objective of each pair under a model, by the plain definition of its log-probs."""
    sides = [[score(model, side.prompt_ids, side.completion_ids) for side in pair] for pair in pairs]
    tokens = [[len(side.completion_ids) for side in pair] for pair in pairs]
    (chosen, rejected), counts = (torch.tensor(values, dtype=torch.float64).T for values in (sides, tokens))
    return method_of(settings).objective(PairLogps(chosen, rejected, *[chosen * math.nan] * 2, *counts)).tolist()


@pytest.mark.parametrize("loss", FREE)
def test_a_policy_is_trained_from_rows_alone(
    lab: Any, loss: str, score_alone: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.training import held_out

    passes: list[int] = []
    with_reference = held_out.with_reference
    monkeypatch.setattr(
        held_out, "with_reference", lambda pairs, *how: passes.append(len(pairs)) or with_reference(pairs, *how)
    )
    checkpoint, rows = lab.checkpoint(), lab.rows(40)
    manifest = lab.manifest(checkpoint, rows, tokens=TOKENS, held_out_fraction=0.2, referenced=False)
    pinned = read_manifest(lab.store.fetch(manifest))
    assert [shard.reference for shard in pinned.shards] == [None]
    folder = lab.store.fetch(checkpoint)
    tokens = Tokenization(load_tokenizer(folder), TOKENS)
    found = {row.row_id: tokens.pair(row) for row in rows}
    split = pq.read_table(lab.store.fetch(manifest) / SPLIT_FILE).to_pylist()
    names = [row["row_id"] for row in split if row["split"] == "train"]
    trained = [found[name] for name in names if not isinstance(found[name], Dropped)]
    request = lab.dpo_request(checkpoint, manifest, loss=loss, tokens=TOKENS, batch_size=len(trained), epochs=6)
    commit = execute(STAGE, request, lab.store)
    summary = commit.summary

    too_long = {row_id for row_id, pair in found.items() if isinstance(pair, Dropped)}
    record = pq.read_table(lab.store.fetch(commit.artifact) / ROWS_FILE).to_pylist()
    assert {row["row_id"] for row in record if row["split"] == "dropped" and row["reason"] == "too long"} == too_long
    assert summary["rows_dropped"] == {"too long": len(too_long)} and too_long
    assert summary["rows_trained"] == len(trained)
    assert summary["rows_trained"] + summary["rows_held_out"] + len(too_long) == len(rows)

    start, policy = load_model(folder, "float32"), load_model(lab.store.fetch(commit.artifact), "float32")
    first = by_hand(request.settings, start, trained, score_alone)
    assert summary["first_loss"] == pytest.approx(math.fsum(first) / len(first), rel=1e-4)
    assert summary["agreement"] == {}
    losses = [entry["loss"] for entry in summary["history"]]
    assert losses[-1] < losses[0] and summary["history"][-1]["margin"] > summary["history"][0]["margin"]

    pairs = parse_held_out(lab.store.read(commit.artifact, HELD_OUT_FILE))
    assert passes == [len(pairs)], "the start is asked for held-out pairs, and for nothing else"
    for pair in pairs:
        sides = [(side.prompt_ids, side.completion_ids) for side in found[pair.row_id]]
        assert (pair.chosen_logp, pair.rejected_logp) == pytest.approx([score_alone(policy, *s) for s in sides])
        assert (pair.ref_chosen_logp, pair.ref_rejected_logp) == pytest.approx([score_alone(start, *s) for s in sides])


def test_a_held_out_pair_counts_by_the_methods_own_rewards() -> None:
    """Of 6 tokens with -6 nats and 2 with -4: SimPO's means are -1 and -2, and its chosen reward is the larger; CPO's
    sums are -6 and -4. With a reference the same pair counts by how far the policy moved from it."""
    from alignment.training.held_out import means
    from alignment.training.held_out_pairs import HeldOutPair

    pair = HeldOutPair("row", "prompt", "a", "b", -6.0, -4.0, -7.0, -4.5, 6, 2)
    simpo = means([pair], Dpo(loss="simpo", beta=2, gamma_ratio=0.5))
    assert (simpo["accuracy"], simpo["margin"]) == (1.0, 2.0)
    assert simpo["loss"] == pytest.approx(math.log(1 + math.exp(-2 * (1 - 0.5))), rel=1e-5)
    cpo = means([pair], Dpo(loss="cpo", beta=0.1))
    assert cpo["accuracy"] == 0.0 and cpo["margin"] == pytest.approx(-0.2)
    dpo = means([pair], Dpo(beta=0.1))
    assert dpo["accuracy"] == 1.0 and dpo["margin"] == pytest.approx(0.05)


def test_a_method_with_a_reference_refuses_a_manifest_without(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    manifest = lab.manifest(checkpoint, lab.rows(4), referenced=False)
    with pytest.raises(BadInput, match="shard one has no reference log-probs, and this method needs them"):
        execute(STAGE, lab.dpo_request(checkpoint, manifest), lab.store)


def test_rows_that_no_reference_pass_has_dropped_are_refused_where_they_are_too_many(lab: Any) -> None:
    """What the reference pass would say of them, in the words of the stage that drops them instead."""
    moving = TEMPLATE.replace("{% for", "{% if messages[-1].role == 'user' %}!{% endif %}{% for", 1)
    checkpoint = lab.checkpoint(template=moving)
    for kept, tokens, words in (
        (8, TokenPolicy(max_length=64), r"writes the prompt otherwise once an answer follows in 8 of 8 rows"),
        (8, TokenPolicy(max_length=64, max_dropped=1), r"no rows left after the token policy \(prompt written.*: 8\)"),
        (4, TokenPolicy(max_length=4), r"no rows left after the token policy \(too long: 4\)"),
    ):
        manifest = lab.manifest(checkpoint, lab.rows(kept, chat=tokens.max_length > 4), referenced=False)
        with pytest.raises(BadInput, match=words):
            execute(STAGE, lab.dpo_request(checkpoint, manifest, loss="simpo", tokens=tokens), lab.store)


@pytest.mark.parametrize("loss", FREE)
def test_a_manifest_with_references_serves_a_method_without(lab: Any, loss: str) -> None:
    """Neither the rows nor the result differ: what nobody reads is not asked for."""
    checkpoint, rows = lab.checkpoint(), lab.rows(8)
    manifests = [lab.manifest(checkpoint, rows, referenced=referenced) for referenced in (True, False)]
    requests = [lab.dpo_request(checkpoint, manifest, loss=loss, batch_size=8) for manifest in manifests]
    summaries = [execute(STAGE, request, lab.store).summary for request in requests]
    assert summaries[0]["first_loss"] == pytest.approx(summaries[1]["first_loss"])
