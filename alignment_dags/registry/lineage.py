"""From a model version back to its rows, by the store's commit records or by MLflow; either is enough."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from alignment.errors import BadInput
from alignment.stages.base_model import STAGE as BASE_MODEL
from alignment.stages.base_model import BaseModelSummary
from alignment.stages.candidates import STAGE as CANDIDATES_STAGE
from alignment.stages.candidates import CandidatesSummary
from alignment.stages.stage import (
    POLICY,
    POLICY_LOGPROBS,
    ManifestSummary,
    PolicySummary,
    SftSummary,
    ShardSummary,
    starts_of,
    trainings_of,
)
from alignment.store import Commit, Store
from alignment.store.erase import current_erasure
from alignment_dags.registry.registrations import (
    champion_of,
    name_and_version,
    registration_of,
    registrations_of,
    why_unregistered,
)
from alignment_dags.retention.evidence import evidence_of
from assets.certificate import about, certificate_of
from assets.champion import moved_by_hand
from assets.learned import CommitOf, withdrawn_since
from assets.registration import RegistrationSummary
from eval.stages.evaluation_report import ReportSummary
from resources.mlflow import MlflowRecords, Tracking, TrackingUnreachable
from resources.store import ArtifactStore

# The parts that a model version was made from, by the commit records.

ABOUT_THE_RUN = (
    *("python", "platform", "device", "git", "dagster_run", "recipe"),
    *("pool", "ranks", "gpus", "peak_memory_gib"),
)
"""What an environment has beside packages."""
COUNTS = {"rows", "train", "held_out", "dropped", "reasons", "left_out"}


def record_of(registration: Commit, policy: Commit, commits: dict[str, Commit]) -> dict[str, Any]:
    """Why it was registered, the gate's verdict, and every part it was made from; None for parts not recorded.

    `sft` is None too for a policy that was trained from the base model.

    `registration` {key, at, promoted_by, decision}; `gate` {verdict, reasons}; `policy`, `manifest`, `sft`, `base`
    with digest and key, `policy` also with its `adapter` {base, revision, base_digest, rank, alpha, parameters};
    `reference` {fingerprint}; `recipe` as text; `code` {git, versions}; `code_of_model` {file: SHA-256}, the model's
    own code that ran, or None; `packages`; `device`.
    """
    report = commits[registration.inputs["report"].key]
    manifest = commits[policy.inputs["manifest"].key]
    start = starts_of(lambda artifact: commits[artifact.key], policy)[-1]
    sft, base = (None, start) if start.kind == BASE_MODEL.kind else (start, None)
    if sft is not None and "base" in sft.inputs:
        base = commits[sft.inputs["base"].key]
    registered, decided = RegistrationSummary.of(registration), ReportSummary.of(report)
    trained, pinned = PolicySummary.of(policy), ManifestSummary.of(manifest)
    decision = registered.decision
    return {
        "registration": {
            "key": registration.key,
            "at": registration.started_at,
            "promoted_by": decision.kind if decision else "gate",
            "decision": decision and decision.model_dump(mode="json"),
            "alias_moved": registered.alias_moved,
        },
        "gate": {"verdict": decided.verdict, "reasons": decided.reasons},
        "policy": _names(policy)
        | {
            "made_at": policy.started_at,
            "rows_trained": trained.rows_trained,
            "adapter": trained.adapter and trained.adapter.model_dump(),
        },
        "manifest": _names(manifest) | pinned.model_dump(mode="json", include=COUNTS),
        "reference": {"fingerprint": pinned.fingerprint},
        "sft": None if sft is None else _names(sft) | {"adopted_from": SftSummary.of(sft).source},
        "base": None if base is None else _names(base) | {"from": BaseModelSummary.of(base).source},
        "recipe": registered.recipe,
        "code": {
            "git": policy.environment.get("git"),
            "versions": dict(sorted({commit.stage: commit.code_version for commit in commits.values()}.items())),
        },
        "code_of_model": trained.runs_code,
        "packages": {name: text for name, text in policy.environment.items() if name not in ABOUT_THE_RUN},
        "device": policy.environment.get("device"),
    }


def _names(commit: Commit) -> dict[str, Any]:
    return {"digest": commit.digest, "key": commit.key}


def lineage_of(model: str, source: str = "store") -> dict[str, Any]:
    """The lineage of MODEL, MODEL@alias or MODEL@version as plain data.

    `tree` nests every artifact's inputs down to base model and source files' rows; `shards` lists the
    preference shards with row digests and counts; `runs` has, for every artifact, the Dagster run that made it
    and the MLflow run that reported it (None if MLflow does not answer). `certificate` is that of the policy, and
    `withdrawal_evidence` what was measured on rows that it was trained without (None without). `withdrawn_since` says
    what it learned that was withdrawn from its recipe since, by the store's tombstones {rows, of_reference, told}, or
    is None. `record_of` describes the other fields.
    """
    name, wanted = name_and_version(model)
    store = ArtifactStore().open()
    if source == "store":
        registration, commit_of = registration_of(store, name, wanted), store.commit_of
    elif source == "mlflow":
        records = MlflowRecords(Tracking())
        try:
            registration, commit_of = records.registration(name, wanted), records.commit_of
        except BadInput as error:
            if registrations_of(store, name):
                raise
            raise BadInput(f"{error.message}; {why_unregistered(store, name)}") from error
    else:
        raise BadInput("is 'store' or 'mlflow'", field="--from")
    commits: dict[str, Commit] = {}
    tree = _tree(registration, commit_of, commits, set())
    policy = commits[registration.inputs["policy"].key]
    recipe = registration.environment.get("recipe", "")
    since = withdrawn_since(store, recipe, policy, lambda artifact: commits[artifact.key])
    return {
        "model": name,
        "version": RegistrationSummary.of(registration).version,
        "tree": tree,
        "shards": shards(policy, commits),
        "runs": runs(commits),
        "environment": policy.environment,
        **record_of(registration, policy, commits),
        "erased": erased(store, commits),
        "alias_moved": _alias_moved(store, name),
        "certificate": about(certificate_of(store, policy.digest)),
        "withdrawal_evidence": evidence_of(store, policy.digest),
        "withdrawn_since": None if since is None else {**asdict(since), "told": since.told()},
    }


def _tree(
    commit: Commit, commit_of: CommitOf, seen: dict[str, Commit], others: set[str], own: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """An artifact with its inputs. A policy's are told once, where it first stands (`lineage` says `above` elsewhere).

    A champion that answered prompts, or was the reference, is another version, whose lineage is its own: with each
    promotion its champion would be one level deeper, and stand there more often. `others` collects the keys of these;
    `own` has those of the trainings that the weights of the policy above came from.
    """
    above = commit.kind == POLICY and commit.key in seen
    seen[commit.key] = commit
    names = {
        "stage": commit.stage,
        "kind": commit.kind,
        "key": commit.key,
        "digest": commit.digest,
        "code_version": commit.code_version,
    }
    if above:
        return names | {"lineage": "its own" if commit.key in others else "above", "inputs": {}}
    if commit.kind == POLICY:
        own |= {trained.key for trained in trainings_of(lambda one: seen.get(one.key) or commit_of(one), commit)}
    inputs: dict[str, Any] = {}
    for name, artifact in sorted(commit.inputs.items()):
        if name in ("previous", "decision.registration"):  # these are other versions' lineage
            continue
        made = seen.get(artifact.key) or commit_of(artifact)
        if made.kind == POLICY and made.key not in seen and made.key not in own and _asks_champion(commit):
            seen[made.key] = made
            others.add(made.key)
            inputs[name] = _tree(made, commit_of, seen, others)
        else:
            inputs[name] = _tree(made, commit_of, seen, others, own)
    return names | {"inputs": inputs}


def _asks_champion(commit: Commit) -> bool:
    """Whether an artifact's checkpoint is one that was there before: the champion that answered, or was the reference.
    Policies of a chain and of rounds are made on the way."""
    if commit.kind == POLICY_LOGPROBS:
        return True
    return commit.kind == CANDIDATES_STAGE.kind and CandidatesSummary.of(commit).generator.startswith("champion")


def erased(store: Store, commits: dict[str, Commit]) -> list[dict[str, str]]:
    """The artifacts whose files were erased and not made again, when and why."""
    erasures = ((commit, current_erasure(store, commit.artifact)) for commit in commits.values())
    return [
        {"kind": commit.kind, "key": commit.key, "at": erasure.at, "why": erasure.why}
        for commit, erasure in erasures
        if erasure is not None
    ]


def _alias_moved(store: Store, model: str) -> str | None:
    """A problem of the champion's alias in MLflow; None without one, or if MLflow does not answer."""
    latest = champion_of(store, model)
    try:
        return None if latest is None else moved_by_hand(store, Tracking(attempts=1), model, latest.artifact)
    except TrackingUnreachable:
        return None


def shards(policy: Commit, commits: dict[str, Commit]) -> list[dict[str, Any]]:
    """The shards that the policy was trained on, each with its row digest and number of rows: those of its own manifest
    and, of a chain, of rounds or of an average, those of the policies that it came from."""
    found: dict[str, dict[str, Any]] = {}
    for trained in trainings_of(lambda artifact: commits[artifact.key], policy):
        for name, artifact in sorted(commits[trained.inputs["manifest"].key].inputs.items()):
            if name.startswith("shards."):
                rows = ShardSummary.of(commits[artifact.key]).rows
                shard = {"name": name.removeprefix("shards."), "digest": artifact.digest, "rows": rows}
                found.setdefault(artifact.digest, shard)
    return sorted(found.values(), key=lambda shard: str(shard["name"]))


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
