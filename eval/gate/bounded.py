"""What a gate bounds beside the suites' scores: how the answers look, and how far the policy has moved.

`answers` are over the texts of all suites together, `policy_divergence` over sampled responses to held-out prompts,
`new_rows` over preference pairs that the champion never saw, and of the champion. They take a suite's place in a gate.
They say nothing of the policy's quality, so they count neither as a suite in the report's tables and corrections nor as
an improvement.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from alignment.store import Artifact, MissingArtifact, Store
from eval.answers.files import RESPONSES_FILE, SETTINGS_FILE, Response, read_responses
from eval.gate.compare import MetricComparison, compare_samples
from eval.gate.held_out import against_reference, read_held_out
from eval.gate.metrics import METRICS
from eval.suites.samples import Sample

ANSWERS = "answers"
DIVERGENCE = "policy_divergence"
NEW_ROWS = "new_rows"
LENGTH, ENDED, KL = "length", "ended", "kl"
NGRAMS = (2, 4)
ANSWER_METRICS = (LENGTH, ENDED, *(f"distinct_{n}" for n in NGRAMS))
BOUNDED = {ANSWERS: ANSWER_METRICS, DIVERGENCE: (KL,), NEW_ROWS: METRICS}
"""Metrics that a gate may bound, by what stands in a suite's place."""
DIVERGENCE_FILE = "divergence.parquet"


def distinct(text: str, n: int) -> float:
    """Distinct n-grams of words over all n-grams of a text (Li et al. 2016, within one answer); 1 without an n-gram.

    It goes towards 0 if an answer repeats a sentence for ever. For longer n-grams it hardly depends on the length.
    """
    words = text.split()
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 1.0


def answer_values(response: Response, limit: int | None) -> dict[str, float | None]:
    """The metrics of one answer, all turns together; None where its tokens were not counted.

    `limit` is the most new tokens of a turn: an answer has ended by itself if each of its turns is shorter.
    """
    text = "\n".join(response.turns)
    ended = None if limit is None or not response.tokens else float(max(response.tokens) < limit)
    values: dict[str, float | None] = {LENGTH: float(sum(response.tokens)) if response.tokens else None, ENDED: ended}
    return values | {f"distinct_{n}": distinct(text, n) for n in NGRAMS}


def answer_samples(folder: Path, suite: str) -> Iterator[Sample]:
    """The samples of a suite's answers, from its folder of responses; none of a suite that is answered by
    log-likelihoods. An answer that failed has no values."""
    written, answered = folder / SETTINGS_FILE, folder / RESPONSES_FILE
    if not answered.exists():
        return
    settings = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    for response in read_responses(answered):
        if response.loglikelihoods or settings.get("log_likelihoods"):
            return
        name, failed = f"{suite}/{response.id}", response.failed is not None
        values = answer_values(response, settings.get("max_new_tokens"))
        for metric, value in values.items():
            yield Sample(ANSWERS, name, name, metric, None if failed else value, "")


def compare_answers(
    store: Store, baseline: Mapping[str, Artifact], candidate: Mapping[str, Artifact]
) -> dict[str, MetricComparison]:
    """Metric to comparison over the answers behind both sides' scores, given by suite; their files are checked.

    Empty if no suite has texts, or if a side's answers are not in the store any more.
    """
    try:
        sides = [list(_behind(store, scores, baseline.keys() & candidate.keys())) for scores in (baseline, candidate)]
    except MissingArtifact:
        return {}
    measured = [{sample.metric for sample in side if sample.value is not None} for side in sides]
    kept = [[sample for sample in side if sample.metric in measured[0] & measured[1]] for side in sides]
    shared = [{(sample.id, sample.metric) for sample in side if sample.value is not None} for side in kept]
    return compare_samples(kept[0], kept[1], margin=None, ratio=True) if shared[0] & shared[1] else {}


def _behind(store: Store, scores: Mapping[str, Artifact], suites: Sequence[str] | set[str]) -> Iterator[Sample]:
    folders: dict[str, Path] = {}
    for suite in sorted(suites):
        responses = store.commit_of(scores[suite]).inputs["responses"]
        if responses.key not in folders:
            folders[responses.key] = store.fetch(responses, deep=True)
        yield from answer_samples(folders[responses.key] / suite, suite)


def compare_divergence(store: Store, divergence: Artifact) -> dict[str, MetricComparison]:
    """The log-ratios of the policy's sampled responses, beside the SFT checkpoint's, which are 0 by definition."""
    path = store.fetch(divergence, deep=True) / DIVERGENCE_FILE
    if not path.exists():
        return {}
    rows = pq.read_table(path, columns=["row_id", "policy_logp", "sft_logp"]).to_pylist()
    if not rows:
        return {}
    ratios = {row["row_id"]: row["policy_logp"] - row["sft_logp"] for row in rows}
    before = [Sample(DIVERGENCE, name, name, KL, 0.0, "") for name in ratios]
    after = [Sample(DIVERGENCE, name, name, KL, value, "") for name, value in ratios.items()]
    return compare_samples(before, after, margin=None)


def compare_new_rows(store: Store, new_rows: Artifact) -> dict[str, MetricComparison]:
    """The champion on rows that it never saw, beside its start checkpoint; empty if none was measured."""
    pairs = read_held_out(store, new_rows)
    compared = None if pairs is None else against_reference(pairs)
    return compared if isinstance(compared, dict) else {}
