"""Retention of checkpoints: which weights stay, and which are erased. Commit records always stay."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection

from alignment.stages.stage import starts_of, trainings_of
from alignment.store import Commit, Store
from alignment.store.store import refs_of
from alignment_dags.retention.items import Kept, ToErase
from assets.champion import registered_champion
from assets.learned import withdrawn_since
from assets.registration import RegistrationSummary

POLICY, SFT, REGISTERED = "policy_checkpoint", "sft_checkpoint", "registered_model"
WEIGHTS = ".safetensors"


def unneeded_checkpoints(
    store: Store, recipes: Collection[str] | None, keep: int, aliased: Collection[str], in_use: set[str]
) -> list[ToErase]:
    """Weights that no rule keeps, of the given recipes (None: of all).

    Kept are: what running builds use; what `current_checkpoint_keys` names; the last `keep` policies that each recipe
    made; the last `keep` that it registered; policies whose digest is in `aliased`; and the SFT checkpoints of these.
    """
    policies = _latest_first(store, POLICY)
    wanted = in_use | current_checkpoint_keys(store, POLICY) | _registered(store, keep)
    kept: list[Commit] = []
    to_erase: list[ToErase] = []
    made: Counter[str] = Counter()
    for commit in policies:
        recipe = commit.environment.get("recipe", "")
        made[recipe] += 1
        if made[recipe] <= keep or commit.key in wanted or commit.digest in aliased:
            kept.append(commit)
        elif recipes is None or recipe in recipes:
            to_erase.append(_without_weights(commit, f"not among the last {keep} policies of {recipe or 'its recipe'}"))
    below = in_use | {start.key for commit in kept for start in starts_of(store.commit_of, commit)}
    below |= current_checkpoint_keys(store, SFT)
    for commit in store.commits(SFT):
        if commit.key not in below and (recipes is None or commit.environment.get("recipe", "") in recipes):
            to_erase.append(_without_weights(commit, "no policy that is kept was trained from it"))
    return [checkpoint for checkpoint in to_erase if checkpoint.files]


def learned_and_kept(
    store: Store, recipes: Collection[str], erased: Collection[str], aliased: Collection[str], in_use: set[str]
) -> list[Kept]:
    """The policies, other than those with a key in `erased`, that learned rows which one of the recipes that made or
    registered them has withdrawn since; each with what it takes to erase it. The same weights are named once: those of
    an average of one part are its part's too."""
    versions = {
        (commit.environment.get("recipe", ""), commit.inputs["policy"].digest): summary.version
        for commit in reversed(_latest_first(store, REGISTERED))
        if (summary := RegistrationSummary.of(commit)).registered
    }
    champions = {
        champion.digest
        for named in refs_of(store, REGISTERED)
        if (champion := registered_champion(store, named.ref.artifact).policy) is not None
    }
    policies: defaultdict[str, list[Commit]] = defaultdict(list)
    for policy in _latest_first(store, POLICY):
        if policy.key not in erased:
            policies[policy.digest].append(policy)
    used = in_use | current_checkpoint_keys(store, POLICY)
    kept: list[Kept] = []
    for digest, same in policies.items():
        owners = {policy.environment.get("recipe", "") for policy in same}
        owners |= {recipe for recipe, registered in versions if registered == digest}
        for recipe in sorted(owners & set(recipes)):
            since = next(filter(None, (withdrawn_since(store, recipe, policy) for policy in same)), None)
            if since is None:
                continue
            once = ""
            if digest in champions:
                once = " once it is not the champion"
            elif digest in aliased or any(policy.key in used for policy in same):
                once = " once no recipe uses it and it has no alias"
            learned = f"{'it' if since.rows else 'its reference'} learned rows that were withdrawn"
            version = versions.get((recipe, digest))
            name = f"policy {digest[:12]} ({recipe}{f' version {version}' if version else ', never registered'})"
            kept.append(Kept(POLICY, same[0].key, f"{learned}; `align gc {recipe} --keep 0` erases it{once}", name))
    return kept


def current_checkpoint_keys(store: Store, kind: str) -> set[str]:
    """Keys of the checkpoints of a kind that recipes use now: current ones, champions, those that current policies were
    trained against (with other settings they are trained against them again), and their SFT checkpoints."""
    current = {named.ref.artifact.key for named in refs_of(store, kind)}
    champions = (registered_champion(store, named.ref.artifact) for named in refs_of(store, REGISTERED))
    policies = [champion.policy for champion in champions if champion.policy is not None]
    if kind == POLICY:
        policies_now = (store.commit_of(named.ref.artifact) for named in refs_of(store, POLICY))
        trainings = (trained for policy in policies_now for trained in trainings_of(store.commit_of, policy))
        references = [trained.inputs.get("reference") for trained in trainings]
        return current | {policy.key for policy in (*policies, *references) if policy is not None}
    policies += [named.ref.artifact for named in refs_of(store, POLICY)]
    return current | {start.key for policy in policies for start in starts_of(store.commit_of, store.commit_of(policy))}


def _registered(store: Store, keep: int) -> set[str]:
    """Policies that a person may return to: the last that each recipe registered."""
    made: defaultdict[str, set[str]] = defaultdict(set)
    for commit in _latest_first(store, REGISTERED):
        if RegistrationSummary.of(commit).registered:
            versions = made[commit.environment.get("recipe", "")]
            if len(versions) < keep:
                versions.add(commit.inputs["policy"].key)
    return set().union(*made.values())


def _latest_first(store: Store, kind: str) -> list[Commit]:
    return sorted(store.commits(kind), key=lambda commit: commit.started_at, reverse=True)


def _without_weights(commit: Commit, why: str) -> ToErase:
    return ToErase(commit, tuple(sorted(name for name in commit.files if name.endswith(WEIGHTS))), why)
