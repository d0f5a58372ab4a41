"""Retention of checkpoints: which weights stay, and which go while their commit records stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from alignment.artifacts import Commit, Store
from alignment.artifacts.listing import refs_of
from alignment_dags.gc_items import Doomed
from assets.champion import standing

POLICY, SFT, REGISTERED = "policy_checkpoint", "sft_checkpoint", "registered_model"
WEIGHTS = ".safetensors"


def spent_checkpoints(
    store: Store, recipes: Collection[str] | None, keep: int, aliased: Collection[str], in_use: set[str]
) -> list[Doomed]:
    """Weights that no rule keeps, of the given recipes (None: of all).

    Kept are every recipe's current policy and champion, policies whose digest is in `aliased`, the last `keep`
    policies that each recipe made, what running builds stand on, and the SFT checkpoints below all of these.
    """
    policies = sorted(store.commits(POLICY), key=lambda commit: commit.started_at, reverse=True)
    wanted = in_use | {named.ref.artifact.key for named in refs_of(store, POLICY)} | _champions(store)
    kept: list[Commit] = []
    spent: list[Doomed] = []
    made: Counter[str] = Counter()
    for commit in policies:
        recipe = commit.environment.get("recipe", "")
        made[recipe] += 1
        if made[recipe] <= keep or commit.key in wanted or commit.digest in aliased:
            kept.append(commit)
        elif recipes is None or recipe in recipes:
            spent.append(_without_weights(commit, f"not among the last {keep} policies of {recipe or 'its recipe'}"))
    below = in_use | {commit.inputs["checkpoint"].key for commit in kept}
    below |= {named.ref.artifact.key for named in refs_of(store, SFT)}
    for commit in store.commits(SFT):
        if commit.key not in below and (recipes is None or commit.environment.get("recipe", "") in recipes):
            spent.append(_without_weights(commit, "no policy that is kept stands on it"))
    return [one for one in spent if one.files]


def _champions(store: Store) -> set[str]:
    found = (standing(store, named.ref.artifact) for named in refs_of(store, REGISTERED))
    return {champion.policy.key for champion in found if champion.policy is not None}


def _without_weights(commit: Commit, why: str) -> Doomed:
    return Doomed(commit, tuple(sorted(name for name in commit.files if name.endswith(WEIGHTS))), why)
