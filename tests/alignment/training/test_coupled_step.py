"""A step of KTO's coupled rows, and of LD-DPO's first tokens: gradients are those of padded batches and full logits."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from alignment.data.tokens import TokenSequence
from alignment.data.validate import halves
from alignment.errors import BadInput
from alignment.logprobs.scorer import logps
from alignment.methods import METHODS, Method, method_of
from alignment.models.runner import Runner
from alignment.recipe import Dpo
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.training import packed_step
from alignment.training.agreement import Disagreement, require_agreement
from alignment.training.pairs import PolicyCompletion, PolicyPair, schema_of, score_rows, with_reference
from alignment.training.row_files import PairsFile, PolicyPairs
from tests.alignment.training.test_packed_step import apart, exact, gradients, model_of, rows_of

KTO = Dpo(loss="kto", beta=0.2, desirable_weight=1.3, undesirable_weight=0.8)
LD_DPO = Dpo(loss="ld_dpo", beta=0.2, ld_alpha=0.3)


def token_logps(model: Any, sequence: TokenSequence) -> torch.Tensor:
    """Of each completion token, alone, from the full logits, with a gradient."""
    ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
    each = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return each[len(sequence.prompt_ids) - 1 :]


def completions_of(seed: int, count: int) -> list[PolicyCompletion]:
    """Labelled rows, each with the next one's completion for a partner; reference log-probs near a fresh model's."""
    draw, pairs = random.Random(seed), rows_of(seed, count, 24)
    made = []
    for number, (pair, other) in enumerate(zip(pairs, [*pairs[1:], pairs[0]], strict=True)):
        partner = TokenSequence(pair.chosen.prompt_ids, other.chosen.completion_ids)
        lengths = len(pair.chosen.completion_ids), len(partner.completion_ids)
        reference = [-each * length - draw.uniform(1, 4) for each, length in zip((4.5, 6.0), lengths, strict=True)]
        made.append(PolicyCompletion(f"row{number}", pair.chosen, partner, number % 3 > 0, *reference, "p"))
    return made


def step(model: Any, rows: Any, method: Method, tokens: int) -> tuple[float, dict[str, torch.Tensor], Any]:
    def score(sequences: list[TokenSequence]) -> list[float]:
        return logps(model, sequences, tokens)

    model.zero_grad()
    constants = packed_step.constants_of(method, rows, range(len(rows)), score)
    runner = Runner.of(model, next(iter(rows[0].sequences.values())))
    numbers = packed_step.backward(runner, method, rows, len(rows), tokens, (), constants)
    return numbers.loss / len(rows), gradients(model), (numbers, constants)


@pytest.mark.parametrize("tokens", [2048, 90])
def test_ktos_gradient_is_that_of_the_formula_over_full_logits(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ethayarajh et al. 2024, section 4.1; no gradient goes through z₀."""
    model, rows = model_of("llama", torch.float64), completions_of(1, 9)
    with exact(monkeypatch):
        over = [
            float(token_logps(model, row.partner).sum().detach()) - row.ref_partner_logp
            for row in rows
            if row.partner is not None
        ]
        z0 = max(0.0, sum(over) / len(over))
        loss = torch.zeros((), dtype=torch.float64)
        for row in rows:
            ratio = token_logps(model, row.completion).sum() - row.ref_completion_logp
            weight, sign = (KTO.desirable_weight, 1) if row.label else (KTO.undesirable_weight, -1)
            loss = loss + weight * (1 - torch.sigmoid(KTO.beta * sign * (ratio - z0))) / len(rows)
        model.zero_grad()
        loss.backward()
        expected = gradients(model)
        found_loss, found, (numbers, constants) = step(model, rows, method_of(KTO), tokens)
    assert z0 > 0 and constants == pytest.approx(z0, rel=1e-9)
    assert found_loss == pytest.approx(float(loss), rel=1e-10)
    assert apart(found, expected) < 1e-10
    assert (numbers.rows, numbers.chosen, numbers.rejected) == (9, 6, 3)


@pytest.mark.parametrize("tokens", [2048, 90])
def test_ld_dpos_gradient_is_that_of_the_formula_over_full_logits(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Liu et al. 2024: tokens behind the shorter side's length count α, in both sums and in the gradient."""
    model, alpha = model_of("llama", torch.float64), LD_DPO.ld_alpha
    draw = random.Random(3)
    rows = [
        replace(row, ref_chosen_first_logp=-draw.uniform(5, 40), ref_rejected_first_logp=-draw.uniform(5, 40))
        for row in rows_of(2, 9, 24)
    ]
    with exact(monkeypatch):
        loss = torch.zeros((), dtype=torch.float64)
        for row in rows:
            sides = [token_logps(model, side) for side in (row.chosen, row.rejected)]
            shared = min(map(len, sides))
            policy = [side[:shared].sum() + alpha * side[shared:].sum() for side in sides]
            reference = [
                first + alpha * (whole - first)
                for whole, first in (
                    (row.ref_chosen_logp, row.ref_chosen_first_logp),
                    (row.ref_rejected_logp, row.ref_rejected_first_logp),
                )
            ]
            margin = (policy[0] - reference[0]) - (policy[1] - reference[1])
            loss = loss - torch.nn.functional.logsigmoid(LD_DPO.beta * margin) / len(rows)
        model.zero_grad()
        loss.backward()
        expected = gradients(model)
        found_loss, found, _ = step(model, rows, method_of(LD_DPO), tokens)
    assert found_loss == pytest.approx(float(loss), rel=1e-10)
    assert apart(found, expected) < 1e-10


def test_z0_does_not_depend_on_who_scores_which_partner_and_rows_without_one_do_not_count() -> None:
    rows, method = completions_of(4, 8), method_of(KTO)
    rows[3] = replace(rows[3], partner=None)
    nats = {id(row.partner): -float(number) for number, row in enumerate(rows)}
    scored: list[int] = []

    def score(sequences: list[TokenSequence]) -> list[float]:
        scored.append(len(sequences))
        return [nats[id(sequence)] for sequence in sequences]

    ratios = [-number - row.ref_partner_logp for number, row in enumerate(rows) if number != 3]
    assert packed_step.constants_of(method, rows, range(8), score) == pytest.approx(max(0.0, sum(ratios) / 7))
    assert scored == [7]
    assert packed_step.constants_of(method, [rows[3]], [0], score) == 0.0
    assert packed_step.constants_of(method_of(Dpo()), rows, range(8), score) is None


def manifest_of(lab: Any, method: Method, count: int = 24, precision: str = "float32") -> tuple[Any, Any]:
    checkpoint = lab.checkpoint()
    rows = lab.rows(count)
    rows = [half for row in rows for half in halves(row)] if method.data == "unpaired" else rows
    return checkpoint, lab.scored_manifest(checkpoint, rows, method, held_out_fraction=0.2, precision=precision)


@pytest.mark.parametrize(
    ("given", "first_loss"),
    [
        ({"loss": "kto"}, 0.5),
        ({"loss": "kto", "desirable_weight": 2.0, "batch_size": 5}, None),
        ({"loss": "ld_dpo"}, 0.693147),
        ({"loss": "kto", "precision": "bfloat16"}, 0.5),
        ({"loss": "ld_dpo", "precision": "bfloat16"}, 0.693147),
    ],
    ids=["kto", "kto, weighted", "ld_dpo", "kto in 16 bits", "ld_dpo in 16 bits"],
)
def test_a_run_starts_at_the_loss_that_theory_gives(lab: Any, given: dict[str, Any], first_loss: float | None) -> None:
    checkpoint, manifest = manifest_of(lab, METHODS[given["loss"]], precision=given.get("precision", "float32"))
    summary = execute(STAGE, lab.dpo_request(checkpoint, manifest, **given), lab.store).summary
    assert summary["agreement"]["worst_nats"] < 1e-4
    assert summary["first_loss"] == pytest.approx(summary["agreement"]["expected_loss"], abs=1e-5)
    if first_loss is None:  # between the two halves of the weights, by the labels of the step's five rows
        assert 5 * summary["first_loss"] == pytest.approx(round(5 * summary["first_loss"], 1), abs=1e-4)
        assert 0.5 <= summary["first_loss"] <= 1.0
    else:
        assert summary["first_loss"] == pytest.approx(first_loss, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "name"),
    [(KTO, "ref_completion_logp"), (KTO, "ref_partner_logp"), (LD_DPO, "ref_rejected_first_logp")],
)
def test_a_wrong_value_under_any_key_that_the_method_reads_ends_the_run_by_name(settings: Dpo, name: str) -> None:
    """The reference's value of the partner, or of the first tokens, is as much a part of the loss as the others."""
    settings = settings.model_copy(update={"precision": "float32"})
    model, method = model_of("llama", torch.float32), method_of(settings)

    def score(sequences: Any, wholes: Any = None) -> list[float]:
        return logps(model, sequences, 400, wholes)

    rows: list[Any] = list(completions_of(5, 6) if method.coupled else rows_of(5, 6))
    rows = [with_reference(row, found) for row, found in zip(rows, score_rows(method, rows, score), strict=True)]
    assert require_agreement(rows, settings, score)["worst_nats"] < 1e-3
    rows[2] = replace(rows[2], **{name: getattr(rows[2], name) - 0.5})
    side = name.removeprefix("ref_").removesuffix("_logp")
    with pytest.raises(Disagreement, match=rf"row row2 \({side}, .*\+0\.5000 nat"):
        require_agreement(rows, settings, score)


def test_pairs_are_refused_by_kto_and_labelled_rows_by_dpo_at_the_stage_too(lab: Any) -> None:
    checkpoint, manifest = manifest_of(lab, METHODS["kto"])
    with pytest.raises(BadInput, match="loss: sigmoid needs paired preferences, and the data is unpaired"):
        execute(STAGE, lab.dpo_request(checkpoint, manifest), lab.store)
    checkpoint, manifest = manifest_of(lab, METHODS["sigmoid"])
    with pytest.raises(BadInput, match="loss: kto needs unpaired preferences, and the data is paired"):
        execute(STAGE, lab.dpo_request(checkpoint, manifest, loss="kto"), lab.store)


def test_pairs_and_completions_go_to_their_file_and_back(tmp_path: Any) -> None:
    alone = replace(completions_of(7, 3)[0], partner=None, ref_partner_logp=-1.0)
    firsts = [replace(row, ref_chosen_first_logp=-1.5, ref_rejected_first_logp=-2.5) for row in rows_of(7, 3)]
    of_each: dict[str, list[PolicyCompletion] | list[PolicyPair]] = {
        "kto": [*completions_of(7, 3), alone],
        "ld_dpo": firsts,
    }
    for loss, rows in of_each.items():
        file = PairsFile(tmp_path / f"{loss}.arrow", schema_of(METHODS[loss]()))
        for row in rows:
            file.add(row)
        file.close()
        assert list(PolicyPairs(tmp_path / f"{loss}.arrow")) == rows


def test_a_row_without_a_partner_has_its_share_and_its_place_in_the_check_at_the_start() -> None:
    """A shard may have one row on a side of the split; and a partner's completion may be cut to masked tokens."""
    made = completions_of(3, 6)
    rows = [replace(made[0], partner=None), *made[1:]]
    shares = [packed_step.share_of(method_of(KTO), rows, rank, 2) for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == list(range(6)) and all(shares)
    masked = TokenSequence((1, 2), (5,), (0,))
    row = replace(made[0], partner=masked, ref_partner_logp=0.0)

    def score(sequences: list[TokenSequence]) -> list[float]:
        return [0.0 if one is masked else row.ref_completion_logp for one in sequences]

    for settings in (KTO, KTO.model_copy(update={"precision": "bfloat16"})):
        assert require_agreement([row], settings, score, score)["worst_nats"] == 0.0
