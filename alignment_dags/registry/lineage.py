"""From a model version back to its rows, from the store's commit records or from MLflow; each alone is enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alignment.errors import BadInput
from alignment.store import Artifact, Commit, Store
from alignment.store.erase import gone
from alignment_dags.registry.registrations import champion_of, registrations_of
from assets.champion import moved_by_hand
from resources.mlflow import CHAMPION, MlflowRecords, Tracking, TrackingUnreachable
from resources.store import ArtifactStore

# What a model version stands on, named part by part from the commit records.

ABOUT_THE_RUN = ("python", "platform", "device", "git", "dagster_run", "recipe")
COUNTS = ("rows", "train", "held_out", "dropped", "reasons", "left_out")


def record_of(registration: Commit, policy: Commit, commits: dict[str, Commit]) -> dict[str, Any]:
    """How it came to be registered, the gate's verdict, and every part it was made from; None where not recorded.

    `registration` {key, at, promoted_by, decision}; `gate` {verdict, reasons}; `policy`, `manifest`, `sft`, `base`
    with digest and key; `reference` {fingerprint}; `recipe` as text; `code` {git, versions}; `packages`; `device`.
    """
    report = commits[registration.inputs["report"].key]
    manifest = commits[policy.inputs["manifest"].key]
    sft = commits[policy.inputs["checkpoint"].key]
    base = commits[sft.inputs["base"].key] if "base" in sft.inputs else None
    decision = registration.summary.get("decision")
    return {
        "registration": {
            "key": registration.key,
            "at": registration.started_at,
            "promoted_by": decision["kind"] if decision else "gate",
            "decision": decision,
            "alias_moved": registration.summary.get("alias_moved"),
        },
        "gate": {"verdict": report.summary["verdict"], "reasons": report.summary["reasons"]},
        "policy": _names(policy) | {"made_at": policy.started_at, "rows_trained": policy.summary.get("rows_trained")},
        "manifest": _names(manifest) | {name: manifest.summary.get(name) for name in COUNTS},
        "reference": {"fingerprint": manifest.summary.get("fingerprint")},
        "sft": _names(sft) | {"adopted_from": sft.summary.get("from")},
        "base": None if base is None else _names(base) | {"from": base.summary.get("from")},
        "recipe": registration.summary.get("recipe"),
        "code": {
            "git": policy.environment.get("git"),
            "versions": dict(sorted({commit.stage: commit.code_version for commit in commits.values()}.items())),
        },
        "packages": {name: text for name, text in policy.environment.items() if name not in ABOUT_THE_RUN},
        "device": policy.environment.get("device"),
    }


def _names(commit: Commit) -> dict[str, Any]:
    return {"digest": commit.digest, "key": commit.key}


CommitOf = Callable[[Artifact], Commit]


def lineage_of(model: str, source: str = "store") -> dict[str, Any]:
    """The lineage of MODEL, MODEL@alias or MODEL@version as plain data.

    `tree` nests every artifact's inputs down to base model and source files' rows; `shards` lists the
    preference shards with row digests and counts; `runs` has, for every artifact, the Dagster run that made it
    and the MLflow run that reported it (None where MLflow does not answer). The other fields are told in
    `lineage.record`.
    """
    name, _, wanted = model.partition("@")
    wanted = wanted or CHAMPION
    store = ArtifactStore().open()
    if source == "store":
        registration, commit_of = _from_store(store, name, wanted), store.commit_of
    elif source == "mlflow":
        records = MlflowRecords(Tracking())
        registration, commit_of = records.registration(name, wanted), records.commit_of
    else:
        raise BadInput("is 'store' or 'mlflow'", field="--from")
    commits: dict[str, Commit] = {}
    tree = _tree(registration, commit_of, commits)
    policy = commits[registration.inputs["policy"].key]
    return {
        "model": name,
        "version": str(registration.summary["version"]),
        "tree": tree,
        "shards": shards(policy, commits),
        "runs": runs(commits),
        "environment": policy.environment,
        **record_of(registration, policy, commits),
        "erased": erased(store, commits),
        "alias_moved": _alias_moved(store, name),
    }


def _tree(commit: Commit, commit_of: CommitOf, seen: dict[str, Commit]) -> dict[str, Any]:
    seen[commit.key] = commit
    return {
        "stage": commit.stage,
        "kind": commit.kind,
        "key": commit.key,
        "digest": commit.digest,
        "code_version": commit.code_version,
        "inputs": {
            name: _tree(seen.get(artifact.key) or commit_of(artifact), commit_of, seen)
            for name, artifact in sorted(commit.inputs.items())
            if name not in ("previous", "decision.registration")  # whom it follows is another model's story
        },
    }


def erased(store: Store, commits: dict[str, Commit]) -> list[dict[str, str]]:
    """Which of the artifacts have lost files on purpose for good, when and why."""
    found = ((commit, gone(store, commit.artifact)) for commit in commits.values())
    return [
        {"kind": commit.kind, "key": commit.key, "at": erasure.at, "why": erasure.why}
        for commit, erasure in found
        if erasure is not None
    ]


def _alias_moved(store: Store, model: str) -> str | None:
    """What is wrong with the champion's alias in MLflow, if anything is and MLflow answers."""
    latest = champion_of(store, model)
    try:
        return None if latest is None else moved_by_hand(store, Tracking(attempts=1), model, latest.artifact)
    except TrackingUnreachable:
        return None


def shards(policy: Commit, commits: dict[str, Commit]) -> list[dict[str, Any]]:
    """The shards that the policy's own manifest names, each with its row digest and number of rows."""
    manifest = commits[policy.inputs["manifest"].key]
    return [
        {"name": name.removeprefix("shards."), "digest": artifact.digest, "rows": commits[artifact.key].summary["rows"]}
        for name, artifact in sorted(manifest.inputs.items())
        if name.startswith("shards.")
    ]


def runs(commits: dict[str, Commit]) -> list[dict[str, str | None]]:
    """Dagster and MLflow run of every artifact, upstream last."""
    try:
        known = MlflowRecords(Tracking(attempts=1)).run_ids(list(commits))
    except TrackingUnreachable:
        known = {}
    return [
        {
            "stage": commit.stage,
            "key": commit.key,
            "dagster_run": commit.environment.get("dagster_run") or None,
            "mlflow_run": known.get(commit.key),
        }
        for commit in commits.values()
    ]


def _from_store(store: Store, model: str, wanted: str) -> Commit:
    """The latest registration of a version, or that of the champion."""
    found = registrations_of(store, model)
    if not found:
        raise BadInput(f"no registered model '{model}' in {store.shown}")
    if wanted == CHAMPION:
        champion = champion_of(store, model)
        assert champion is not None
        return champion
    of_version = [commit for commit in found if str(commit.summary["version"]) == wanted]
    if of_version:
        return of_version[0]
    versions = ", ".join(sorted({str(commit.summary["version"]) for commit in found}))
    raise BadInput(f"model '{model}' has no version or alias '{wanted}'; versions: {versions}")
