"""What a night did and how long each stage of it took, from the commit records of what it made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from alignment.artifacts import Commit, Store
from alignment.recipe import Recipe
from assets.graph import nodes_of
from assets.upstream import Upstream
from resources.pools import Pools

TRAINING = ("sft_checkpoint", "policy_checkpoint")


class Costs(BaseModel):
    """`seconds` is by stage; what was found in the store cost nothing and is not in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequences_scored: int = 0
    """Sequences whose reference log-probability was computed; those that the cache held are not counted."""
    tokens_trained: int = 0
    suites_run: int = 0
    """Suites scored, one a model."""
    seconds: dict[str, float] = {}

    def told(self) -> str:
        """One line for a person."""
        parts = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items())
        return (
            f"{self.sequences_scored:,} sequences scored, {self.tokens_trained:,} tokens trained, "
            f"{self.suites_run} suites run in {sum(self.seconds.values()):.1f} s"
        ) + (f" ({parts})" if parts else "")


def night_costs(commits: Iterable[Commit]) -> Costs:
    """The sum over commits, each key counted once."""
    distinct = {(commit.kind, commit.key): commit for commit in commits}.values()
    seconds: Counter[str] = Counter()
    for commit in distinct:
        seconds[commit.stage] += commit.seconds  # type: ignore[assignment]
    return Costs(
        sequences_scored=sum(c.summary.get("scored") or 0 for c in distinct if c.stage == "reference_logprobs"),
        tokens_trained=sum(c.summary.get("tokens") or 0 for c in distinct if c.stage in TRAINING),
        suites_run=sum(c.stage == "scores" for c in distinct),
        seconds={stage: round(value, 3) for stage, value in sorted(seconds.items(), key=lambda item: -item[1])},
    )


def made_by(runs: Collection[str], store: Store, recipe: Recipe, pools: Pools, moment: datetime) -> Iterator[Commit]:
    """The recipe's current artifacts that these Dagster runs reported, of those begun at or after a moment."""
    moment = moment.replace(microsecond=0)  # commits say the second
    upstream = Upstream(store, recipe.name)
    for node in nodes_of(recipe, pools):
        refs = upstream.refs(node.name).values() if node.partitioned else [upstream.ref(node.name)]
        for ref in refs:
            if ref is not None and ref.dagster_run_id in runs:
                commit = store.commit_of(ref.artifact)
                if datetime.fromisoformat(commit.started_at) >= moment:
                    yield commit
