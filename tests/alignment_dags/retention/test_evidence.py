"""Withdrawn rows beside matched rows that a policy never saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alignment.models.pin import pin_model
from alignment.recipe import Dpo, ModelSource, TokenPolicy
from alignment.stages import Result, Stage, execute
from alignment.stages.base_model import BaseModelRequest
from alignment.stages.policy import DpoRequest
from alignment.store import Artifact, Commit, Store
from alignment_dags.retention.evidence import Measured, bits_of_start, trace


def drawn(rng: np.random.Generator, rows: int, shift: float = 0.0) -> list[Measured]:
    """Pairs whose margin depends on the start checkpoint's and on the length, and is higher by `shift`."""
    made = []
    for _ in range(rows):
        reference, tokens = float(rng.normal(0, 5)), int(rng.integers(10, 400))
        margin = 0.2 * reference + tokens / 200 + float(rng.normal(0, 0.5)) + shift
        made.append(Measured(margin, reference, tokens))
    return made


def test_rows_that_a_policy_never_saw_are_like_those_that_it_never_saw_in_nineteen_of_twenty_cases() -> None:
    rng = np.random.default_rng(5)
    found = [trace(drawn(rng, 30), drawn(rng, 200)) for _ in range(100)]
    inside = [one.low <= 0 <= one.high for one in found if one.low is not None and one.high is not None]
    assert len(inside) == 100 and sum(inside) >= 88
    assert np.mean([one.rank for one in found]) == pytest.approx(0.5, abs=0.03)


def test_rows_that_left_a_trace_are_seen_and_rows_of_another_kind_are_matched() -> None:
    rng = np.random.default_rng(6)
    unseen = drawn(rng, 300)
    left = trace(drawn(rng, 30, shift=1.0), unseen)
    assert left.low is not None and left.low > 0 and left.rank > 0.6
    long = [row for row in drawn(rng, 400) if row.tokens > 300][:40]
    found = trace(long, unseen)
    assert found.low is not None and found.high is not None and found.low < 0 < found.high, "long, and not remembered"
    assert found.rank > 0.6 and found.margin > 1.0, "beside all unseen pairs they would look remembered"


def test_one_row_has_no_interval_and_no_rows_have_no_trace() -> None:
    rng = np.random.default_rng(7)
    one = trace(drawn(rng, 1), drawn(rng, 20))
    assert (one.rows, one.matches, one.low) == (1, 1, None)
    with pytest.raises(ValueError, match="nothing to compare"):
        trace([], drawn(rng, 2))


def test_the_start_has_the_bits_that_it_had_for_the_held_out_pairs(store: Store) -> None:
    """Rows in other bits would differ from what they are matched with, whether they were seen or not."""
    base = BaseModelRequest(pin=pin_model(ModelSource(embedded="micro")), seed=1)
    start = execute(Stage("sft_checkpoint", 1, BaseModelRequest, lambda *_: Result("start")), base, store)

    def trained(checkpoint: Artifact, **settings: Any) -> Commit:
        request = DpoRequest(
            manifest=start.artifact, checkpoint=checkpoint, settings=Dpo(**settings), tokens=TokenPolicy(), seed=1
        )
        stage = Stage("policy_checkpoint", 1, DpoRequest, lambda *_: Result(stage.key(request)))
        return execute(stage, request, store)

    qlora = {"lora": {"quantise": "nf4"}}
    first = trained(start.artifact, **qlora)
    assert bits_of_start(store, first, start) == "nf4"
    assert bits_of_start(store, trained(first.artifact, **qlora), start) is None, "a chain is measured against it whole"
    assert bits_of_start(store, trained(start.artifact, loss="simpo", **qlora), start) is None
    assert bits_of_start(store, trained(start.artifact), start) is None
