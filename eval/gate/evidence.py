"""The scores behind a report, read from the store and verified."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from alignment.recipe.evaluation import Gate
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.stage import Request
from alignment.store import Artifact, CorruptArtifact, Store
from eval.gate.baselines import PublishedFigure
from eval.gate.bounded import (
    ANSWERS,
    DIVERGENCE,
    NEW_ROWS,
    compare_answers,
    compare_divergence,
    compare_new_rows,
)
from eval.gate.compare import MetricComparison, compare_samples, width_of
from eval.gate.held_out import HeldOutComparison, against_champion, against_reference, read_held_out
from eval.gate.metrics import PREFERENCES, headline
from eval.gate.requirement import OTHER_SETTINGS, Against, Check, baseline_at
from eval.gate.spread import spreads
from eval.gate.sweep import SWEEP_CHECK, Choice, SweepRequest, check_of, choose, picks, sweep_request
from eval.gate.verdict import Verdict, decide, verdict_key
from eval.suites.samples import SAMPLES_FILE, Sample, read_samples
from eval.summaries import ScoresSummary


class Repeat(BaseModel):
    """A training of the policy with another seed, and its scores by suite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Artifact
    scores: dict[str, Artifact]


class ReportRequest(Request):
    """Both checkpoints with their scores by suite, the champion with its scores (or None), and the gate (or None).

    The other fields only change the page: the recipe's name, the price of an hour by stage, published figures, who
    promoted the champion if the gate did not (`champion_note`), and the policy's divergence from where it started.

    `incomplete` says that some scores lack items (`lack_items`). Requests of version 0.1.0 have no such field, because
    it bounded only what the candidate lacks. So a report over incomplete scores is made again, and every other report
    keeps its key.

    `sweep` is the report of the sweep that the policy was picked from. Of the suite that picked it, only the items that
    confirm it are then counted: on the others the policy looks better than it is. `repeats` are the same training with
    other seeds; they show how much a metric varies from run to run. `rounds` are the comparisons of a recipe's rounds,
    in order, which only the page shows.
    """

    absent_by_default: ClassVar[frozenset[str]] = frozenset(
        {"champion_note", "divergence", "incomplete", "new_rows", "sweep", "repeats", "rounds"}
    )

    sft: Artifact
    policy: Artifact
    sft_scores: dict[str, Artifact]
    policy_scores: dict[str, Artifact]
    champion: Artifact | None
    champion_scores: dict[str, Artifact]
    gate: Gate | None
    recipe: str = ""
    prices: dict[str, float] = Field(default_factory=dict)
    baselines: list[PublishedFigure] = Field(default_factory=list)
    champion_note: str = ""
    divergence: Artifact | None = None
    incomplete: bool = False
    new_rows: Artifact | None = None
    """The champion on rows that it never saw; None where there is no champion, or no such row."""
    sweep: Artifact | None = None
    repeats: tuple[Repeat, ...] = ()
    rounds: tuple[Artifact, ...] = ()

    @property
    def asked(self) -> Gate | None:
        """The gate without what it asks of new rows, if there are none."""
        if self.gate is None or self.new_rows is not None:
            return self.gate
        metrics = {name: one for name, one in self.gate.metrics.items() if name.partition("/")[0] != NEW_ROWS}
        return self.gate.model_copy(update={"metrics": metrics})

    @property
    def baseline(self) -> Against:
        """What `sft` is: where the policy started, an SFT checkpoint or (`base`) the base model."""
        return baseline_at(self.sft)


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
        reason = _not_comparable(baseline.get(suite), candidate.get(suite))
        if reason is not None:
            compared.left_out[suite] = reason
            continue
        before, after = _measured(baseline[suite].samples), _measured(candidate[suite].samples)
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


def _not_comparable(baseline: SuiteScores | None, candidate: SuiteScores | None) -> str | None:
    if baseline is None or candidate is None:
        return "measured on one side only"
    if not (baseline.summary.judged and candidate.summary.judged):
        return "not judged"
    if baseline.summary.settings is None or baseline.summary.settings != candidate.summary.settings:
        return OTHER_SETTINGS
    return None


def _measured(samples: list[Sample]) -> dict[str, set[str]]:
    ids: dict[str, set[str]] = {}
    for sample in samples:
        if sample.value is not None:
            ids.setdefault(sample.metric, set()).add(sample.id)
    return ids


@dataclass(frozen=True)
class Evidence:
    """Everything that a verdict is computed from.

    `sft` and `policy` are scores by suite; `held_out` has the sha256 of each side's file of held-out pairs. `bounded`
    has the digests of the answers (`answers/<side>/<suite>`) and of the divergence.
    """

    sft: dict[str, SuiteScores]
    policy: dict[str, SuiteScores]
    against_sft: Compared
    against_champion: Compared | None
    held_out: dict[str, str] = field(default_factory=dict)
    bounded: dict[str, str] = field(default_factory=dict)
    choice: Choice | None = None
    """What came of the sweep that the policy is the winner of."""
    spreads: tuple[str, ...] = ()
    """A sentence for each metric of the gate on how much it varies from run to run."""

    def by_side(self, baseline: str) -> dict[str, dict[str, SuiteScores]]:
        """The scores under the names that a report gives the two sides; `baseline` is that of the first."""
        return {baseline: self.sft, "policy": self.policy}

    @property
    def answered(self) -> list[str]:
        """The suites that were compared with the SFT baseline, without held-out preferences, which have no answers."""
        return [suite for suite in self.against_sft.suites if suite in self.policy]


def _same_settings(
    scores: Mapping[str, Artifact], baseline: Mapping[str, SuiteScores], candidate: Mapping[str, SuiteScores]
) -> dict[str, Artifact]:
    """The scores of the suites that both sides answered with the same settings, judged or not."""
    return {
        suite: artifact
        for suite, artifact in scores.items()
        if suite in baseline and baseline[suite].summary.settings == candidate[suite].summary.settings
    }


def gather(store: Store, request: ReportRequest) -> Evidence:
    """Reads and compares all scores of a report's request, and the held-out pairs of policies that have some."""
    choice = None if request.sweep is None else winner(store, request.sweep, request.policy)
    sft = confirming(read_scores(store, request.sft_scores, request.sft), choice)
    policy = confirming(read_scores(store, request.policy_scores, request.policy), choice)
    bounds = {} if request.gate is None else request.gate.metrics
    ratios = {metric for metric, requirement in bounds.items() if requirement.max_ratio is not None}
    beside_sft, beside_champion = compare_scores(sft, policy, ratios), None
    bounded = {ANSWERS: compare_answers(store, request.sft_scores, _same_settings(request.policy_scores, sft, policy))}
    if request.divergence is not None:
        measured = store.commit_of(request.divergence).inputs["policy"]
        if measured.digest != request.policy.digest:
            raise WrongEvidence(
                f"the divergence is of policy {measured.digest[:12]}, not of {request.policy.digest[:12]}"
            )
        bounded[DIVERGENCE] = compare_divergence(store, request.divergence)
    if request.new_rows is not None:
        bounded[NEW_ROWS] = compare_new_rows(store, request.new_rows)
    beside_sft = replace(beside_sft, bounded={name: metrics for name, metrics in bounded.items() if metrics})
    pairs = read_held_out(store, request.policy)
    hashes = {} if pairs is None else {"policy": pairs.sha256}
    if pairs is not None:
        beside_sft = beside_sft.with_held_out(against_reference(pairs))
    if request.champion is not None:
        champion = confirming(read_scores(store, request.champion_scores, request.champion), choice)
        beside_champion = compare_scores(champion, policy)
        texts = _same_settings(request.policy_scores, champion, policy)
        if answers := compare_answers(store, request.champion_scores, texts):
            beside_champion = replace(beside_champion, bounded={ANSWERS: answers})
        champion_pairs = None if pairs is None else read_held_out(store, request.champion)
        if pairs is not None:
            beside_champion = beside_champion.with_held_out(against_champion(champion_pairs, pairs))
        if champion_pairs is not None:
            hashes["champion"] = champion_pairs.sha256
    runs = [policy, *(read_scores(store, repeat.scores, repeat.policy) for repeat in request.repeats)]
    samples = [{suite: one.samples for suite, one in run.items()} for run in runs]
    differences = {
        f"{suite}/{metric}": one.difference for suite, of in beside_sft.suites.items() for metric, one in of.items()
    }
    found = spreads(list(bounds), samples, differences) if request.repeats else []
    behind = _behind_bounds(store, request)
    return Evidence(sft, policy, beside_sft, beside_champion, hashes, behind, choice, tuple(found))


def confirming(scores: dict[str, SuiteScores], choice: Choice | None) -> dict[str, SuiteScores]:
    """The scores without the items that picked the policy; all of them without a sweep."""
    if choice is None or (suite := choice.metric.partition("/")[0]) not in scores:
        return scores
    samples = [sample for sample in scores[suite].samples if not picks(sample.cluster)]
    return scores | {suite: replace(scores[suite], samples=samples)}


def read_choice(store: Store, request: SweepRequest) -> Choice:
    """The choice among a sweep's points, from their pinned scores, each traced to the policy that was scored."""
    suite, _, metric = request.metric.partition("/")

    def samples_of(scores: dict[str, SuiteScores]) -> list[Sample]:
        return [sample for sample in scores[suite].samples if sample.metric == metric]

    sides = {name: read_scores(store, point.scores, point.policy) for name, point in request.points.items()}
    baseline = read_scores(store, request.sft_scores, request.sft)
    if reasons := [reason for scores in sides.values() if (reason := _not_comparable(baseline[suite], scores[suite]))]:
        raise WrongEvidence(f"the points of the sweep cannot be compared by {request.metric}: {reasons[0]}")
    samples = {name: samples_of(scores) for name, scores in sides.items()}
    settings = {name: point.settings for name, point in request.points.items()}
    results, picked, confirmed = choose(samples_of(baseline), samples, settings)
    means = {name: _means(scores) for name, scores in sides.items()}
    points = {name: result.model_copy(update={"means": means[name]}) for name, result in results.items()}
    values = [sample.value for each in samples.values() for sample in each if sample.value is not None]
    return Choice(
        metric=request.metric,
        width=width_of(suite, metric, values),
        points=points,
        picked=picked,
        confirmed=confirmed,
    )


def _means(scores: Mapping[str, SuiteScores]) -> dict[str, float]:
    """The mean of each suite's main metric over all items that have a value."""
    means = {}
    for suite, one in scores.items():
        measured = _measured(one.samples)
        if measured:
            main = headline(suite, measured)
            values = [each.value for each in one.samples if each.metric == main and each.value is not None]
            means[f"{suite}/{main}"] = sum(values) / len(values)
    return means


def winner(store: Store, sweep: Artifact, policy: Artifact) -> Choice:
    """The choice that a sweep's report stands for, computed again; raises `WrongEvidence` if it picked another policy
    than this."""
    request = sweep_request(store, sweep)
    choice = read_choice(store, request)
    picked = request.points[choice.picked].policy
    if picked.digest != policy.digest:
        raise WrongEvidence(f"the sweep picked policy {picked.digest[:12]}, not {policy.digest[:12]}")
    return choice


def _behind_bounds(store: Store, request: ReportRequest) -> dict[str, str]:
    sides = (("sft", request.sft_scores), ("policy", request.policy_scores), ("champion", request.champion_scores))
    digests = {
        f"{ANSWERS}/{side}/{suite}": store.commit_of(artifact).inputs["responses"].digest
        for side, scores in sides
        for suite, artifact in scores.items()
    }
    others = {DIVERGENCE: request.divergence, NEW_ROWS: request.new_rows}
    return digests | {name: artifact.digest for name, artifact in others.items() if artifact is not None}


# The verdict on a report's evidence, and the same verdict from the pinned samples: a registration trusts no stored one.

__all__ = ["Check", "Verdict", "decide", "recompute", "verdict_key", "verdict_of"]


def verdict_of(request: ReportRequest, evidence: Evidence) -> Verdict:
    """The gate's decision on a report's evidence."""
    scores = {
        f"{side}/{suite}": artifact.digest
        for side, pinned in (
            ("sft", request.sft_scores),
            ("policy", request.policy_scores),
            ("champion", request.champion_scores),
        )
        for suite, artifact in pinned.items()
    } | {f"{side}/{PREFERENCES}": sha256 for side, sha256 in evidence.held_out.items()}
    asked = {metric.partition("/")[0] for metric in (request.gate.metrics if request.gate else ())}
    scores |= {name: digest for name, digest in evidence.bounded.items() if name.partition("/")[0] in asked}
    if request.sweep is not None:
        scores[SWEEP_CHECK] = request.sweep.digest
    for number, repeat in enumerate(request.repeats):
        scores |= {f"seed_{number}/{suite}": artifact.digest for suite, artifact in repeat.scores.items()}
    champion = None if request.champion is None else request.champion.digest
    further = () if evidence.choice is None else (check_of(evidence.choice, request.baseline),)
    key = verdict_key(request.sft.digest, request.policy.digest, champion, scores, request.gate)
    against = evidence.against_champion
    if against is None:
        verdict = decide(
            evidence.against_sft.every, None, request.asked, key, baseline=request.baseline, further=further
        )
    else:
        verdict = decide(
            evidence.against_sft.every, against.every, request.asked, key, against.left_out, request.baseline, further
        )
    return verdict.model_copy(update={"reasons": [*verdict.reasons, *evidence.spreads]})


def recompute(store: Store, report: Artifact, policy: Artifact, gate: Gate | None = None) -> Verdict:
    """Decides again from the samples that the report's request pins; `verdict.json` is never read.

    Every file is checked by its sha256, and every score is traced to its checkpoint. With `gate`, the report must have
    been decided by these settings. Raises `WrongEvidence` if the report is about another policy or gate, and
    `CorruptArtifact` if a file is not the committed one.
    """
    commit = store.commit_of(report)
    folder = store.fetch(report, deep=True)
    request = ReportRequest.model_validate_json((folder / REQUEST_FILE).read_text(encoding="utf-8"))
    if request.artifacts() != commit.inputs:
        raise CorruptArtifact(f"{folder / REQUEST_FILE}: names other inputs than the commit record")
    if request.policy.digest != policy.digest:
        raise WrongEvidence(f"the report is about policy {request.policy.digest[:12]}, not about {policy.digest[:12]}")
    if gate is not None and request.gate != gate:
        raise WrongEvidence("the report was decided by other gate settings than the recipe's")
    return verdict_of(request, gather(store, request))
