"""Everything a policy and its scores were made from, with what each step took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from alignment.store import Artifact, Commit, MissingArtifact, Store

ORDER = (
    "base_model",
    "sft_dataset",
    "sft_checkpoint",
    "preference_shard",
    "reference_logprobs",
    "preference_manifest",
    "policy_checkpoint",
    "policy_divergence",
    "responses",
    "scores",
)


@dataclass(frozen=True)
class Step:
    """The artifacts of one stage: how many, when the first and last began, seconds of work, and its price (None
    where the pool names none)."""

    stage: str
    artifacts: int
    digest: str
    code: str
    device: str
    began: str
    seconds: float
    cost: float | None


def ancestry(store: Store, artifacts: Iterable[Artifact]) -> dict[str, Commit]:
    """Commits of the artifacts and of all that they were made from, by key: of erased ones too, of lost ones not."""
    found: dict[str, Commit] = {}
    waiting = list(artifacts)
    while waiting:
        artifact = waiting.pop()
        if artifact.key in found:
            continue
        try:
            commit = store.commit_of(artifact)
        except MissingArtifact:
            continue
        found[artifact.key] = commit
        waiting += commit.inputs.values()
    return found


def steps(commits: Iterable[Commit], prices: Mapping[str, float]) -> list[Step]:
    """One line a stage, upstream first; `prices` an hour by stage name."""
    by_stage: defaultdict[str, list[Commit]] = defaultdict(list)
    for commit in commits:
        by_stage[commit.stage].append(commit)
    known = [stage for stage in ORDER if stage in by_stage]
    return [_step(stage, by_stage[stage], prices.get(stage)) for stage in [*known, *sorted(set(by_stage) - set(known))]]


def _step(stage: str, commits: list[Commit], price: float | None) -> Step:
    first = min(commits, key=lambda commit: commit.started_at)
    seconds = sum(commit.seconds for commit in commits)
    return Step(
        stage=stage,
        artifacts=len(commits),
        digest=first.digest[:12] if len(commits) == 1 else "",
        code=first.environment.get("git", "")[:12],
        device=first.environment.get("device", ""),
        began=first.started_at,
        seconds=seconds,
        cost=price * seconds / 3600 if price else None,
    )
