"""`align promote`: a person returns to an earlier version, or promotes the current policy despite the gate.

Both are written as a decision, which `registered_model` carries out in the same way as a night's promotion: a
registration in the chain, a version with tags, the alias, a run in MLflow.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from alignment.recipe import Recipe, load_recipe
from alignment.store import Artifact, Store
from alignment.store.erase import current_erasure
from alignment_dags.recipes import RECIPES, more_recipes, recipes_in_use
from alignment_dags.registry.registrations import registration_of, registrations_of
from alignment_dags.run.launch import launch
from alignment_dags.run.shards import owner_file
from alignment_dags.run.workers import apply_pools, end_dead_runs
from alignment_dags.run.workspace import Workspace
from assets.champion import check_evaluated, moved_by_hand, registered_champion
from assets.learned import withdrawn_since
from assets.registration import Decision, RegistrationSummary, drop_decision, write_decision
from resources.databases import dagster_instance
from resources.home import ensure_home
from resources.mlflow import Tracking
from resources.pools import load_pools
from resources.store import ArtifactStore

NODE = "registered_model"


@dataclass(frozen=True)
class Promotion:
    """A person's request: `to` a version, or an `override` for the recipe's current policy."""

    model: str
    to: str | None = None
    override: bool = False
    reason: str = ""
    recipe: Path | None = None


def promote(promotion: Promotion, say: Callable[[str], None]) -> dict[str, Any]:
    """Carries out a promotion in its own Dagster run; `decision` is None where the version is champion already.

    Raises `BadInput` if the promotion is not possible, and `RunFailed`.
    """
    if (promotion.to is None) != promotion.override:
        raise BadInput("give either --to VERSION, or --override with --reason WHY")
    if promotion.override and not promotion.reason.strip():
        raise BadInput("an override needs --reason: it is recorded with the model", field="--reason")
    path, recipe = recipe_of(promotion.model, promotion.recipe)
    os.environ[RECIPES] = str(path)
    ensure_home()
    workspace = Workspace(recipe, load_pools())
    store = workspace.store
    decision = decide(workspace, promotion)
    version = promotion.to or _version_of_candidate(workspace)
    if version is not None and _is_champion(workspace, promotion.model, version):
        return {"model": promotion.model, "version": version, "decision": None, "dagster_run": None}
    write_decision(store, recipe.name, decision)
    try:
        run_id = _carry_out(workspace, decision, say)
        commit = store.commit_of(workspace.upstream()(NODE))
        summary = RegistrationSummary.of(commit)
        if summary.decision != decision:
            raise BadInput(f"{recipe.name} has a new policy since the decision; check it, and promote again")
    except BaseException:
        drop_decision(store, recipe.name)  # a later night must not carry it out
        raise
    return {
        "model": promotion.model,
        "version": summary.version,
        "decision": decision.model_dump(mode="json"),
        "gate": summary.gate,
        "alias_moved": summary.alias_moved,
        "dagster_run": run_id,
    }


def _version_of_candidate(workspace: Workspace) -> str | None:
    """The champion's version where the recipe's policy is the champion, which no override makes more of one."""
    champion = registered_champion(workspace.store, workspace.upstream().get(NODE))
    return champion.version if champion.policy == workspace.upstream().get("policy_checkpoint") else None


def _is_champion(workspace: Workspace, model: str, version: str) -> bool:
    """Whether a version is the champion, in the store and by MLflow's alias. Its files are given to MLflow if it has
    none of them (release 0.1.0 registered versions without files)."""
    store, latest = workspace.store, workspace.upstream().get(NODE)
    champion = registered_champion(store, latest)
    if champion.policy is None or champion.version != version:
        return False
    tracking, policy = Tracking(), store.commit_of(champion.policy)
    if moved_by_hand(store, tracking, model, latest) is not None:
        return False
    tracking.publish(model, version, policy, lambda: store.fetch(policy.artifact, deep=True))
    return True


def decide(workspace: Workspace, promotion: Promotion) -> Decision:
    """The decision behind a promotion.

    Raises `BadInput` for an unknown version, a version whose weights were erased, an override for a policy that was not
    evaluated yet, and a policy that learned what was withdrawn since (unless it is the champion).
    """
    recipe, store, upstream = workspace.recipe, workspace.store, workspace.upstream()
    candidate = upstream.get("policy_checkpoint")
    if candidate is None:
        raise BadInput(f"{recipe.name} has no policy yet")
    target = None if promotion.to is None else registration_of(store, promotion.model, promotion.to)
    if target is not None and (erasure := current_erasure(store, target.inputs["policy"])) is not None:
        raise BadInput(f"{promotion.model} version {promotion.to} cannot come back: its weights were {erasure.message}")
    champion = registered_champion(store, upstream.get(NODE))
    if target is not None and champion.version != promotion.to:
        version = f"{promotion.model} version {promotion.to} cannot come back"
        _require_nothing_withdrawn(store, recipe.name, target.inputs["policy"], version)
    if target is None:
        if candidate != champion.policy:
            _require_nothing_withdrawn(store, recipe.name, candidate, f"the policy of {recipe.name} cannot be promoted")
        scores = {suite: upstream.get(f"policy_evals/{suite}") for suite in recipe.evals.selected()}
        check_evaluated(store, candidate, upstream.get("evaluation_report"), scores)
    return Decision(
        kind="override" if promotion.override else "rollback",
        candidate=candidate.digest,
        registration=None if target is None else target.artifact,
        reason=promotion.reason.strip(),
        by=getpass.getuser(),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _require_nothing_withdrawn(store: Store, recipe: str, policy: Artifact, refused: str) -> None:
    """Raises `BadInput`, which begins with what is `refused`, if a policy learned rows that were withdrawn from the
    recipe since."""
    since = withdrawn_since(store, recipe, store.commit_of(policy))
    if since is not None:
        raise BadInput(
            f"{refused}: {since.told()}; restore the rows (`align prefs restore`), or train again (`align run`)"
        )


def show_promotion(result: dict[str, Any]) -> None:
    """Prints which version is champion now."""
    if result["decision"] is None:
        print(f"{result['model']} version {result['version']} is champion already; nothing done")
        return
    if result["alias_moved"]:
        print(f"warning: {result['alias_moved']}")
    lead = f"{result['model']} version {result['version']} is champion"
    if str(result["gate"]).startswith("none: "):
        print(f"{lead}; the recipe has no gate, so a person decided")
        return
    how = "despite the gate" if result["decision"]["kind"] == "override" else "again"
    print(f"{lead} {how}; the gate says {result['gate']}")


def recipe_of(model: str, file: Path | None = None) -> tuple[Path, Recipe]:
    """The recipe that registers a model: `file`, one in use, or one that has run. Raises `BadInput` if none does."""
    if file is not None:
        recipe = load_recipe(file)
        if recipe.model_name != model:
            raise BadInput(f"registers '{recipe.model_name}', not '{model}'", file=str(file))
        return file.resolve(), recipe
    for path, recipe in {**recipes_in_use(), **more_recipes()}.items():
        if recipe.model_name == model:
            return path, recipe
    if (owner := _owner(model)) is not None:
        return owner
    raise BadInput(f"no recipe in use registers '{model}'; name its file with --recipe, or in ALIGN_RECIPES")


def _owner(model: str) -> tuple[Path, Recipe] | None:
    """The recipe whose run registered a model last, where its file still registers that model."""
    store = ArtifactStore().open()
    for registration in registrations_of(store, model)[:1]:
        file = owner_file(store, registration.environment.get("recipe", ""))
        if file is not None and file.is_file() and (recipe := load_recipe(file)).model_name == model:
            return file, recipe
    return None


def _carry_out(workspace: Workspace, decision: Decision, say: Callable[[str], None]) -> str:
    phase = workspace.return_phase if decision.kind == "rollback" else workspace.phase("train")
    with dagster_instance() as instance:
        end_dead_runs(instance)
        apply_pools(instance, workspace.pools)
        return launch(instance, workspace.recipe, phase, [NODE], {}, say)
