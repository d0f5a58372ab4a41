"""How many labels of a set of pairs are flipped, estimated from the pairs themselves.

A linear model (logistic regression on hashed words, lengths and reference log-probs) learns from four fifths of the
prompts which answer people chose and tells it of the last fifth, so that no pair is told by a model that has seen its
prompt. Its score s of a pair agrees with the label where it is positive. If a share ρ of labels is flipped at random,
the label agrees with probability

    ρ + (1 − 2ρ) σ(a·sign(s)·|s|^γ)                                                                                (1)

where a and γ say what a score means: however sure the model is, it meets a flipped label with probability ρ. All three
are fitted by maximum likelihood, and the interval of ρ is that of its profile likelihood, with room for `MISFIT`. Where
the model is never sure, every ρ fits and the interval says so. Where it is surely wrong for other reasons, ρ is too
high: read it as "at most about".
Confident learning (Northcutt et al. 2021) rests on the same idea, with thresholds in place of (1).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment.data.assign import ShardFiles
from alignment.data.manifest import by_source
from alignment.data.measure import LOGPS, logps_a_token
from alignment.data.rows import ROWS_FILE, SPLIT_AT, read_columns, split_at
from alignment.data.statistics import NoiseNumbers
from alignment.data.words import Words, row_texts, runs

FOLDS = 5
WIDTH = 1 << 14
"""Columns of hashed words and pairs of words; the sign of a hash keeps what shares a column from adding up."""
MOST_PAIRS = 50_000
PENALTIES = (3.0, 30.0, 300.0)
"""Strengths of the ridge penalty that are tried; the one whose held-out pairs are told best is taken."""
SURE = 1.96
SWAPPED_PAIRS = 20

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Examples:
    """Pairs as differences of features, chosen minus rejected (sparse, (pairs, features)); each with where its prompt
    stands from 0 to 1, and the place of its shard in `shards`."""

    features: Any
    prompts: Floats
    shard_of: npt.NDArray[np.int64]
    shards: list[str]

    def __len__(self) -> int:
        return len(self.prompts)

    def of(self, which: npt.NDArray[np.bool_]) -> Examples:
        """Some of the pairs."""
        return Examples(self.features[which], self.prompts[which], self.shard_of[which], self.shards)

    def without_reference(self) -> Examples | None:
        """The pairs without what the reference thinks of them; None where it is not known."""
        from scipy.sparse import hstack

        if not self.features[:, REFERENCE].count_nonzero():
            return None
        features = hstack([self.features[:, : REFERENCE.start], self.features[:, REFERENCE.stop :]], format="csr")
        return Examples(features, self.prompts, self.shard_of, self.shards)


def estimate(shards: Sequence[ShardFiles], most: int = MOST_PAIRS) -> NoiseNumbers:
    """The estimate for the pairs of some shards, or for about `most` of them, a part of every shard."""
    examples = read_examples(shards, min(1.0, most / max(1, sum(shard.rows for shard in shards))))
    return noise_of(examples)


def estimates(
    shards: Sequence[ShardFiles], sources: Collection[str], most: int = MOST_PAIRS
) -> dict[str, NoiseNumbers]:
    """The estimate for each of several named sources, by the pairs of that source alone: another may ask for the
    opposite. A part of every shard where there are more than `most` pairs in all; empty where the shards are not of
    several sources."""
    share = most / max(1, sum(shard.rows for shard in shards))
    groups = by_source(((shard.name, shard) for shard in shards), sources)
    return {source: estimate(own, round(share * sum(shard.rows for shard in own))) for source, own in groups.items()}


def noise_of(examples: Examples) -> NoiseNumbers:
    """Shards that say the opposite of the others are found first, and take no part in the estimate."""
    if len(examples) < 10 * FOLDS:
        return NoiseNumbers(pairs=len(examples))
    of_all = scores, _ = cross_fitted(examples)
    sure = NormalDist().inv_cdf(1 - 0.025 / max(1, len(examples.shards)))  # one look a shard
    swapped: dict[str, float] = {}
    for place, name in enumerate(examples.shards):
        own = scores[examples.shard_of == place]
        agreed = float(np.mean(own > 0)) if len(own) else 1.0
        if len(own) >= SWAPPED_PAIRS and len(examples.shards) > 1 and _upper(agreed, len(own), sure) < 0.5:
            swapped[name] = agreed
    if swapped:
        examples = examples.of(~np.isin(examples.shard_of, [examples.shards.index(name) for name in swapped]))
        if len(examples) < 10 * FOLDS:
            return NoiseNumbers(pairs=len(examples), swapped=swapped)
        of_all = cross_fitted(examples)
    # pairs of one prompt tell little more than one pair does
    weight = len(np.unique(examples.prompts)) / len(examples)
    # what a model is surely wrong about looks like noise, and two models are not wrong about the same: the interval
    # covers what both say, the estimate is of the one that tells pairs better
    words = examples.without_reference()
    fitted = [of_all, *([] if words is None else [cross_fitted(words)])]
    fitted.sort(key=lambda scores_and_loss: scores_and_loss[1])
    rates = [flip_rate(scores, weight) for scores, _ in fitted]
    return NoiseNumbers(
        pairs=len(examples),
        noise=rates[0][0],
        low=min(low for _, low, _ in rates),
        high=max(high for _, _, high in rates),
        agreement=float(np.mean(fitted[0][0] > 0)),
        swapped=swapped,
    )


def _upper(share: float, count: int, sure: float) -> float:
    """The upper end of Wilson's interval of a share, `sure` standard errors wide to each side."""
    square = sure**2
    centre = share + square / (2 * count)
    spread = sure * np.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return float((centre + spread) / (1 + square / count))


# Equation (1).

GRID = np.linspace(0.0, 0.5, 101)
POWERS = (0.7, 1.0, 1.4)
"""γ: a score may mean more or less than it says as it grows; else a model that is too sure makes noise of it."""
MISFIT = 0.03
"""Share of pairs that the model may be surely wrong about though their labels are right (0.02 in the quickstart's).
Nothing in the pairs themselves tells it from noise, so the interval reaches down by as much."""
HALF_WIDTH = SURE**2 / 2
"""By how much the log-likelihood may lie below its maximum within a 95 % interval of one parameter."""


def flip_rate(scores: Floats, weight: float = 1.0) -> tuple[float, float, float]:
    """ρ of equation (1) and its 95 % interval; `weight` is how many independent pairs each pair counts for."""
    from scipy.optimize import minimize_scalar

    spread = float(np.mean(np.abs(scores))) or 1.0
    shapes = [np.sign(scores) * np.abs(scores / spread) ** power for power in POWERS]

    def best(noise: float) -> float:
        def loss(log_scale: float, bent: Floats) -> float:
            agrees = noise + (1 - 2 * noise) / (1 + np.exp(-np.clip(np.exp(log_scale) * bent, -50, 50)))
            return -float(np.log(np.maximum(agrees, 1e-12)).sum())

        return -min(float(minimize_scalar(loss, bounds=(-8, 5), args=(bent,), method="bounded").fun) for bent in shapes)

    likelihood = weight * np.array([best(noise) for noise in GRID])
    top = int(likelihood.argmax())
    inside = GRID[likelihood >= likelihood[top] - HALF_WIDTH]
    low = max(0.0, (float(inside[0]) - MISFIT) / (1 - 2 * MISFIT))
    return float(GRID[top]), low, float(inside[-1])


# The cross-fitted model: logistic regression without an intercept, as a pair turned round is the pair with the other
# label.


def cross_fitted(examples: Examples) -> tuple[Floats, float]:
    """A score for every pair, by a model that saw no pair of its prompt, positive where it agrees with the label; and
    the mean logistic loss of the scores."""
    fold = (examples.prompts * 2**20).astype(np.int64) % FOLDS
    tried = [_scores(examples.features, fold, penalty) for penalty in PENALTIES]
    losses = [float(np.logaddexp(0, -scores).mean()) for scores in tried]
    best = int(np.argmin(losses))
    return tried[best], losses[best]


def _scores(features: Any, fold: npt.NDArray[np.int64], penalty: float) -> Floats:
    scores = np.zeros(len(fold))
    for number in range(FOLDS):
        mine = fold == number
        if mine.any() and not mine.all():
            scores[mine] = features[mine] @ _fitted(features[~mine], penalty)
    return scores


def _fitted(features: Any, penalty: float) -> Floats:
    from scipy.optimize import minimize

    transposed = features.T.tocsr()

    def loss(weights: Floats) -> tuple[float, Floats]:
        scores = features @ weights
        wrong = 1 / (1 + np.exp(np.clip(scores, -50, 50)))
        value = float(np.logaddexp(0, -scores).sum() + penalty * weights @ weights / 2)
        return value, penalty * weights - transposed @ wrong

    start = np.zeros(features.shape[1])
    weights: Floats = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 100}).x
    return weights


# Features: words and pairs of words of the answers, their lengths, and what the reference thinks of them.

DENSE, REFERENCE = 4, slice(2, 4)
"""Columns before the words': lengths, and then the reference's."""


def read_examples(shards: Sequence[ShardFiles], share: float = 1.0) -> Examples:
    """The pairs of some shards, a `share` of their prompts (by hash); rows that the reference dropped are left out."""
    from scipy.sparse import csr_matrix, hstack, vstack

    words = Words()
    parts, prompts, places = [], [], []
    for place, shard in enumerate(shards):
        first = 0
        known = _reference_of(shard)
        rows = read_columns(shard.folder / ROWS_FILE, "row_id", SPLIT_AT, "form", "prompt", "rejected")
        ids, paired = rows["row_id"].to_pylist(), rows["rejected"].is_valid().to_pylist()
        if SPLIT_AT in rows.column_names:
            where = rows[SPLIT_AT].to_numpy()
        else:  # an earlier version wrote none
            cells = zip(rows["prompt"].to_pylist(), rows["form"].to_pylist(), strict=True)
            where = np.array([split_at(prompt, form) for prompt, form in cells])
        for texts in row_texts(shard.folder):
            numbers = range(first, first + len(texts))
            first += len(texts)
            chosen = [
                index
                for index, row in enumerate(numbers)
                if paired[row] and _drawn(where[row], share) and (known is None or ids[row] in known)
            ]
            if not chosen:
                continue
            some = [texts[index] for index in chosen]
            dense = np.array(
                [_dense(texts[index], None if known is None else known[ids[numbers[index]]]) for index in chosen]
            )
            words_of = _counts([row[1] for row in some], words) - _counts([row[2] for row in some], words)
            parts.append(hstack([csr_matrix(dense), words_of], format="csr"))
            prompts.append(where[[numbers[index] for index in chosen]])
            places.append(np.full(len(chosen), place))
    if not parts:
        return Examples(csr_matrix((0, WIDTH + DENSE)), np.empty(0), np.empty(0, np.int64), [])
    features = vstack(parts, format="csr")
    return Examples(features, np.concatenate(prompts), np.concatenate(places), [shard.name for shard in shards])


def _drawn(where: float, share: float) -> bool:
    """By other bits of the prompt's hash than those that say which fold it is in, or what is held out."""
    return share >= 1 or (where * 2**30) % 1 < share


def _dense(row: tuple[str, str, str], logps: tuple[float, ...] | None) -> list[float]:
    _, chosen, rejected = row
    gap = np.log1p(len(chosen)) - np.log1p(len(rejected))
    return [gap, np.sign(gap), *((0.0, 0.0) if logps is None else logps)]


def _reference_of(shard: ShardFiles) -> dict[str, tuple[float, float]] | None:
    """Row id to the differences of the reference's log-probs, a token and in all (in tens of nats)."""
    if shard.reference is None:
        return None
    table = read_columns(shard.reference / "logprobs.parquet", "row_id", *LOGPS)
    if not set(LOGPS) <= set(table.column_names):  # of unpaired rows
        return None
    chosen, rejected = logps_a_token(table)
    whole = (table["chosen_logp"].to_numpy() - table["rejected_logp"].to_numpy()) / 10
    values = zip((chosen - rejected).tolist(), np.clip(whole, -5, 5).tolist(), strict=True)
    return dict(zip(table["row_id"].to_pylist(), values, strict=True))


def _counts(texts: Sequence[str], words: Words) -> Any:
    """(texts, `WIDTH`): log(1 + how often) of hashed words and pairs of words, with a hashed sign."""
    from scipy.sparse import csr_matrix

    flat, owner = words.of(texts)
    pairs, pair_owner = runs(flat, owner, 2)
    hashed, rows = np.concatenate([flat, pairs]), np.concatenate([owner, pair_owner])
    hashed = hashed * np.uint64(0x9E3779B97F4A7C15)
    columns = (hashed >> np.uint64(50)).astype(np.int64)
    signs = np.where(hashed & np.uint64(1 << 20), 1.0, -1.0)
    counted = csr_matrix((signs, (rows, columns)), shape=(len(texts), WIDTH))
    counted.data = np.sign(counted.data) * np.log1p(np.abs(counted.data))
    return counted
