"""`champion_responses` and `champion_evals/<suite>`: the champion under the recipe's current eval settings.

A champion is measured before it is registered. These assets stay unmaterialised until the recipe's suites, judge or
scorers change. Then the champion is answered and scored again, so that a new candidate is compared with it under the
same settings. Measurements are found by their key and not by a ref: the report reads once which policy is the
champion, and so it never gets the scores of another one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from alignment.recipe.evaluation import Suite
from alignment.recipe.recipe import Recipe
from alignment.store import Artifact, Commit, Store
from alignment.store.erase import current_erasure
from assets.building.node import Node, NotNeeded
from assets.building.upstream import NotBuilt, Upstream
from assets.champion import Champion, champion_for
from assets.evals import asks_an_endpoint, evals, scores_request
from assets.responses import needed_to_choose, responses, responses_request
from eval.stages.responses import STAGE as RESPONSES
from eval.stages.responses import ResponsesRequest
from eval.stages.scores import STAGE as SCORES
from eval.stages.scores import ScoresRequest, judge_behind
from resources.pools import Pools


def champion_responses(recipe: Recipe, pools: Pools) -> Node:
    """The node of the champion's answers to the recipe's suites."""

    def request(upstream: Upstream, shard: str | None) -> ResponsesRequest:
        return champion_responses_request(recipe, pools, upstream, current_champion(upstream))

    return replace(
        responses(recipe, pools, "champion"),
        description="What the champion answers, made when the recipe asks otherwise than when it was registered.",
        needs=needed_to_choose(recipe),
        after=("policy_checkpoint",),
        request=request,
        reported_elsewhere=registered_with,
    )


def champion_evals(recipe: Recipe, pools: Pools, name: str, suite: Suite) -> Node:
    """The node of the champion's scores on one suite."""

    def request(upstream: Upstream, shard: str | None) -> ScoresRequest:
        return champion_scores_request(recipe, pools, upstream, current_champion(upstream), name)

    return replace(
        evals(recipe, "champion", name, suite),
        description=f"Scores of the champion on {name}, made when the recipe measures it otherwise than when it was"
        " registered.",
        after=("policy_checkpoint",),  # also where no answers are to be made: which policy is compared decides
        request=request,
        reported_elsewhere=registered_with,
    )


def champion_scores(
    recipe: Recipe, pools: Pools, upstream: Upstream, champion: Champion
) -> tuple[dict[str, Artifact], str]:
    """Suite to the champion's scores as the recipe measures now.

    If its weights were erased before it was measured under these settings, they are the scores that it was registered
    with, and the second value says so. Raises `NotBuilt` for suites that are still to be measured.
    """
    suites = list(recipe.evals.selected())
    if champion.policy is None:
        return {}, ""
    try:
        requests = {suite: champion_scores_request(recipe, pools, upstream, champion, suite) for suite in suites}
    except NotNeeded as why:
        return {suite: scores for suite, scores in champion.scores.items() if suite in suites}, str(why)
    commits = {suite: upstream.store.find(SCORES.kind, SCORES.key(request)) for suite, request in requests.items()}
    if missing := [f"champion_evals/{suite}" for suite, commit in commits.items() if commit is None]:
        raise NotBuilt(f"{', '.join(missing)} of version {champion.version}", None)
    return {suite: commit.artifact for suite, commit in commits.items() if commit is not None}, ""


def change_of_judge(store: Store, champion: Champion, scores: Mapping[str, Artifact]) -> str:
    """A note where a suite's scores of the champion are another judge's than those it was registered with."""
    suites: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for suite, artifact in scores.items():
        if (registered := champion.scores.get(suite)) is None or registered == artifact:
            continue
        before, now = judge_behind(store, registered), judge_behind(store, artifact)
        if before and now and before != now:
            suites[before, now].append(suite)
    return " ".join(
        f"On {', '.join(named)} the champion, version {champion.version}, was registered with {before} as judge. Here"
        f" {now} has judged it anew, as only scores of one judge are compared."
        for (before, now), named in suites.items()
    )


def current_champion(upstream: Upstream) -> Champion:
    """The champion that the current candidate is compared with; the plan may not know the candidate yet."""
    return champion_for(upstream, upstream.get("policy_checkpoint"))


def registered_with(upstream: Upstream, commit: Commit) -> bool:
    """Whether the champion was registered with these scores, or with scores of these answers."""
    scores = current_champion(upstream).scores.values()
    behind = (upstream.store.commit_of(artifact).inputs["responses"] for artifact in scores)
    return commit.artifact in (*scores, *behind)


def champion_responses_request(
    recipe: Recipe, pools: Pools, upstream: Upstream, champion: Champion
) -> ResponsesRequest:
    """The request for the champion's answers; raises `NotNeeded` without a champion, or if its weights were erased."""
    policy = champion.policy
    if policy is None:
        raise NotNeeded("there is no champion yet that the policy is compared with")

    def build() -> ResponsesRequest:
        return responses_request(recipe, pools, policy, upstream)

    request = upstream.once("champion_responses", build)  # every suite's scores ask for it
    answered = upstream.store.find(RESPONSES.kind, RESPONSES.key(request)) is not None
    if not answered and (erasure := current_erasure(upstream.store, policy)) is not None:
        reason = f"its weights were {erasure.message}"
        raise NotNeeded(f"The champion, version {champion.version}, cannot be measured again: {reason}.")
    return request


def champion_scores_request(
    recipe: Recipe, pools: Pools, upstream: Upstream, champion: Champion, name: str
) -> ScoresRequest:
    """The request for the champion's scores on a suite; raises `NotBuilt` before it has answered."""
    request = champion_responses_request(recipe, pools, upstream, champion)
    answered = upstream.store.find(RESPONSES.kind, RESPONSES.key(request))
    if answered is None:
        raise NotBuilt(f"champion_responses of version {champion.version}", None)
    earlier = champion.scores.get(name) if asks_an_endpoint(recipe) else None
    return scores_request(recipe, name, recipe.evals.selected()[name], answered.artifact, earlier)
