"""A model's scores as a gate takes them, traced to the checkpoint that gave the answers, and two models' compared."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from alignment.store import Artifact, Store
from eval.gate.compare import MetricComparison, compare_samples
from eval.gate.held_out import HeldOutComparison
from eval.gate.metrics import PREFERENCES
from eval.gate.requirement import OTHER_SETTINGS
from eval.suites.samples import SAMPLES_FILE, Sample, read_samples
from eval.summaries import ScoresSummary


class WrongEvidence(RuntimeError):
    """Scores, or a report, of another checkpoint or gate than the expected."""


@dataclass(frozen=True)
class SuiteScores:
    """A checkpoint's scores on a suite: the samples, and the summary in the commit record of the scores."""

    samples: list[Sample]
    summary: ScoresSummary


@dataclass(frozen=True)
class Compared:
    """Candidate against one baseline: suite to metric to comparison, and suites left out with the reason.

    `bounded` are the comparisons of answers and divergence, which are no suites (eval/gate/bounded.py).
    """

    suites: dict[str, dict[str, MetricComparison]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    bounded: dict[str, dict[str, MetricComparison]] = field(default_factory=dict)

    @property
    def every(self) -> dict[str, dict[str, MetricComparison]]:
        """All that a gate may ask of."""
        return {**self.suites, **self.bounded}

    def with_held_out(self, held_out: HeldOutComparison) -> Compared:
        """This comparison, with held-out preferences added as a suite."""
        if isinstance(held_out, str):
            return replace(self, left_out={**self.left_out, PREFERENCES: held_out})
        return replace(self, suites={**self.suites, PREFERENCES: held_out})


def answered_by(store: Store, scores: Artifact) -> Artifact:
    """The checkpoint that gave the answers behind scores."""
    return store.commit_of(store.commit_of(scores).inputs["responses"]).inputs["checkpoint"]


def read_scores(store: Store, scores: Mapping[str, Artifact], checkpoint: Artifact) -> dict[str, SuiteScores]:
    """Scores by suite. Every file's sha256 is checked, and the answers are traced to the checkpoint that gave them.

    Raises `WrongEvidence` for scores of another checkpoint or another suite.
    """
    by_suite: dict[str, SuiteScores] = {}
    for suite, artifact in sorted(scores.items()):
        commit = store.commit_of(artifact)
        measured = answered_by(store, artifact)
        if measured.digest != checkpoint.digest:
            raise WrongEvidence(
                f"the {suite} scores are of checkpoint {measured.digest[:12]}, not of {checkpoint.digest[:12]}"
            )
        samples = read_samples(store.fetch(artifact, deep=True) / SAMPLES_FILE)
        if {sample.suite for sample in samples} - {suite}:
            raise WrongEvidence(f"the scores under {suite} are of {samples[0].suite}")
        by_suite[suite] = SuiteScores(samples, ScoresSummary.of(commit))
    return by_suite


def lack_items(store: Store, scores: Iterable[Artifact]) -> bool:
    """Whether some of these scores have an item without a value."""
    return any(ScoresSummary.of(store.commit_of(artifact)).lacking for artifact in scores)


def compare_scores(
    baseline: Mapping[str, SuiteScores], candidate: Mapping[str, SuiteScores], ratios: Collection[str] = ()
) -> Compared:
    """Compares every suite that both sides were measured on with the same settings; gives the reason for the others.

    `ratios` are the metrics (`suite/metric`) whose means are also compared by their ratio.
    """
    compared = Compared()
    for suite in dict.fromkeys((*candidate, *baseline)):
        reason = not_comparable(baseline.get(suite), candidate.get(suite))
        if reason is not None:
            compared.left_out[suite] = reason
            continue
        before, after = measured_ids(baseline[suite].samples), measured_ids(candidate[suite].samples)
        compared.suites[suite] = {
            metric: compare_samples(
                baseline[suite].samples,
                candidate[suite].samples,
                metric,
                margin=None,
                ratio=f"{suite}/{metric}" in ratios,
            )[metric]
            for metric in dict.fromkeys(sample.metric for sample in candidate[suite].samples)
            if before.get(metric, set()) & after.get(metric, set())
        }
        if not compared.suites[suite]:
            del compared.suites[suite]
            compared.left_out[suite] = "no item was measured on both sides"
    return compared


def not_comparable(baseline: SuiteScores | None, candidate: SuiteScores | None) -> str | None:
    """Why a suite's scores on both sides cannot be compared; None if they can."""
    if baseline is None or candidate is None:
        return "measured on one side only"
    if not (baseline.summary.judged and candidate.summary.judged):
        return "not judged"
    if baseline.summary.settings is None or baseline.summary.settings != candidate.summary.settings:
        return OTHER_SETTINGS
    return None


def measured_ids(samples: list[Sample]) -> dict[str, set[str]]:
    """Metric to the items that have a value."""
    ids: dict[str, set[str]] = {}
    for sample in samples:
        if sample.value is not None:
            ids.setdefault(sample.metric, set()).add(sample.id)
    return ids
