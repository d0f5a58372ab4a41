"""Pairs that are made of sampled answers: `candidates`, `ranked_pairs`, `generated_shard` and `generated_logprobs`.

The nodes have no shards in Dagster's sense, since nothing below them has: they are made in the run that trains. What is
partitioned is inside: each source of prompts is an artifact of its own, and one that changed makes only its own anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from alignment.models.pin import pin_model
from alignment.recipe.data import ModelSource
from alignment.recipe.generate import Sampled
from alignment.recipe.recipe import Recipe
from alignment.stages.base_model import STAGE as MODEL
from alignment.stages.base_model import BaseModelRequest
from alignment.stages.candidates import STAGE as CANDIDATES
from alignment.stages.candidates import CandidatesRequest, CandidatesSummary, parts_of
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.preference_shard import STAGE as SHARD
from alignment.stages.preference_shard import ShardRequest
from alignment.stages.reference_logprobs import STAGE as LOGPROBS
from alignment.stages.reference_logprobs import ReferenceRequest
from alignment.store import Artifact, Commit, MissingArtifact, Store
from alignment.store.erase import current_erasure
from assets.building.node import Node, Shown
from assets.building.show import curves, table
from assets.building.upstream import Upstream
from assets.champion import registered_champion
from assets.pins import prompt_sources, suite_items
from assets.preference_shard import show as show_shard
from assets.reference_logprobs import scoring
from assets.responses import REWARD_MODEL
from eval.ranking.scorers import Reading
from eval.stages.ranked_pairs import STAGE as RANKED
from eval.stages.ranked_pairs import RankedRequest, RankedSummary
from eval.stages.reward_model import STAGE as REWARD
from eval.stages.reward_model import RewardRequest, RewardSummary
from resources.compute import check_processes
from resources.pools import Pools


@dataclass(frozen=True)
class Sampling:
    """Pairs that are made in one graph: the settings, and which nodes the answers come from.

    `prefix` begins the names of the nodes, and `generator` names the node of the checkpoint that answers. `reference`
    names that of the reference, None without one. `waits` is called first and may raise `NotNeeded`.
    """

    recipe: Recipe
    pools: Pools
    settings: Sampled
    generator: str
    reference: str | None
    prefix: str = ""
    spoken: str = ""
    round: int = 0
    portion: tuple[int, int] = (0, 1)
    waits: Callable[[Upstream], None] = lambda upstream: None
    needs: tuple[str, ...] = ()
    """Nodes that `waits` reads."""

    @property
    def section(self) -> str:
        """The section of the recipe that has the settings."""
        return "generate" if self.settings is self.recipe.generate else "rounds"

    def name(self, node: str) -> str:
        """A node's name in this graph."""
        return f"{self.prefix}{node}"

    def candidates_request(
        self, upstream: Upstream, checkpoint: Artifact, *, spoken: str = "", held_out: bool = False, n: int = 0
    ) -> CandidatesRequest:
        """The request for a checkpoint's answers to the prompts, or to those that are held out."""
        recipe, settings = self.recipe, self.settings
        check_processes(recipe, self.pools)
        return CandidatesRequest(
            checkpoint=checkpoint,
            prompts=tuple(prompt_sources(settings.prompts, recipe.seed, f"{self.section}.prompts")),
            n=n or settings.n,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            seed=recipe.seed,
            precision=recipe.evals.precision,
            batch_tokens=recipe.evals.batch_tokens,
            generator=spoken or self.spoken,
            generate=settings.engine,
            tokens=recipe.tokens.writing(),
            held_out_fraction=recipe.held_out_fraction,
            held_out=held_out,
            suites={name: suite_items(name, suite, recipe.seed) for name, suite in recipe.evals.selected().items()}
            or None,
            withdrawn=tuple(sorted(upstream.withdrawn().rows)),
            portion=(0, 1) if held_out else self.portion,
            max_prompts=settings.prompts.max_prompts,
        )


def scored_by(recipe: Recipe, settings: Sampled, upstream: Upstream) -> dict[str, Any]:
    """The fields of a request that say who scores answers."""
    given: dict[str, Any] = {"scores": settings.score, "length_penalty": settings.length_penalty}
    given["judge"] = recipe.judge if settings.judged else None
    if settings.reward_modelled:
        given["reward_model"] = upstream(REWARD_MODEL)
        given["reading"] = Reading(
            tokens=recipe.tokens, precision=recipe.evals.precision, batch_tokens=recipe.evals.batch_tokens
        )
    return given


def needed_to_score(settings: Sampled) -> tuple[str, ...]:
    """The nodes that `scored_by` reads."""
    return (REWARD_MODEL,) if settings.reward_modelled else ()


def scoring_pool(recipe: Recipe, settings: Sampled) -> str | None:
    """The pool in which answers are scored: that of answers, where a model is loaded for it."""
    return recipe.pools.responses if settings.reward_modelled else None


def scored_by_reward_model(recipe: Recipe) -> bool:
    """Whether `generate` or `rounds` score by the reward model, and so bring its node."""
    return any(sampled is not None and sampled.reward_modelled for sampled in (recipe.generate, recipe.rounds))


def reward_model(recipe: Recipe, pools: Pools) -> tuple[Node, ...]:
    """The node of the recipe's reward model, none without it. One that scores the pairs of the first manifest is made
    before that, and is not measured on it."""
    if (settings := recipe.reward_model) is None:
        return ()
    adopted, before = settings.adopt, recipe.generate is not None and recipe.generate.reward_modelled
    needs = (*(() if before else ("preference_manifest",)), *(() if adopted else (recipe.start,)))

    def request(upstream: Upstream, shard: str | None) -> RewardRequest:
        return RewardRequest(
            manifest=None if before else upstream("preference_manifest"),
            checkpoint=None if adopted else upstream(recipe.start),
            adopt=pin_model(adopted, "reward_model.adopt") if adopted else None,
            settings=settings.training(),
            tokens=recipe.tokens,
            precision=recipe.evals.precision,
            batch_tokens=recipe.evals.batch_tokens,
            seed=recipe.seed,
            world_size=pools[recipe.pools.policy].world_size,
        )

    return (
        Node(
            name=REWARD_MODEL,
            phase="train",
            stage=REWARD,
            description="The reward model that scores sampled answers, with its accuracy on held-out pairs.",
            kinds=frozenset({"pytorch", "huggingface"}),
            needs=needs,
            request=request,
            show=show_reward_model,
            pool=recipe.pools.policy,
            training=None if adopted else settings,
        ),
    )


def show_reward_model(commit: Commit, folder: Path) -> Shown:
    """Its accuracy on held-out pairs, and the curve of its loss."""
    told = RewardSummary.of(commit)
    shown = {}
    if told.accuracy is not None and told.accuracy_low is not None and told.accuracy_high is not None:
        interval = f"[{told.accuracy_low:.3f}, {told.accuracy_high:.3f}]"
        shown["held_out"] = table(
            ("pairs", "accuracy", "95 %"), [(told.rows_held_out, f"{told.accuracy:.3f}", interval)]
        )
    if told.history:
        shown["loss"] = curves(told.history, {"loss": ["loss"]})
    return Shown(history=told.history, markdown=shown)


def sampling_nodes(sampling: Sampling) -> Iterator[Node]:
    """The nodes from prompts to a shard of pairs with its reference log-probs."""
    yield candidates(sampling)
    if sampling.settings.weak is not None:
        yield from weak_candidates(sampling)
    yield ranked_pairs(sampling)
    yield generated_shard(sampling)
    if sampling.reference is not None:
        yield generated_logprobs(sampling)


def candidates(sampling: Sampling) -> Node:
    """The node of the answers that pairs are made of."""
    name = sampling.name("candidates")

    def request(upstream: Upstream, shard: str | None) -> CandidatesRequest:
        sampling.waits(upstream)
        if sampling.generator != CHAMPION:
            return sampling.candidates_request(upstream, upstream(sampling.generator))
        return of_champion(upstream, name, sampling)

    description = f"Answers that the {sampling.spoken} gives to prompts, several to each, sampled with seeds."
    source = "sft_checkpoint" if sampling.generator == CHAMPION else sampling.generator
    return sampled_answers(sampling.recipe, name, description, (source, *sampling.needs), request)


def sampled_answers(
    recipe: Recipe,
    name: str,
    description: str,
    needs: tuple[str, ...],
    request: Callable[[Upstream, str | None], CandidatesRequest],
) -> Node:
    """The node of answers that a model samples, whichever it is: for pairs, for their worse sides, to compare."""
    return Node(
        name=name,
        phase="train",
        stage=CANDIDATES,
        description=description,
        kinds=frozenset({"pytorch", "parquet"}),
        needs=needs,
        request=request,
        show=show_candidates,
        pool=recipe.pools.responses,
    )


CHAMPION = "champion"


def of_champion(upstream: Upstream, name: str, sampling: Sampling) -> CandidatesRequest:
    """The request for the champion's answers. Sources that were sampled before keep the answers they have, which an
    earlier champion may have given: a promotion makes no shard anew."""
    champion = registered_champion(upstream.store, upstream.get("registered_model")).policy
    if champion is not None and current_erasure(upstream.store, champion) is not None:
        champion = None
    wanted = sampling.candidates_request(upstream, champion or upstream("sft_checkpoint"))
    current = upstream.get(name)
    if current is None:
        return wanted
    try:
        before = CandidatesRequest.model_validate_json(upstream.store.read(current, REQUEST_FILE))
    except MissingArtifact:
        return wanted
    pinned = {"checkpoint", "checkpoints", "prompts", "withdrawn"}
    if before.model_dump(exclude=pinned) != wanted.model_dump(exclude=pinned):
        return wanted
    known = dict(zip(before.prompts, before.checkpoints or (before.checkpoint,) * len(before.prompts), strict=True))
    checkpoints = tuple(known.get(source, wanted.checkpoint) for source in wanted.prompts)
    if all(source in known for source in wanted.prompts):  # the key does not move with the champion
        wanted = wanted.model_copy(update={"checkpoint": before.checkpoint})
    if all(checkpoint == wanted.checkpoint for checkpoint in checkpoints):
        return wanted
    return wanted.model_copy(update={"checkpoints": checkpoints})


def weak_candidates(sampling: Sampling) -> Iterator[Node]:
    """The node of the weaker generator's answers, and that of its model, where it comes from elsewhere."""
    weak = sampling.settings.weak
    source = {"base": "base_model", "sft": "sft_checkpoint"}.get(str(weak), sampling.name("weak_model"))
    spoken = "weak model" if isinstance(weak, ModelSource) else source.replace("_", " ")

    def request(upstream: Upstream, shard: str | None) -> CandidatesRequest:
        sampling.waits(upstream)
        return sampling.candidates_request(upstream, upstream(source), spoken=spoken)

    if isinstance(weak, ModelSource):
        yield model_from_elsewhere(source, weak, sampling.recipe.seed, f"{sampling.section}.weak")
    description = f"Answers that the {spoken} gives to the same prompts: the worse sides of pairs."
    name = sampling.name("weak_candidates")
    yield sampled_answers(sampling.recipe, name, description, (source, *sampling.needs), request)


def model_from_elsewhere(name: str, source: ModelSource, seed: int, field: str) -> Node:
    """The node of a model that the recipe's `field` names, pinned as the base model is."""

    def request(upstream: Upstream, shard: str | None) -> BaseModelRequest:
        return BaseModelRequest(pin=pin_model(source, field), seed=seed)

    return Node(
        name=name,
        phase="train",
        stage=MODEL,
        description="A pinned model that answers or scores beside the recipe's own.",
        kinds=frozenset({"huggingface", "pytorch"}),
        needs=(),
        request=request,
        is_checkpoint=True,
    )


def ranked_pairs(sampling: Sampling) -> Node:
    """The node of the scores and the pairs."""
    recipe, settings = sampling.recipe, sampling.settings
    weak = (sampling.name("weak_candidates"),) if settings.weak is not None else ()

    def request(upstream: Upstream, shard: str | None) -> RankedRequest:
        sampling.waits(upstream)
        strong, weaker = answered_by_both(upstream.store, upstream(sampling.name("candidates")), *map(upstream, weak))
        return RankedRequest(
            candidates=strong,
            weak=weaker,
            **scored_by(recipe, settings, upstream),
            pairs=settings.pairs,
            min_gap=settings.min_gap,
            top_k=settings.top_k,
            seed=recipe.seed,
            round=sampling.round,
        )

    return Node(
        name=sampling.name("ranked_pairs"),
        phase="train",
        stage=RANKED,
        description="The sampled answers with their scores, and the pairs that are made of them.",
        kinds=frozenset({"parquet"}),
        needs=(sampling.name("candidates"), *weak, *needed_to_score(settings), *sampling.needs),
        request=request,
        pool=scoring_pool(recipe, settings),
        show=show_ranked,
    )


def answered_by_both(
    store: Store, candidates: Artifact, weak: Artifact | None = None
) -> tuple[tuple[Artifact, ...], tuple[Artifact, ...]]:
    """The candidates of each source of prompts, and those of the weaker generator, where there is one, to the same
    source: a source whose prompts do not fit into the context of one of them is in no pair."""
    strong = tuple(parts_of(store, candidates))
    if weak is None:
        return strong, ()
    weaker = tuple(parts_of(store, weak))
    asked = [
        [CandidatesRequest.model_validate_json(store.read(part, REQUEST_FILE)).prompts for part in side]
        for side in (strong, weaker)
    ]
    if asked[0] == asked[1]:
        return strong, weaker
    sides = [dict(zip(asked[0], strong, strict=True)), dict(zip(asked[1], weaker, strict=True))]
    both = [source for source in sides[0] if source in sides[1]]
    if not both:
        raise BadInput("there is no source of prompts to which both generators have answered", field="weak")
    return tuple(sides[0][source] for source in both), tuple(sides[1][source] for source in both)


def generated_shard(sampling: Sampling) -> Node:
    """The node of the shard that the pairs become, validated as every shard is."""

    def request(upstream: Upstream, shard: str | None) -> ShardRequest:
        sampling.waits(upstream)
        return ShardRequest(
            generated=upstream(sampling.name("ranked_pairs")),
            withdrawn=tuple(sorted(upstream.withdrawn().rows)),
            split_pairs=sampling.recipe.method.data == "unpaired",
        )

    return Node(
        name=sampling.name("generated_shard"),
        phase="train",
        stage=SHARD,
        description="The generated pairs as a shard: its rows say which model wrote them, who scored them, and when.",
        kinds=frozenset({"parquet"}),
        needs=(sampling.name("ranked_pairs"), *sampling.needs),
        request=request,
        show=show_shard,
    )


def generated_logprobs(sampling: Sampling) -> Node:
    """The node of the generated pairs' log-probs under the reference."""
    reference = str(sampling.reference)

    def request(upstream: Upstream, shard: str | None) -> ReferenceRequest:
        sampling.waits(upstream)
        rows = upstream(sampling.name("generated_shard"))
        return ReferenceRequest(checkpoint=upstream(reference), shard=rows, **scoring(sampling.recipe))

    return Node(
        name=sampling.name("generated_logprobs"),
        phase="train",
        stage=LOGPROBS,
        description=f"Log-probs of the generated pairs under {reference}, cached by sequence.",
        kinds=frozenset({"pytorch", "parquet"}),
        needs=(reference, sampling.name("generated_shard"), *sampling.needs),
        request=request,
        pool=sampling.recipe.pools.reference,
    )


def show_candidates(commit: Commit, folder: Path) -> Shown:
    """Why prompts were set aside, and which sources have none left."""
    summary = CandidatesSummary.of(commit)
    rows = sorted(summary.reasons.items(), key=lambda reason: -reason[1])
    shown = {"set_aside": table(("reason", "prompts"), rows)} if rows else {}
    if summary.without_prompts:
        shown["without_prompts"] = table(("source", "reason"), sorted(summary.without_prompts.items()))
    return Shown(markdown=shown)


def show_ranked(commit: Commit, folder: Path) -> Shown:
    """Why answers and prompts are in no pair, and which sources make none."""
    summary = RankedSummary.of(commit)
    rows = sorted(summary.left_out.items(), key=lambda reason: -reason[1])
    shown = {"in_no_pair": table(("reason", "answers or prompts"), rows)} if rows else {}
    if summary.without_pairs:
        shown["without_pairs"] = table(("source", "reason"), sorted(summary.without_pairs.items()))
    return Shown(markdown=shown)


def generated_pairs(recipe: Recipe, pools: Pools) -> tuple[Node, ...]:
    """The nodes of the recipe's `generate`, none without it."""
    if (settings := recipe.generate) is None:
        return ()
    nodes = list(reward_model(recipe, pools)) if settings.reward_modelled else []
    generator = {"sft": "sft_checkpoint", "champion": CHAMPION}.get(str(settings.generator), "generator_model")
    spoken = {"sft": "SFT checkpoint", "champion": "champion"}.get(str(settings.generator), "generator model")
    if isinstance(settings.generator, ModelSource):
        nodes.append(model_from_elsewhere(generator, settings.generator, recipe.seed, "generate.generator"))
    reference = recipe.start if recipe.needs_reference else None
    return (*nodes, *sampling_nodes(Sampling(recipe, pools, settings, generator, reference, spoken=spoken)))
