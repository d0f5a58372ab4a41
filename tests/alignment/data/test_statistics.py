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

from alignment.data.manifest import by_source
from alignment.data.measure import Contradictions, LogpCounts, pair_numbers
from alignment.data.statistics import Finding, LogpNumbers, PairNumbers, findings, label_noise, shift, swapped_shards
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


def of_sources(**numbers: PairNumbers) -> dict[str, Finding]:
    found = findings(PairNumbers.together(list(numbers.values())), pairs_of=numbers)
    return {finding.name: finding for finding in found}


def lengths(pairs: int, chosen_longer: float) -> PairNumbers:
    return PairNumbers(
        pairs=pairs, of_two_lengths=pairs, chosen_longer=chosen_longer, chosen_length=200, rejected_length=100
    )


def test_two_sources_whose_lengths_alone_tell_the_answers_apart_are_red_where_all_pairs_are_even() -> None:
    numbers = {"long": lengths(500, 0.98), "concise": lengths(500, 0.024)}
    assert findings(PairNumbers.together(list(numbers.values())))[0].passed, "50 % of all pairs"
    found = of_sources(**numbers)["length_bias"]
    assert not found.passed
    assert "long: the chosen answer is the longer one in 98 % of the pairs" in found.sentence
    assert "concise: the chosen answer is the longer one in 2.4 % of the pairs" in found.sentence
    assert found.numbers["chosen_longer"] == pytest.approx(0.502)
    assert (found.numbers["long/chosen_longer"], found.numbers["concise/chosen_longer"]) == (0.98, 0.024)


def test_the_red_source_is_told_first_and_an_even_one_is_not_blamed() -> None:
    found = of_sources(even=lengths(500, 0.5), long=lengths(100, 0.98))["length_bias"]
    assert not found.passed and found.sentence.startswith("long: ")
    assert found.sentence.endswith(
        "even: the chosen answer is the longer one in 50 % of the pairs (means 200 and 100 characters)"
    )


def test_sources_that_are_all_too_small_are_judged_together() -> None:
    few = {f"s{number}": lengths(20, 0.98) for number in range(5)}
    assert of_sources(**few)["length_bias"] == findings(PairNumbers.together(list(few.values())))[0]
    assert not of_sources(**few)["length_bias"].passed


def two_scales(correlations: tuple[float, float], gap: float) -> dict[str, PairNumbers]:
    """500 pairs with scores of 1 to 10, whose chosen answer is `gap` characters longer, and 500 with scores of 0 to 1,
    whose is as much shorter; each with its correlation of margin and length."""
    scales = {"tens": (5.0, 2.0, gap), "ones": (0.5, 0.2, -gap)}
    return {
        name: PairNumbers(
            pairs=500,
            scored=500,
            margin_length_correlation=correlation,
            margin_mean=mean,
            margin_sd=sd,
            gap_mean=own_gap,
            gap_sd=20.0,
        )
        for (name, (mean, sd, own_gap)), correlation in zip(scales.items(), correlations, strict=True)
    }


@pytest.mark.parametrize(
    ("correlations", "gap", "together", "passed"),
    [((-0.03, -0.02), 33.0, 0.72, True), ((0.80, 0.80), -1.0, 0.29, False)],
)
def test_scores_of_two_scales_are_judged_each_by_itself(
    correlations: tuple[float, float], gap: float, together: float, passed: bool
) -> None:
    numbers = two_scales(correlations, gap)
    pooled = findings(PairNumbers.together(list(numbers.values())))[0]
    assert pooled.numbers["correlation"] == pytest.approx(together, abs=0.005) and pooled.passed is not passed
    found = of_sources(**numbers)["length_reward"]
    assert found.passed is passed
    assert found.numbers["correlation"] == pooled.numbers["correlation"], "the number of all pairs is kept"
    for name, correlation in zip(numbers, correlations, strict=True):
        assert (
            f"{name}: the scores' margin correlates with the difference in length at {correlation:+.2f}"
            in found.sentence
        )


def test_shards_of_no_named_source_are_a_group_and_one_group_is_none() -> None:
    shards = [("a-x", 1), ("b-y", 2), ("a-z", 3), ("generated", 4)]
    assert by_source(shards, ("a", "b")) == {"a": [1, 3], "b": [2], "other shards": [4]}
    assert by_source(shards, ()) == {}
    assert by_source(shards[:1], ("a", "b")) == {}


def test_flipped_labels_of_all_pairs_are_the_mean_of_the_sources_and_a_red_source_is_named() -> None:
    parts = {
        "a": Noise(pairs=900, noise=0.0, low=0.0, high=0.1, agreement=0.9, swapped={"a-1": 0.1}),
        "b": Noise(pairs=300, noise=0.2, low=0.16, high=0.24, agreement=0.7),
    }
    together = Noise.together(list(parts.values()))
    assert together.model_dump() == {
        "pairs": 1200,
        "noise": pytest.approx(0.05),
        "low": pytest.approx(0.04),
        "high": pytest.approx(0.135),
        "agreement": pytest.approx(0.85),
        "swapped": {"a-1": 0.1},
    }
    shards, labels = findings(noise=together, noise_of=parts)
    assert "say the opposite of the other shards' of the same source" in shards.sentence
    assert "another taste" not in shards.sentence and "another taste" in swapped_shards(together).sentence
    assert not labels.passed and labels.sentence.startswith("b: about 20 % of 300 labels are flipped")
    assert labels.sentence.endswith("a: about 0 % of 900 labels are flipped (95 % interval 0 % to 10 %)")
    assert Noise.together([Noise(), Noise()]) == Noise()
