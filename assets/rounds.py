"""Rounds: `round_2/candidates` to `round_2/policy_checkpoint`, a comparison a round, and the best policy at the end.

The policy of round k answers the prompts of round k + 1, and is its reference, by digest. All rounds are made in one
Dagster run. A round that did not improve, by its interval, ends them (`rounds.go_on`): the nodes after it say so and
make nothing, their policies are that of the round before it, and `policy_checkpoint` adopts that one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from alignment.recipe.generate import Rounds
from alignment.recipe.recipe import Recipe
from alignment.recipe.training import Dpo
from alignment.stages.candidates import CandidatesRequest, parts_of
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.policy import DpoRequest
from alignment.stages.preference_manifest import ManifestRequest
from alignment.store import Artifact, Commit
from assets.building.node import Node, NotNeeded, Shown
from assets.building.show import table
from assets.building.upstream import Upstream
from assets.generation import (
    Sampling,
    needed_to_score,
    reward_model,
    sampled_answers,
    sampling_nodes,
    scored_by,
    scoring_pool,
)
from assets.policy_checkpoint import Policy, policy_checkpoint
from assets.policy_checkpoint import show as show_policy
from assets.preference_manifest import filters, manifest
from eval.stages.round_comparison import STAGE as COMPARISON
from eval.stages.round_comparison import RoundRequest
from eval.summaries import RoundSummary
from resources.pools import Pools


def named(number: int, node: str) -> str:
    """The name of a round's node."""
    return f"round_{number}/{node}"


def policy_of(number: int) -> str:
    """The name of the node of a round's policy."""
    return named(number, "policy_checkpoint")


@dataclass(frozen=True)
class Ended:
    """The round that ended the rounds, and why."""

    round: int
    summary: RoundSummary

    @property
    def best(self) -> int:
        """The round whose policy is adopted."""
        return self.round - 1

    def __str__(self) -> str:
        told = self.summary
        ends = "" if told.low is None or told.high is None else f" (difference {told.low:+.3g} to {told.high:+.3g})"
        return (
            f"round {self.round} ended the rounds: its policy scores {told.after:.4g} on {told.prompts} held-out"
            f" prompts, that of round {self.best} {told.before:.4g}{ends}; the policy of round {self.best} is adopted"
        )


def goes_on(settings: Rounds, summary: RoundSummary) -> bool:
    """Whether the rounds go on after a round with this result."""
    allowed = {"improved": ("improved",), "not_worse": ("improved", "inconclusive")}
    return settings.go_on == "always" or summary.verdict in allowed[settings.go_on]


def ended_before(settings: Rounds, upstream: Upstream, number: int) -> Ended | None:
    """The round before `number` that ended the rounds; None where they go on."""
    for earlier in range(2, number):
        summary = RoundSummary.of(upstream.store.commit_of(upstream(named(earlier, "comparison"))))
        if not goes_on(settings, summary):
            return Ended(earlier, summary)
    return None


def comparisons(recipe: Recipe, upstream: Upstream) -> tuple[Artifact, ...]:
    """The comparisons of the rounds that were made, in order; none without rounds."""
    if (settings := recipe.rounds) is None:
        return ()
    last = settings.count
    if (ended := ended_before(settings, upstream, last + 1)) is not None:
        last = ended.round
    return tuple(upstream(named(number, "comparison")) for number in range(2, last + 1))


def rounds(recipe: Recipe, pools: Pools) -> Iterator[Node]:
    """Every node from the first manifest to `policy_checkpoint`."""
    settings = recipe.rounds
    assert settings is not None
    if settings.reward_modelled and not (recipe.generate and recipe.generate.reward_modelled):
        yield from reward_model(recipe, pools)
    first = Policy(policy_of(1), _settings(recipe, settings, 1), recipe.start)
    yield policy_checkpoint(recipe, pools, first)
    yield answers(recipe, pools, settings, 1)
    for number in range(2, settings.count + 1):
        yield from _round(recipe, pools, settings, number)
    yield adopted(recipe, pools, settings)


def _settings(recipe: Recipe, settings: Rounds, number: int) -> Dpo:
    beta = {"beta": settings.beta[number - 1]} if settings.beta else {}
    return recipe.dpo.model_copy(update=beta)


def _round(recipe: Recipe, pools: Pools, settings: Rounds, number: int) -> Iterator[Node]:
    """A later round: sample, score, pair, train against the moved reference, compare."""
    before = policy_of(number - 1)
    start = before if settings.start == "previous" else recipe.start
    refers = recipe.method.needs_reference
    reference = (before if settings.reference == "previous" else recipe.start) if refers else None
    comparisons = tuple(named(earlier, "comparison") for earlier in range(2, number))

    def waits(upstream: Upstream) -> None:
        if (ended := ended_before(settings, upstream, number)) is not None:
            raise NotNeeded(str(ended))

    sampling = Sampling(
        recipe,
        pools,
        settings,
        generator=before,
        reference=reference,
        prefix=named(number, ""),
        spoken=f"policy of round {number - 1}",
        round=number,
        portion=(number - 2, settings.count - 1) if settings.fresh_prompts else (0, 1),
        waits=waits,
        needs=comparisons,
    )
    yield from sampling_nodes(sampling)
    yield round_manifest(sampling)
    policy = Policy(
        policy_of(number),
        _settings(recipe, settings, number),
        start,
        named(number, "preference_manifest"),
        None if reference in (None, start) else reference,
    )
    yield _or_the_best(settings, policy_checkpoint(recipe, pools, policy), number, comparisons)
    yield answers(recipe, pools, settings, number, comparisons)
    yield comparison(recipe, settings, number, comparisons)


def round_manifest(sampling: Sampling) -> Node:
    """The node of the set that a later round is trained on: its own pairs, under the filters of `preferences`."""
    recipe, reference = sampling.recipe, sampling.reference
    logprobs = () if reference is None else (sampling.name("generated_logprobs"),)
    shard = f"round_{sampling.round}"

    def request(upstream: Upstream, _: str | None) -> ManifestRequest:
        sampling.waits(upstream)
        return ManifestRequest(
            shards={shard: upstream(sampling.name("generated_shard"))},
            references={} if reference is None else {shard: upstream(sampling.name("generated_logprobs"))},
            reads_numbers=bool(recipe.method.numbers),
            **filters(recipe),
        )

    description = f"The pinned set of round {sampling.round}: the pairs that were made for it."
    needs = (sampling.name("generated_shard"), *logprobs, *sampling.needs)
    return manifest(recipe, sampling.name("preference_manifest"), description, needs, request)


def answers(recipe: Recipe, pools: Pools, settings: Rounds, number: int, comparisons: tuple[str, ...] = ()) -> Node:
    """The node of a policy's answers to the held-out prompts."""
    sampling = Sampling(recipe, pools, settings, policy_of(number), None, spoken=f"policy of round {number}")

    def request(upstream: Upstream, shard: str | None) -> CandidatesRequest:
        if (ended := ended_before(settings, upstream, number)) is not None:
            raise NotNeeded(str(ended))
        return sampling.candidates_request(upstream, upstream(policy_of(number)), held_out=True, n=settings.compare_n)

    description = f"Answers that the policy of round {number} gives to held-out prompts, of which no pair is made."
    return sampled_answers(recipe, named(number, "answers"), description, (policy_of(number), *comparisons), request)


def comparison(recipe: Recipe, settings: Rounds, number: int, comparisons: tuple[str, ...]) -> Node:
    """The node that compares a round with the one before."""
    sides = named(number - 1, "answers"), named(number, "answers")

    def request(upstream: Upstream, shard: str | None) -> RoundRequest:
        if (ended := ended_before(settings, upstream, number)) is not None:
            raise NotNeeded(str(ended))
        before, after = (tuple(parts_of(upstream.store, upstream(name))) for name in sides)
        return RoundRequest(
            before=before,
            after=after,
            **scored_by(recipe, settings, upstream),
            round=number,
        )

    return Node(
        name=named(number, "comparison"),
        phase="train",
        stage=COMPARISON,
        description=f"The policies of rounds {number - 1} and {number} by the pairs' scorer, on held-out prompts.",
        kinds=frozenset({"parquet"}),
        needs=(*sides, *needed_to_score(settings), *comparisons),
        request=request,
        pool=scoring_pool(recipe, settings),
        show=show_comparison,
    )


def adopted(recipe: Recipe, pools: Pools, settings: Rounds) -> Node:
    """The node of the recipe's policy: that of the last round with which the rounds went on."""
    comparisons = tuple(named(number, "comparison") for number in range(2, settings.count + 1))
    last = policy_checkpoint(recipe, pools, Policy("policy_checkpoint", recipe.dpo, recipe.start))
    node = replace(
        last,
        description="The recipe's policy: that of the last round, or of the one before the round that ended them.",
        needs=(*(policy_of(number) for number in range(1, settings.count + 1)), *comparisons),
        pool=None,  # it is there, so nothing is trained here, and the plan counts nothing
        training=None,
    )
    return _or_the_best(settings, node, settings.count + 1, (), settings.count)


@dataclass
class _Said:
    """What a node's request has found of the rounds' end, for the node's page."""

    text: str = field(default="")


def _or_the_best(
    settings: Rounds, node: Node, number: int, comparisons: tuple[str, ...], otherwise: int | None = None
) -> Node:
    """The node of a policy that adopts the best one where the rounds have ended before `number`; where they have not,
    it is trained, or adopts that of round `otherwise`. An adopted policy is found by its own request, and not made."""
    said = _Said()

    def request(upstream: Upstream, shard: str | None) -> DpoRequest:
        ended = ended_before(settings, upstream, number)
        said.text = "" if ended is None else str(ended)
        best = otherwise if ended is None else ended.best
        if best is None:
            made = node.request(upstream, shard)
            assert isinstance(made, DpoRequest)
            return made
        return _request_of(upstream, upstream(policy_of(best)))

    def show(commit: Commit, folder: Path) -> Shown:
        shown = show_policy(commit, folder)
        return replace(shown, markdown={"rounds": said.text, **shown.markdown}) if said.text else shown

    return replace(node, request=request, show=show, needs=(*node.needs, *comparisons))


def _request_of(upstream: Upstream, policy: Artifact) -> DpoRequest:
    return DpoRequest.model_validate_json(upstream.store.read(policy, REQUEST_FILE))


def show_comparison(commit: Commit, folder: Path) -> Shown:
    """Both mean scores, their difference, and what follows."""
    told = RoundSummary.of(commit)
    ends = "" if told.low is None or told.high is None else f" [{told.low:+.4f}, {told.high:+.4f}]"
    row = (f"{told.before:.4f}", f"{told.after:.4f}", f"{told.difference:+.4f}{ends}", told.prompts)
    header = (f"round {told.round - 1}", f"round {told.round}", "difference [95 %]", "held-out prompts")
    said = {"improved": "is better", "worse": "is worse", "inconclusive": "is not shown to be better or worse"}
    return Shown(markdown={"comparison": f"{table(header, [row])}\n\nround {told.round} {said[told.verdict]}"})
