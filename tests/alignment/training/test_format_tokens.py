"""Format tokens that do not count: in neither the reference nor the loss, by one place that decides both."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
import pytest

from alignment.data.tokens import Tokenization, TokenSequence, with_firsts
from alignment.logprobs.keys import keys_of, sequence_key
from alignment.logprobs.token_ids import TokenIds
from alignment.recipe import TokenPolicy
from alignment.stages import execute
from alignment.stages import reference_logprobs as reference
from alignment.stages.policy_checkpoint import STAGE
from alignment.stages.preference_manifest import STAGE as MANIFEST
from alignment.stages.preference_manifest import ManifestRequest

MASKED = TokenPolicy(max_length=64, format_tokens="mask")


def tokenization(lab: Any, checkpoint: Any, policy: TokenPolicy) -> Tokenization:
    from alignment.models.checkpoint import load_tokenizer
    from alignment.models.ends import end_ids

    folder = lab.store.fetch(checkpoint)
    return Tokenization(load_tokenizer(folder), policy, None, end_ids(folder))


def test_the_end_of_a_turn_does_not_count_and_everything_else_of_the_answer_does(lab: Any, template: str) -> None:
    checkpoint = lab.checkpoint(template=template)
    for row in lab.rows(6, chat=True):
        plain, masked = (
            tokenization(lab, checkpoint, policy).pair(row) for policy in (TokenPolicy(max_length=64), MASKED)
        )
        for one, other in zip(plain, masked, strict=True):
            assert (other.prompt_ids, other.completion_ids) == (one.prompt_ids, one.completion_ids)
            assert other.uncounted == (len(one.completion_ids) - 1,), "</s> alone is a special token"
            assert (one.counted, other.counted) == (len(one.completion_ids), len(one.completion_ids) - 1)
            assert sequence_key("f", one) != sequence_key("f", other)


def test_a_sequence_comes_back_from_the_store_as_it_went_in(lab: Any, template: str) -> None:
    checkpoint = lab.checkpoint(template=template)
    tokens, ids = tokenization(lab, checkpoint, MASKED), TokenIds(lab.store, "masked")
    rows = lab.rows(6, chat=True)
    fresh, known = (ids.pairs(rows, tokens) for _ in range(2))
    assert fresh == known
    sequence = TokenSequence((1,), (5, 0, 7), (1, 2))
    assert sequence.stored_ids == (5, -1, -8)
    assert TokenSequence.of_stored((1,), (5, -1, -8)) == sequence
    assert sequence.first(2) == TokenSequence((1,), (5, 0), (1,))


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "ld_dpo"])
def test_scorer_and_trainer_leave_the_same_tokens_out(lab: Any, template: str, loss: str) -> None:
    """From the reference stage to the policy's first step: the values are plain sums over the tokens that count."""
    import torch

    from alignment.models.checkpoint import load_model

    checkpoint = lab.checkpoint(kind="qwen2", template=template)
    rows = lab.rows(8, chat=True)
    shard = lab.shard(rows)
    asked = reference.ReferenceRequest(
        checkpoint=checkpoint,
        shard=shard,
        tokens=MASKED,
        precision="float32",
        batch_tokens=400,
        first_tokens=loss == "ld_dpo",
    )
    scored = execute(reference.STAGE, asked, lab.store).artifact
    table = {
        cells["row_id"]: cells for cells in pq.read_table(lab.store.fetch(scored) / "logprobs.parquet").to_pylist()
    }
    model, tokens = load_model(lab.store.fetch(checkpoint), "float32"), tokenization(lab, checkpoint, MASKED)
    for row in rows:
        for side, sequence in zip(("chosen", "rejected"), tokens.pair(row), strict=True):
            ids = torch.tensor([[*sequence.prompt_ids, *sequence.completion_ids]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, :-1].double()
            each = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[len(sequence.prompt_ids) - 1 :, 0]
            assert table[row.row_id][f"{side}_logp"] == pytest.approx(float(each[:-1].sum()), abs=1e-4)
            assert table[row.row_id][f"{side}_tokens"] == len(each) - 1
    manifest = execute(
        MANIFEST, ManifestRequest(shards={"one": shard}, references={"one": scored}, held_out_fraction=0.2), lab.store
    ).artifact
    request = lab.dpo_request(checkpoint, manifest, tokens=MASKED, loss=loss)
    summary = execute(STAGE, request, lab.store).summary
    assert summary["agreement"]["worst_nats"] < 1e-4
    assert summary["agreement"]["loss"] == pytest.approx(summary["agreement"]["expected_loss"], abs=1e-5)


def test_a_masked_token_has_no_gradient(lab: Any, template: str) -> None:
    import torch

    from alignment.models.forward import row_sums

    rows = [TokenSequence((1,), (5, 6, 7), (2,)), TokenSequence((1,), (5, 6)), TokenSequence((1, 2), (4, 4), (0, 1))]
    logps = torch.arange(1.0, 8.0, dtype=torch.float64, requires_grad=True)
    sums = row_sums(logps, rows)
    sums.sum().backward()
    assert sums.tolist() == [3.0, 9.0, 0.0]
    assert logps.grad is not None and logps.grad.tolist() == [1, 1, 0, 1, 1, 0, 0]


def test_a_policy_that_counts_them_has_the_key_of_earlier_versions() -> None:
    assert "format_tokens" not in TokenPolicy(format_tokens="count").model_dump(mode="json")
    assert TokenPolicy(format_tokens="mask").model_dump(mode="json")["format_tokens"] == "mask"
    assert TokenPolicy(format_tokens="mask").writing().format_tokens == "count", "SFT teaches the end of an answer"


@pytest.mark.parametrize(
    ("chosen", "rejected", "lengths"),
    [
        ((5, 6, 7, 2), (5, 6, 7, 8, 9, 2), [4, 4]),  # nothing is masked
        ((5, 6, 7, -3), (5, 6, 7, 8, 9, -3), [4, 3]),  # three count, and the shorter side is whole
        ((-1, 5, 6, -3), (-1, -1, 5, 6, 7, 8, -3), [4, 4]),
        ((5, -3), (-1, 5, -1, -1, 6, -3), [2, 4]),
        ((5, 6, -3), (-1, 5, 6, -3), [3, 4]),
    ],
)
def test_the_first_tokens_of_both_sides_are_as_many_that_count(
    chosen: tuple[int, ...], rejected: tuple[int, ...], lengths: list[int]
) -> None:
    sides = [TokenSequence.of_stored((1,), ids) for ids in (chosen, rejected)]
    firsts = with_firsts(dict(zip(("chosen", "rejected"), sides, strict=True)))
    assert [len(firsts[f"{side}_first"].completion_ids) for side in ("chosen", "rejected")] == lengths
    assert {firsts[f"{side}_first"].counted for side in ("chosen", "rejected")} == {min(s.counted for s in sides)}
    keys = keys_of("f", firsts)
    assert keys["chosen"] == keys["chosen_first"], "the shorter side is scored once"
