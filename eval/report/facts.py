"""The facts on the page in addition to the comparison, read from commit records."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from alignment.data.statistics import Finding
from alignment.methods import METHOD
from alignment.recipe.training import Dpo
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.stage import PolicySummary, trained_policy
from alignment.stages.usage import Usage
from alignment.store import Artifact, Commit, MissingArtifact, Store
from eval.answers.files import ITEMS_FILE
from eval.gate.evidence import ReportRequest
from eval.report.answers import question
from eval.report.curves import Panel, panels
from eval.report.data_changes import DataChanges, data_changes
from eval.report.preference_data import preference_findings
from eval.suites.rows import read_records
from eval.suites.suite import category_of
from eval.summaries import ScoresSummary

# Everything that a policy and its scores were made from, with the time and cost of each stage.

SCORES = "scores"
STAGE_ORDER = (
    "base_model",
    "sft_dataset",
    "sft_checkpoint",
    "candidates",
    "ranked_pairs",
    "preference_shard",
    "reference_logprobs",
    "policy_logprobs",
    "preference_manifest",
    "new_rows",
    "policy_checkpoint",
    "on_policy_checkpoint",
    "merged_checkpoint",
    "policy_divergence",
    "responses",
    SCORES,
)


@dataclass(frozen=True)
class StageTotals:
    """The artifacts of a stage: their number, when the first began, seconds of work, seconds of GPUs and the most
    memory held (None if the records do not say), and the cost in USD (None if the pool has no price). `digest` is empty
    if there are several artifacts."""

    stage: str
    artifacts: int
    digest: str
    code: str
    device: str
    began: str
    seconds: float
    gpu_seconds: float | None
    peak_memory_gib: float | None
    cost: float | None


def ancestry(store: Store, artifacts: Iterable[Artifact]) -> dict[str, Commit]:
    """The commits, by key, of the artifacts and of everything that they were made from.

    Erased artifacts are included; artifacts without a commit record are left out.
    """
    commits: dict[str, Commit] = {}
    waiting = list(artifacts)
    while waiting:
        artifact = waiting.pop()
        if artifact.key in commits:
            continue
        try:
            commit = store.commit_of(artifact)
        except MissingArtifact:
            continue
        commits[artifact.key] = commit
        waiting += commit.inputs.values()
    return commits


def stage_totals(commits: Iterable[Commit], prices: Mapping[str, float]) -> list[StageTotals]:
    """A line for each stage, upstream first; `prices` are USD an hour by stage name."""
    by_stage: defaultdict[str, list[Commit]] = defaultdict(list)
    for commit in commits:
        by_stage[commit.stage].append(commit)
    known = [stage for stage in STAGE_ORDER if stage in by_stage]
    return [
        _totals(stage, by_stage[stage], prices.get(stage)) for stage in [*known, *sorted(set(by_stage) - set(known))]
    ]


def _totals(stage: str, commits: list[Commit], price: float | None) -> StageTotals:
    first = min(commits, key=lambda commit: commit.started_at)
    seconds = sum(commit.seconds for commit in commits)
    taken = [Usage.of(commit) for commit in commits]
    on_gpus = [each.gpu_seconds for each in taken if each.gpu_seconds is not None]
    peaks = [each.peak_memory_gib for each in taken if each.peak_memory_gib is not None]
    return StageTotals(
        stage=stage,
        artifacts=len(commits),
        digest=first.digest[:12] if len(commits) == 1 else "",
        code=first.environment.get("git", "")[:12],
        device=first.environment.get("device", ""),
        began=first.started_at,
        seconds=seconds,
        gpu_seconds=sum(on_gpus) if on_gpus else None,
        peak_memory_gib=max(peaks, default=None),
        cost=price * seconds / 3600 if price else None,
    )


# The cost of judging the answers of a report, from the commit records of the scores.


@dataclass(frozen=True)
class Judging:
    """The sum over suites and checkpoints, the champion too.

    `usd` is None if no judge has a price; a judge without one adds nothing.
    """

    judgments: int
    input_tokens: int
    output_tokens: int
    usd: float | None


def judging(commits: Iterable[Commit]) -> Judging | None:
    """What the scores among the commits took; None where no endpoint judged."""
    summaries = (ScoresSummary.of(commit) for commit in commits if commit.stage == SCORES)
    bills = [summary.judge for summary in summaries if summary.judge is not None]
    if not bills:
        return None
    prices = [float(bill.usd) for bill in bills if bill.usd is not None]
    return Judging(
        judgments=sum(bill.asked if bill.judgments is None else bill.judgments for bill in bills),
        input_tokens=sum(bill.input_tokens for bill in bills),
        output_tokens=sum(bill.output_tokens for bill in bills),
        usd=sum(prices) if prices else None,
    )


MANIFEST = "manifest"
RUBRIC = "rubric (deterministic checks of the generated questions)"


@dataclass(frozen=True)
class Facts:
    """The facts behind a report: dates, judge, training history, data, and the time and cost of each stage.

    Dates are those of the commit records. `outside_practice` has a sentence for each setting of the policy's training
    that lies outside of what practice supports. `preferences` is what the numbers of the pairs say. `judging` is None
    if no endpoint judged. `total_cost` is in USD; None if neither a pool nor a judge has a price.
    """

    recipe: str
    trained: str
    evaluated: str
    judge: str
    panels: list[Panel]
    history: list[dict[str, Any]]
    outside_practice: list[str]
    held_out: dict[str, float]
    data: DataChanges | None
    preferences: list[Finding]
    stages: list[StageTotals]
    judging: Judging | None
    total_seconds: float
    total_cost: float | None


def _only(keys: Iterable[str], commits: Mapping[str, Commit]) -> dict[str, Commit]:
    return {key: commits[key] for key in keys if key in commits}


def facts_of(store: Store, request: ReportRequest) -> Facts:
    """The facts behind a report; a fact that no record holds stays empty."""
    policy = store.commit_of(request.policy)
    training = PolicySummary.of(policy)
    trained = PolicySummary.of(trained_policy(store.commit_of, policy))
    history: list[dict[str, Any]] = [dict(record) for record in trained.history]
    scores = {suite: store.commit_of(artifact) for suite, artifact in request.policy_scores.items()}
    divergence = [request.divergence] if request.divergence else []
    scored = [*request.sft_scores.values(), *request.policy_scores.values()]
    others = [repeat.policy for repeat in request.repeats] + ([request.sweep] if request.sweep else [])
    behind = ancestry(store, [request.policy, *divergence, *scored, *others])
    stages = stage_totals(behind.values(), request.prices)
    of_champion = [artifact.key for artifact in request.champion_scores.values()]
    judged = judging((behind | _only(of_champion, ancestry(store, request.champion_scores.values()))).values())
    costs = [cost for cost in (*(stage.cost for stage in stages), judged.usd if judged else None) if cost is not None]
    return Facts(
        recipe=request.recipe,
        trained=day(policy.started_at),
        evaluated=day(max((commit.started_at for commit in scores.values()), default="")),
        judge=", ".join(dict.fromkeys(filter(None, (_judge(store, commit) for commit in scores.values())))),
        panels=panels(history),
        history=history,
        outside_practice=_outside_practice(store, request.policy),
        held_out={name: value for name, value in training.held_out.items() if value is not None},
        data=_data(store, policy, request.champion),
        preferences=_preferences(store, policy, request.policy_scores),
        stages=stages,
        judging=judged,
        total_seconds=sum(stage.seconds for stage in stages),
        total_cost=sum(costs) if costs else None,
    )


def items_of(store: Store, scores: Artifact, suite: str) -> dict[str, Mapping[str, Any]]:
    """The items of a suite by id, as they are kept beside the responses."""
    responses = store.commit_of(scores).inputs["responses"]
    records = read_records(store.fetch(responses, deep="once") / suite / ITEMS_FILE)
    return {str(record["id"]): record["item"] for record in records}


def questions(items: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Item id to question."""
    return {name: question(item) for name, item in items.items()}


def categories_of(items: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Item id to category, for items that have one."""
    return {name: category for name, item in items.items() if (category := category_of(item)) is not None}


def day(moment: str) -> str:
    """The date of an ISO time as people write it; empty for an empty text."""
    return f"{datetime.fromisoformat(moment):%-d %B %Y}" if moment else ""


def _judge(store: Store, scores: Commit) -> str | None:
    """The judge, from the request that is kept with the scores; None if no judge graded."""
    record = json.loads(store.read(scores.artifact, REQUEST_FILE))
    judge = record.get("judge")
    if not judge or not ScoresSummary.of(scores).judged or not any("judgment" in name for name in scores.files):
        return None
    return RUBRIC if judge["kind"] == "rubric" else str(judge.get("model") or judge["kind"])


def _outside_practice(store: Store, policy: Artifact) -> list[str]:
    """From the request that is kept with the policy; nothing for a checkpoint that no such request made.

    A request does not know which spelling its recipe had, so the sentences name no section.
    """
    try:
        record = json.loads(store.read(policy, REQUEST_FILE))
    except MissingArtifact:
        return []
    if "settings" not in record:
        return []
    settings = Dpo.model_validate(record["settings"])
    return settings.method.outside_practice(settings, METHOD.elsewhere.get(settings.loss))


def _preferences(store: Store, policy: Commit, scores: Mapping[str, Artifact]) -> list[Finding]:
    if MANIFEST not in policy.inputs:
        return []
    asked = {suite: items_of(store, artifact, suite) for suite, artifact in scores.items()}
    return preference_findings(store, policy.inputs[MANIFEST], asked)


def _data(store: Store, policy: Commit, champion: Artifact | None) -> DataChanges | None:
    if MANIFEST not in policy.inputs:
        return None
    before = None if champion is None else store.commit_of(champion).inputs.get(MANIFEST)
    return data_changes(store, policy.inputs[MANIFEST], before)
