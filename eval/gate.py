"""The gate over a report's evidence, and again from the pinned samples: a registry trusts no file that says "pass"."""

from __future__ import annotations

from alignment.recipe import Gate
from alignment.stages.execute import REQUEST_FILE
from alignment.store import Artifact, CorruptArtifact, Store
from eval.decision import Verdict, decide, verdict_key
from eval.evidence import Evidence, ReportRequest, WrongEvidence, gather
from eval.preferences import PREFERENCES
from eval.requirement import Check

__all__ = ["Check", "Verdict", "decide", "recompute", "verdict_key", "verdict_of"]


def verdict_of(request: ReportRequest, evidence: Evidence) -> Verdict:
    """The gate's decision on a report's evidence."""
    scores = {
        f"{side}/{suite}": artifact.digest
        for side, pinned in (
            ("sft", request.sft_scores),
            ("policy", request.policy_scores),
            ("champion", request.champion_scores),
        )
        for suite, artifact in pinned.items()
    } | {f"{side}/{PREFERENCES}": sha256 for side, sha256 in evidence.held_out.items()}
    champion = None if request.champion is None else request.champion.digest
    key = verdict_key(request.sft.digest, request.policy.digest, champion, scores, request.gate)
    against = evidence.against_champion
    if against is None:
        return decide(evidence.against_sft.suites, None, request.gate, key)
    return decide(evidence.against_sft.suites, against.suites, request.gate, key, against.left_out)


def recompute(store: Store, report: Artifact, policy: Artifact, gate: Gate | None = None) -> Verdict:
    """Decides again from the samples that the report's request pins; `verdict.json` is never read.

    Every file is checked by sha256, every score traced to its checkpoint. With `gate`, the report must have
    been decided by these settings. Raises `WrongEvidence` when the report is about another policy or gate,
    `CorruptArtifact` when a file is not what was committed.
    """
    commit = store.commit_of(report)
    folder = store.fetch(report, deep=True)
    request = ReportRequest.model_validate_json((folder / REQUEST_FILE).read_text(encoding="utf-8"))
    if request.artifacts() != commit.inputs:
        raise CorruptArtifact(f"{folder / REQUEST_FILE}: names other inputs than the commit record")
    if request.policy.digest != policy.digest:
        raise WrongEvidence(f"the report is about policy {request.policy.digest[:12]}, not about {policy.digest[:12]}")
    if gate is not None and request.gate != gate:
        raise WrongEvidence("the report was decided by other gate settings than the recipe's")
    return verdict_of(request, gather(store, request))
