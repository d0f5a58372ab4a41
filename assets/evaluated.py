"""Whether a policy is the one that a report and scores are about; a person may overrule a verdict, not this."""

from __future__ import annotations

from collections.abc import Mapping

from alignment.errors import BadInput
from alignment.store import Artifact, Store
from eval.gate.evidence import answered_by


def check_evaluated(
    store: Store, policy: Artifact, report: Artifact | None, scores: Mapping[str, Artifact | None]
) -> None:
    """Raises `BadInput` unless the report and the scores of every suite are there and of this very policy.

    Registered with another's, it would be a champion that no later candidate can be compared with.
    """
    about = {"report": None if report is None else store.commit_of(report).inputs["policy"]}
    for suite, found in scores.items():
        about[f"{suite} scores"] = None if found is None else answered_by(store, found)
    for what, measured in about.items():
        if measured is None or measured.digest != policy.digest:
            there = "there is none" if measured is None else f"the one there is is of {measured.digest[:12]}"
            raise BadInput(f"policy {policy.digest[:12]} has no {what} ({there}): evaluate it first")
