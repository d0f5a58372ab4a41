"""The benchmark of the DPO step compares like with like: every way gives the same loss and the same gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.dpo_step import compare, report
from benchmarks.preference_mix import SIZES


def test_every_way_takes_the_same_step(capsys: pytest.CaptureFixture[str]) -> None:
    size, cpu = replace(SIZES["tiny"], pairs=8), torch.device("cpu")
    outcome = compare(size, 2, (2, 8), cpu)
    assert len(outcome.ways) == 6
    for way in outcome.ways:
        assert way.loss == pytest.approx(outcome.exact[0], abs=1e-6), way.name
        assert outcome.gradient_error(way) < 1e-5, way.name
    assert abs(outcome.exact[0] - 0.693) > 1e-3  # the policy has moved away from its reference
    assert [len(way.seconds) for way in outcome.ways if way.name.endswith(("ours", "data order, micro batch 4"))] == [
        2,
        2,
    ]
    report("tiny", size, outcome, cpu)
    assert "ours against TRL cached as it comes, micro batch 8: " in capsys.readouterr().out
