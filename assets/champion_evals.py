"""`champion_responses` and `champion_evals/<suite>`: the champion as the recipe measures now.

A champion was measured when it was registered. While the recipe's suites, judge and scorers are what they were, that
stands, and nothing here is made; when they change, it answers and is scored once more, so that a new candidate is
compared with it under the same settings. What has been measured is looked up by its key and not by a ref: the report
reads once who the champion is, and scores of another one cannot come in between.
"""

from __future__ import annotations

from dataclasses import replace

from alignment.recipe import Recipe, Suite
from alignment.store import Artifact, Commit
from alignment.store.erase import current_erasure
from assets.building.node import Node, NotNeeded
from assets.building.upstream import NotBuilt, Upstream
from assets.champion import Champion, champion_beside
from assets.evals import evals, scores_request
from assets.responses import responses, responses_request
from eval.stages.responses import STAGE as RESPONSES
from eval.stages.responses import ResponsesRequest
from eval.stages.scores import STAGE as SCORES
from eval.stages.scores import ScoresRequest
from resources.pools import Pools


def champion_responses(recipe: Recipe, pools: Pools) -> Node:
    """The node of the champion's answers to the recipe's suites."""

    def request(upstream: Upstream, shard: str | None) -> ResponsesRequest:
        return answers_asked(recipe, pools, upstream, candidates_champion(upstream))

    return replace(
        responses(recipe, pools, "champion"),
        description="What the champion answers, made when the recipe asks otherwise than when it was registered.",
        needs=(),
        after=("policy_checkpoint",),
        request=request,
        reported_elsewhere=registered_with,
    )


def champion_evals(recipe: Recipe, pools: Pools, name: str, suite: Suite) -> Node:
    """The node of the champion's scores on one suite."""

    def request(upstream: Upstream, shard: str | None) -> ScoresRequest:
        return scores_asked(recipe, pools, upstream, candidates_champion(upstream), name)

    return replace(
        evals(recipe, "champion", name, suite),
        description=f"Scores of the champion on {name}, made when the recipe measures it otherwise than when it was"
        " registered.",
        request=request,
        reported_elsewhere=registered_with,
    )


def champion_scores(
    recipe: Recipe, pools: Pools, upstream: Upstream, champion: Champion
) -> tuple[dict[str, Artifact], str]:
    """Suite to the champion's scores as the recipe measures now.

    Where its weights are gone and it has not answered before, they are those it was registered with, and the second
    value says so. Raises `NotBuilt` for what is still to be measured.
    """
    suites = list(recipe.evals.selected())
    if champion.policy is None:
        return {}, ""
    try:
        requests = {suite: scores_asked(recipe, pools, upstream, champion, suite) for suite in suites}
    except NotNeeded as why:
        return {suite: scores for suite, scores in champion.scores.items() if suite in suites}, str(why)
    commits = {suite: upstream.store.find(SCORES.kind, SCORES.key(request)) for suite, request in requests.items()}
    if missing := [f"champion_evals/{suite}" for suite, commit in commits.items() if commit is None]:
        raise NotBuilt(f"{', '.join(missing)} of version {champion.version}", None)
    return {suite: commit.artifact for suite, commit in commits.items() if commit is not None}, ""


def candidates_champion(upstream: Upstream) -> Champion:
    """Whom the current candidate is compared with; the plan may not know the candidate yet."""
    return champion_beside(upstream, upstream.get("policy_checkpoint"))


def registered_with(upstream: Upstream, commit: Commit) -> bool:
    """Whether these are the scores, or the answers behind them, that the champion was registered with."""
    scores = candidates_champion(upstream).scores.values()
    behind = (upstream.store.commit_of(artifact).inputs["responses"] for artifact in scores)
    return commit.artifact in (*scores, *behind)


def answers_asked(recipe: Recipe, pools: Pools, upstream: Upstream, champion: Champion) -> ResponsesRequest:
    """What the champion has to answer; raises `NotNeeded` where there is none, or none that can answer any more."""
    policy = champion.policy
    if policy is None:
        raise NotNeeded("there is no champion yet that the policy is compared with")

    def asked() -> ResponsesRequest:
        return responses_request(recipe, pools, policy)

    request = upstream.once("champion_responses", asked)  # every suite's scores ask for it
    answered = upstream.store.find(RESPONSES.kind, RESPONSES.key(request)) is not None
    if not answered and (erasure := current_erasure(upstream.store, policy)) is not None:
        reason = f"its weights were {erasure.message}"
        raise NotNeeded(f"The champion, version {champion.version}, cannot be measured again: {reason}.")
    return request


def scores_asked(recipe: Recipe, pools: Pools, upstream: Upstream, champion: Champion, name: str) -> ScoresRequest:
    """How the champion's answers to a suite are scored; raises `NotBuilt` before it has answered."""
    request = answers_asked(recipe, pools, upstream, champion)
    answered = upstream.store.find(RESPONSES.kind, RESPONSES.key(request))
    if answered is None:
        raise NotBuilt(f"champion_responses of version {champion.version}", None)
    return scores_request(recipe, name, recipe.evals.selected()[name], answered.artifact)
