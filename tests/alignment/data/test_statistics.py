"""Numbers of pairs: parts put together are the whole, and every sentence says its numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.data.measure import Contradictions, LogpCounts, pair_numbers
from alignment.data.statistics import LogpNumbers, PairNumbers, findings, label_noise, shift
from alignment.data.statistics import NoiseNumbers as Noise

scores = st.one_of(st.none(), st.floats(-5, 5))
rows = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), scores, scores), min_size=1, max_size=30)


def table(pairs: list[tuple[Any, ...]]) -> pa.Table:
    chosen, rejected, chosen_score, rejected_score = zip(*pairs, strict=True)
    return pa.table(
        {
            "pair_id": pa.array(range(len(pairs)), pa.uint64()),
            "chosen_length": pa.array(chosen, pa.int32()),
            "rejected_length": pa.array(rejected, pa.int32()),
            "chosen_score": pa.array(chosen_score, pa.float64()),
            "rejected_score": pa.array(rejected_score, pa.float64()),
        }
    )


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(rows, min_size=1, max_size=4))
def test_parts_put_together_are_the_numbers_of_the_whole(parts: list[list[tuple[Any, ...]]]) -> None:
    measured = [numbers for part in parts if (numbers := pair_numbers(table(part))) is not None]
    together = PairNumbers.together(measured).model_dump()
    whole = pair_numbers(table([row for part in parts for row in part]))
    assert whole is not None
    for name, value in whole.model_dump().items():
        if name != "margin_length_correlation":  # of values that hardly differ it is rounding alone
            assert together.pop(name) == pytest.approx(value, abs=1e-9), name
    spread = min(whole.margin_sd or 0, whole.gap_sd or 0)
    if spread > 1e-3:
        assert together.pop("margin_length_correlation") == pytest.approx(whole.margin_length_correlation, abs=1e-6)


def test_lengths_and_scores_are_what_they_are_called() -> None:
    numbers = pair_numbers(table([(10, 5, 1.0, 0.0), (10, 20, 0.0, 1.0), (7, 7, None, 1.0), (9, 1, 3.0, 0.0)]))
    assert numbers is not None
    assert (numbers.pairs, numbers.of_two_lengths, numbers.chosen_longer) == (4, 3, pytest.approx(2 / 3))
    assert (numbers.chosen_length, numbers.rejected_length) == (9.0, 8.25)
    assert (numbers.scored, numbers.wrong_way) == (3, pytest.approx(1 / 3))
    expected = np.corrcoef([1, -1, 3], [5, -10, 8])[0, 1]
    assert numbers.margin_length_correlation == pytest.approx(expected)


def test_rows_without_pairs_have_no_numbers_and_no_findings() -> None:
    assert pair_numbers(table([(None, None, None, None)])) is None
    assert findings() == []


def test_scores_that_point_the_wrong_way_and_scores_that_are_length_are_named() -> None:
    lengths = [(100 + n, 100, 0.1 * n, 0.0) for n in range(1, 80)]
    backwards = [(100 - n % 2, 100, 0.0, 1.0) for n in range(80)]
    for pairs, name, told in (
        (lengths, "length_reward", "margin correlates with the difference in length at +1.00: who gave the scores"),
        (backwards, "score_order", "the rejected answer has the higher score in 100 % of 80 scored pairs"),
    ):
        wrong = {one.name: one.sentence for one in findings(pair_numbers(table(pairs))) if not one.passed}
        assert told in wrong.pop(name)
        assert set(wrong) <= {"length_bias"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(0, 60).map(lambda n: n * (2**58)), max_size=80), at_once=st.integers(1, 40))
def test_contradictions_are_counted_through_files_as_in_memory(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int], at_once: int
) -> None:
    folder = tmp_path_factory.mktemp("pairs") / "ids"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Contradictions, "ROWS_AT_ONCE", at_once)
        counted = Contradictions(folder, len(ids))
        for start in range(0, len(ids), 7):
            counted.add(np.array(ids[start : start + 7], np.uint64))
        times = Counter(ids)
        assert counted.count() == sum(count for count in times.values() if count > 1)
        assert set(counted.examples) <= {one for one, count in times.items() if count > 1}
    assert not folder.exists() or not [path for path in folder.rglob("*") if path.is_file()]


def logps(values: list[float]) -> LogpNumbers:
    tokens = np.full(len(values), 4, np.int32)
    sums = np.array(values) * 4
    counts = LogpCounts()
    counts.add(
        pa.table({"chosen_logp": sums, "rejected_logp": sums - 4, "chosen_tokens": tokens, "rejected_tokens": tokens})
    )
    numbers = counts.numbers()
    assert numbers is not None
    return numbers


def test_quantiles_are_those_of_the_values_to_a_bin_and_parts_add_up() -> None:
    draw = np.random.default_rng(0)
    values = [(-draw.gamma(2, 0.6, 400)).tolist() for _ in range(3)]
    together = LogpNumbers.together({str(n): logps(part) for n, part in enumerate(values)})
    everything = np.concatenate(values)
    for name, share in (("q05", 0.05), ("median", 0.5), ("q95", 0.95)):
        assert together.chosen[name] == pytest.approx(np.quantile(everything, share), abs=0.03)
        assert together.rejected[name] == pytest.approx(np.quantile(everything - 1, share), abs=0.03)
    assert together.answers == 2400
    assert set(together.lowest) == {"0", "1", "2"}


def test_what_the_reference_would_not_write_is_named_by_its_shard_or_as_a_whole() -> None:
    usual = {f"day-{n}": logps([-1.0] * 100) for n in range(6)}
    assert (found := shift(LogpNumbers.together(usual))) and found.passed
    odd = shift(LogpNumbers.together(usual | {"odd": logps([-6.0] * 100)}))
    assert odd is not None and not odd.passed and "far below lies odd (-6.01)" in odd.sentence
    few = shift(LogpNumbers.together(usual | {"odd": logps([-6.0] * 10)}))
    assert few is not None and few.passed, "ten answers say nothing of a shard"
    all_odd = shift(LogpNumbers.together({"odd": logps([-6.0] * 100)}))
    assert all_odd is not None and not all_odd.passed


def test_noise_that_cannot_be_told_is_said_so_and_passes(tmp_path: Path) -> None:
    assert "cannot be told" in label_noise(Noise(pairs=90, noise=0.3, low=0.0, high=0.5)).sentence
    assert label_noise(Noise(pairs=90, noise=0.3, low=0.0, high=0.5)).passed
    assert label_noise(Noise(pairs=900, noise=0.12, low=0.1, high=0.14)).passed
    assert not label_noise(Noise(pairs=900, noise=0.2, low=0.18, high=0.22)).passed
