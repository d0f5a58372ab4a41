"""What a model version stands on, named part by part from the commit records."""

from __future__ import annotations

from typing import Any

from alignment.store import Commit

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
