"""What numbers of preference data say: each with its limit, and one sentence for a person.

Numbers are plain values that summaries keep; a finding is a pure function of them. What measures is
`alignment.data.measure`. The limits are where practice begins to see harm: they colour a check, they stop nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from alignment.errors import counted

ENOUGH = 50
"""Pairs below which a share says nothing."""
LONGER = 0.9
"""Share of pairs whose chosen answer is the longer one, from which length alone tells the answers apart."""
CORRELATION = 0.5
"""Correlation of the scores' margin with the difference in length, from which the scores mostly reward length."""
CONTRADICTORY = 0.01
WRONG_WAY = 0.01
NEAR_DUPLICATES = 0.05
LOWEST_MEDIAN = -4.0
"""Nats a token. Text that a language model could have written lies between -0.3 and -3; shuffled words far below."""
SHIFT = 1.5
"""Nats a token by which a shard's median may lie below the median of all."""
NOISE = 0.15
"""Share of flipped labels above which plain DPO suffers (Chowdhury et al. 2024) and robust losses pay."""


class Numbers(BaseModel):
    """Numbers that a summary keeps; what is not known is left out of the record."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_serializer(mode="wrap")
    def _known(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class PairNumbers(Numbers):
    """Lengths and scores of `pairs` pairs. Lengths are characters of the answer; a gap is chosen minus rejected.

    Shares and correlations are None where nothing stands behind them. `scored` pairs have a score on both sides;
    `wrong_way` is the share of them whose rejected answer has the higher one. The means and standard deviations of
    margin (chosen score minus rejected score) and gap are those of the scored pairs, so that parts can be put together.
    """

    pairs: int = 0
    of_two_lengths: int = 0
    chosen_longer: float | None = None
    """Share of the pairs of two lengths whose chosen answer is the longer."""
    chosen_length: float | None = None
    rejected_length: float | None = None
    scored: int = 0
    wrong_way: float | None = None
    margin_length_correlation: float | None = None
    margin_mean: float | None = None
    margin_sd: float | None = None
    gap_mean: float | None = None
    gap_sd: float | None = None

    @classmethod
    def together(cls, parts: Sequence[PairNumbers]) -> PairNumbers:
        """The numbers of all pairs of the parts."""
        pairs, lengths = sum(part.pairs for part in parts), sum(part.of_two_lengths for part in parts)
        scored = sum(part.scored for part in parts)
        margin, gap = Moments.of(parts, "margin"), Moments.of(parts, "gap")
        products = sum(
            part.scored
            * (
                (part.margin_length_correlation or 0.0) * (part.margin_sd or 0.0) * (part.gap_sd or 0.0)
                + (part.margin_mean or 0.0) * (part.gap_mean or 0.0)
            )
            for part in parts
        )
        spread = margin.sd * gap.sd * scored
        return cls(
            pairs=pairs,
            of_two_lengths=lengths,
            chosen_longer=_mean([(part.chosen_longer, part.of_two_lengths) for part in parts]),
            chosen_length=_mean([(part.chosen_length, part.pairs) for part in parts]),
            rejected_length=_mean([(part.rejected_length, part.pairs) for part in parts]),
            scored=scored,
            wrong_way=_mean([(part.wrong_way, part.scored) for part in parts]),
            margin_length_correlation=None
            if spread <= 0
            else max(-1.0, min(1.0, (products - scored * margin.mean * gap.mean) / spread)),
            **{} if not scored else {"margin_mean": margin.mean, "margin_sd": margin.sd},
            **{} if not scored else {"gap_mean": gap.mean, "gap_sd": gap.sd},
        )


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (over n) of the scored pairs of several parts."""

    mean: float
    sd: float

    @classmethod
    def of(cls, parts: Sequence[PairNumbers], what: str) -> Moments:
        """Put together from each part's own."""
        known = [
            (part.scored, getattr(part, f"{what}_mean"), getattr(part, f"{what}_sd")) for part in parts if part.scored
        ]
        total = sum(count for count, _, _ in known)
        if not total:
            return cls(0.0, 0.0)
        mean = sum(count * mean for count, mean, _ in known) / total
        return cls(mean, math.sqrt(sum(count * (sd**2 + (own - mean) ** 2) for count, own, sd in known) / total))


def _mean(parts: Sequence[tuple[float | None, int]]) -> float | None:
    known = [(value, weight) for value, weight in parts if value is not None and weight]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None


class LogpNumbers(Numbers):
    """Reference log-probs a token (nats) of the two sides of pairs, as quantiles such as {"q05": -3.1, "median": -1.2}.

    `counts` has for each side how many answers lie in each bin of `BIN` nats, from 0 downwards, so that parts can be
    put together. `lowest` has the parts with the lowest medians of the chosen side, at most `LOWEST_PARTS`.
    """

    answers: int = 0
    chosen: dict[str, float] = Field(default_factory=dict)
    rejected: dict[str, float] = Field(default_factory=dict)
    counts: dict[str, list[int]] = Field(default_factory=dict)
    lowest: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def of(cls, counts: Mapping[str, list[int]], lowest: Mapping[str, float] | None = None) -> LogpNumbers:
        """The quantiles of counted answers."""
        known = {side: bins for side, bins in counts.items() if any(bins)}
        quantiles = {
            side: {name: quantile(bins, share) for name, share in QUANTILES.items()} for side, bins in known.items()
        }
        answers = sum(sum(bins) for bins in known.values())
        return cls(answers=answers, counts=known, lowest=dict(lowest or {}), **quantiles)

    @classmethod
    def together(cls, parts: Mapping[str, LogpNumbers]) -> LogpNumbers:
        """The numbers of all parts, given by name."""
        counts: dict[str, list[int]] = {}
        for part in parts.values():
            for side, bins in part.counts.items():
                total = counts.setdefault(side, [])
                total += [0] * (len(bins) - len(total))
                for index, count in enumerate(bins):
                    if count:
                        total[index] += count
        medians = {
            name: part.chosen["median"]
            for name, part in parts.items()
            if part.chosen and sum(part.counts.get("chosen", ())) >= ENOUGH
        }
        lowest = sorted(medians, key=lambda name: medians[name])[:LOWEST_PARTS]
        return cls.of(counts, {name: medians[name] for name in lowest})


LOWEST_PARTS = 5
BIN, BINS = 0.02, 1000
"""Nats a token: the width of a bin. All answers below -20 are in the last one."""
QUANTILES = {"q01": 0.01, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


def quantile(counts: Sequence[int], share: float) -> float:
    """The middle of the bin that the value lies in which `share` of all are below; bins go down from 0."""
    wanted = share * sum(counts)
    below = 0
    for index in range(len(counts) - 1, -1, -1):
        below += counts[index]
        if below >= wanted and counts[index]:
            return round(-(index + 0.5) * BIN, 3)
    return 0.0


class NearNumbers(Numbers):
    """Near-duplicates among `rows` rows: those so like an earlier one (`similarity`) that only one of them is new."""

    rows: int = 0
    near_duplicates: int = 0
    similarity: float = 0.0


class OverlapNumbers(Numbers):
    """Training rows that hold an evaluation item by its runs of 13 words: `rows` by suite, and which `items`."""

    rows: dict[str, int] = Field(default_factory=dict)
    items: dict[str, list[str]] = Field(default_factory=dict)
    asked: dict[str, int] = Field(default_factory=dict)
    """Items of each suite that are long enough to be found."""


class NoiseNumbers(Numbers):
    """An estimate of flipped labels among `pairs` pairs; `low` and `high` are a 95 % interval.

    `agreement` is the share of pairs that a model trained on the other pairs orders as the label does. `swapped` are
    shards whose labels it finds turned round, with their agreement; they take no part in the estimate.
    """

    pairs: int = 0
    noise: float = 0.0
    low: float = 0.0
    high: float = 0.5
    agreement: float = 0.5
    swapped: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def together(cls, parts: Sequence[NoiseNumbers]) -> NoiseNumbers:
        """The share of flipped labels among the pairs of all parts, each estimated by itself; the interval has room for
        every part being at the same end of its own."""

        def mean(name: str) -> float:
            return _mean([(getattr(part, name), part.pairs) for part in parts]) or 0.0

        if not (pairs := sum(part.pairs for part in parts)):
            return cls(swapped={name: share for part in parts for name, share in part.swapped.items()})
        return cls(
            pairs=pairs,
            **{name: mean(name) for name in ("noise", "low", "high", "agreement")},
            swapped={name: share for part in parts for name, share in part.swapped.items()},
        )


# Findings.


@dataclass(frozen=True)
class Finding:
    """One guard's view of some numbers: `passed` within its limit, and a sentence with the numbers and a remedy."""

    name: str
    passed: bool
    sentence: str
    numbers: Mapping[str, float] = field(default_factory=dict)


GUARDS = {
    "length_bias": "The longer answer is neither nearly always nor nearly never the chosen one.",
    "length_reward": "The scores of the answers do not mostly measure their length.",
    "score_order": "The chosen answer has the higher score, where the data has scores.",
    "contradictions": "Few rows say the opposite of another row.",
    "distribution_shift": "The reference could have written the answers, in every shard.",
    "near_duplicates": "Few rows hardly differ from an earlier row.",
    "contamination": "No training row holds an item that the recipe is measured on.",
    "swapped_shards": "No shard's labels say the opposite of the other shards'.",
    "label_noise": "Few labels are flipped, as far as that can be told.",
}
"""Name of a finding to what holds where it passed, in the order of `findings`."""
IN_SUMMARY = ("length_bias", "length_reward", "score_order", "contradictions", "distribution_shift")
"""Findings that the summary of a manifest has the numbers for."""
BY_SOURCE = ("length_bias", "length_reward")
"""Those of them that judge each of several named sources by itself."""


def findings(
    pairs: PairNumbers | None = None,
    contradictory: tuple[int, int] | None = None,
    logps: LogpNumbers | None = None,
    near: NearNumbers | None = None,
    overlap: OverlapNumbers | None = None,
    noise: NoiseNumbers | None = None,
    pairs_of: Mapping[str, PairNumbers] = MappingProxyType({}),
    noise_of: Mapping[str, NoiseNumbers] = MappingProxyType({}),
) -> list[Finding]:
    """A finding for everything that was measured; `contradictory` is (such rows, rows).

    `pairs_of` and `noise_of` have the numbers of each of several named sources. Sources may ask for different things,
    so lengths and labels are then judged source by source, and `pairs` and `noise` are only told.
    """
    found: list[Finding | None] = []
    if pairs is not None:
        found += [of_sources(one(pairs), finding_of_each(one, pairs_of)) for one in (length_bias, length_reward)]
        found.append(score_order(pairs))
    if contradictory is not None:
        found.append(contradictions(*contradictory))
    found.append(None if logps is None else shift(logps))
    found.append(None if near is None else near_duplicates(near))
    found.append(None if overlap is None else contamination(overlap))
    if noise is not None:
        found.append(swapped_shards(noise, named=bool(noise_of)))
        found.append(of_sources(label_noise(noise), finding_of_each(label_noise, noise_of)))
    return [finding for finding in found if finding is not None]


N = TypeVar("N", bound=Numbers)


def finding_of_each(finding_of: Callable[[N], Finding | None], numbers_of: Mapping[str, N]) -> dict[str, Finding]:
    """The finding on each source's numbers, where there is one."""
    return {source: found for source, numbers in numbers_of.items() if (found := finding_of(numbers)) is not None}


def of_sources(together: Finding | None, each: Mapping[str, Finding]) -> Finding | None:
    """One finding of those on each of several sources, by source: red if one of them is, which is told first.

    `together` is the finding on all pairs. It stands where no source has `ENOUGH` pairs for one of its own; else its
    numbers are kept beside theirs, which are called `<source>/<number>`.
    """
    if together is None or all(found.numbers["pairs"] < ENOUGH for found in each.values()):
        return together
    told = sorted(each.items(), key=lambda named: named[1].passed)
    numbers = {f"{source}/{name}": value for source, found in each.items() for name, value in found.numbers.items()}
    return Finding(
        together.name,
        all(found.passed for found in each.values()),
        "; ".join(f"{source}: {found.sentence}" for source, found in told),
        {**together.numbers, **numbers},
    )


def length_bias(numbers: PairNumbers) -> Finding | None:
    """Whether the longer answer is nearly always the chosen one, or nearly never."""
    share = numbers.chosen_longer
    if share is None:
        return None
    passed = numbers.of_two_lengths < ENOUGH or 1 - LONGER <= share <= LONGER
    means = f"means {numbers.chosen_length:,.0f} and {numbers.rejected_length:,.0f} characters"
    sentence = f"the chosen answer is the longer one in {_percent(share)} of the pairs ({means})"
    if not passed:
        kind = "longer" if share > 0.5 else "shorter"
        sentence += (
            f": the policy can learn to answer {kind} and nothing else; take a length-normalised method"
            " (length_normalised: true with dpo, or simpo), or leave out the pairs that differ most with"
            " preferences.max_length_gap"
        )
    return Finding("length_bias", passed, sentence, {"chosen_longer": share, "pairs": numbers.of_two_lengths})


def length_reward(numbers: PairNumbers) -> Finding | None:
    """Whether the scores grow with length; None without scores."""
    correlation = numbers.margin_length_correlation
    if correlation is None:
        return None
    passed = numbers.scored < ENOUGH or abs(correlation) <= CORRELATION
    sentence = f"the scores' margin correlates with the difference in length at {correlation:+.2f}"
    if not passed:
        sentence += ": who gave the scores mostly measured length; score anew with a control for length"
    return Finding("length_reward", passed, sentence, {"correlation": correlation, "pairs": numbers.scored})


def score_order(numbers: PairNumbers) -> Finding | None:
    """Whether scores agree with which side is the chosen one; None without scores."""
    share = numbers.wrong_way
    if share is None:
        return None
    passed = share <= WRONG_WAY
    sentence = f"the rejected answer has the higher score in {_percent(share)} of {numbers.scored:,} scored pairs"
    if not passed:
        sentence += (
            ": its columns are swapped, or a lower score is better there"
            if share > 0.5
            else ": look at these rows before training"
        )
    return Finding("score_order", passed, sentence, {"wrong_way": share, "pairs": numbers.scored})


def contradictions(rows: int, of: int) -> Finding:
    """Rows that say the opposite of another row of the set."""
    share = rows / of if of else 0.0
    passed = share <= CONTRADICTORY
    verb = "contradicts" if rows == 1 else "contradict"
    sentence = f"{rows:,} of {counted(of, 'row')} {verb} another row (the same two answers in the other order)"
    if not passed:
        sentence += (
            ": their losses cancel; `align prefs stats` names them, `align prefs withdraw` takes the wrong ones out"
        )
    return Finding("contradictions", passed, sentence, {"contradictory": rows, "rows": of})


def shift(numbers: LogpNumbers) -> Finding | None:
    """Whether the reference could have written the answers; None without log-probs."""
    median = numbers.chosen.get("median")
    if median is None:
        return None
    far = {name: value for name, value in numbers.lowest.items() if value < median - SHIFT}
    passed = median >= LOWEST_MEDIAN and not far
    sentence = f"the reference gives a token of the chosen answers {median:.2f} nats in the median"
    if tail := numbers.chosen.get("q05"):
        sentence += f", and less than {tail:.2f} to one answer in twenty"
    if far:
        named = ", ".join(f"{name} ({value:.2f})" for name, value in sorted(far.items()))
        sentence += f"; far below lies {named}"
    if not passed:
        sentence += (
            ": these answers are not such as the model writes; fine-tune on the chosen ones first, sample pairs from"
            " the model itself, or leave the lowest out with preferences.min_reference_logp"
        )
    return Finding("distribution_shift", passed, sentence, {"median": median, **far})


def near_duplicates(numbers: NearNumbers) -> Finding | None:
    """Rows that hardly differ from another."""
    if not numbers.rows:
        return None
    share = numbers.near_duplicates / numbers.rows
    passed = share <= NEAR_DUPLICATES
    sentence = (
        f"{numbers.near_duplicates:,} of {counted(numbers.rows, 'row')}"
        f" {'is a near-duplicate' if numbers.near_duplicates == 1 else 'are near-duplicates'} of an earlier row"
        f" (similarity {numbers.similarity:g} or more in prompt and both answers)"
    )
    if not passed:
        sentence += f": they weigh several times; drop them with preferences.near_duplicates: {numbers.similarity:g}"
    return Finding(
        "near_duplicates", passed, sentence, {"near_duplicates": numbers.near_duplicates, "rows": numbers.rows}
    )


def contamination(numbers: OverlapNumbers) -> Finding | None:
    """Evaluation items that stand in the training rows; None where no item could be looked for."""
    if not numbers.asked:
        return None
    hit = {suite: rows for suite, rows in numbers.rows.items() if rows}
    if not hit:
        looked = ", ".join(f"{suite} ({items:,})" for suite, items in sorted(numbers.asked.items()))
        return Finding("contamination", True, f"no row holds an item (by runs of 13 words) of {looked}", {"rows": 0})
    told = "; ".join(
        f"{suite}: {counted(rows, 'row holds', 'rows hold')} {len(numbers.items.get(suite, ()))} of its items"
        f" ({', '.join(numbers.items.get(suite, ())[:3])}{', …' if len(numbers.items.get(suite, ())) > 3 else ''})"
        for suite, rows in sorted(hit.items())
    )
    return Finding(
        "contamination",
        False,
        f"{told}: their scores say little; drop these rows with preferences.decontaminate: [{', '.join(sorted(hit))}]",
        {"rows": sum(hit.values())},
    )


def swapped_shards(numbers: NoiseNumbers, named: bool = False) -> Finding:
    """Shards whose labels say the opposite of all others'; with `named` sources, of the others' of their source."""
    if not numbers.swapped:
        return Finding(
            "swapped_shards", True, f"no shard says the opposite of the others{' of its source' if named else ''}"
        )
    shards = ", ".join(f"{name} (agrees in {_percent(share)})" for name, share in sorted(numbers.swapped.items()))
    cause = (
        "there" if named else "there, or these are of a source with another taste: name it under preferences.sources"
    )
    return Finding(
        "swapped_shards",
        False,
        f"the labels of {shards} say the opposite of the other shards'{' of the same source' if named else ''}: chosen"
        f" and rejected are probably swapped {cause}; mend the file, or withdraw it with"
        " `align prefs withdraw --shard`",
        dict(numbers.swapped),
    )


def label_noise(numbers: NoiseNumbers) -> Finding:
    """How many labels are flipped, as far as that can be told."""
    interval = f"95 % interval {_percent(numbers.low)} to {_percent(numbers.high)}"
    passed = not (numbers.noise > NOISE and numbers.low > 0)
    sentence = f"about {_percent(numbers.noise)} of {numbers.pairs:,} labels are flipped ({interval})"
    if numbers.high - numbers.low > 0.3:
        passed, sentence = True, f"how many labels are flipped cannot be told from these pairs ({interval})"
    elif not passed:
        sentence += (
            ": take a loss that expects it, cdpo or ipo (cdpo with a label_smoothing near the estimate), or"
            " have the pairs judged again"
        )
    told = {name: getattr(numbers, name) for name in ("pairs", "noise", "low", "high", "agreement")}
    return Finding("label_noise", passed, sentence, told)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"
