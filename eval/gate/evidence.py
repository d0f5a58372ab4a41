"""What a verdict is computed from: all that a report pins, read from the store, verified and compared."""

from __future__ import annotations

from collections.abc import Mapping
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
from eval.gate.held_out import against_champion, against_reference, read_held_out
from eval.gate.metrics import PREFERENCES
from eval.gate.requirement import Against, Check, baseline_at
from eval.gate.scores import Compared, SuiteScores, WrongEvidence, compare_scores, read_scores
from eval.gate.spread import spreads
from eval.gate.sweep import SWEEP_CHECK, Choice, check_of, confirming, winner
from eval.gate.verdict import Verdict, decide, verdict_key


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
    baseline: Against = "sft"
    """What `sft` is: where the policy started."""

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
    baseline = baseline_at(store, request.sft)
    return Evidence(sft, policy, beside_sft, beside_champion, hashes, behind, choice, tuple(found), baseline)


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
    further = () if evidence.choice is None else (check_of(evidence.choice, evidence.baseline),)
    key = verdict_key(request.sft.digest, request.policy.digest, champion, scores, request.gate)
    against = evidence.against_champion
    if against is None:
        verdict = decide(
            evidence.against_sft.every, None, request.asked, key, baseline=evidence.baseline, further=further
        )
    else:
        verdict = decide(
            evidence.against_sft.every, against.every, request.asked, key, against.left_out, evidence.baseline, further
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
