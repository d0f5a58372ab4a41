"""A policy's held-out pairs, read back from its checkpoint's artifact and compared with its reference and the champion.

Which pairs are measured depends only on the data. A pair that one side lacks is therefore no failure of that side: it
is counted and not compared.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from alignment.store import Artifact, CorruptArtifact, MissingArtifact, Store
from alignment.training.held_out_pairs import HELD_OUT_FILE, HeldOutRow, parse_held_out
from eval.gate.compare import NAMED_ITEMS, MetricComparison, compare_samples
from eval.gate.metrics import ACCURACY, TIE, policy_samples, reference_samples, shared_pairs
from eval.gate.requirement import NO_PAIRS, NO_SHARED_PAIRS, OTHER_REFERENCE

HeldOutComparison = dict[str, MetricComparison] | str
"""Metric to comparison; or the reason for comparing nothing."""


@dataclass(frozen=True)
class HeldOut:
    """What a policy's stage measured on held-out rows (pairs, or completions with a label), at least one.

    `sha256` is that of their file.
    """

    pairs: list[HeldOutRow]
    sha256: str


def read_held_out(store: Store, policy: Artifact) -> HeldOut | None:
    """The held-out pairs of a policy, with the sha256 of their file checked; None for a policy without pairs.

    The file stays when a policy's weights are erased. Raises `CorruptArtifact` if it is not the committed file.
    """
    entry = store.commit_of(policy).files.get(HELD_OUT_FILE)
    if entry is None:
        return None
    path = f"{store.uri(policy)}/{HELD_OUT_FILE}"
    try:
        data = store.read(policy, HELD_OUT_FILE)
    except MissingArtifact as error:
        raise CorruptArtifact(f"{path}: is gone") from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CorruptArtifact(f"{path}: sha256 is not that of the commit record")
    pairs = parse_held_out(data)
    return HeldOut(pairs, entry.sha256) if pairs else None


def against_reference(policy: HeldOut) -> HeldOutComparison:
    """The policy compared with its SFT baseline, whose implicit reward is 0.

    The baseline's accuracy is therefore 0.5 on every pair, and no difference in accuracy is larger than 0.5.
    """
    before, after = reference_samples(policy.pairs), policy_samples(policy.pairs)
    accuracy = compare_samples(before, after, ACCURACY, margin=None, bound=TIE)
    return compare_samples(before, after, margin=None) | accuracy


def against_champion(champion: HeldOut | None, policy: HeldOut) -> HeldOutComparison:
    """The policy compared with the champion, on the pairs that both were measured on against the same reference.

    The other pairs count as `missing`, and as a failure of neither side.
    """
    if champion is None:
        return NO_PAIRS
    before, after = shared_pairs(champion.pairs, policy.pairs)
    rows = [{pair.row_id for pair in side.pairs} for side in (champion, policy)]
    if not before:
        return OTHER_REFERENCE if rows[0] & rows[1] else NO_SHARED_PAIRS
    unshared = sorted((rows[0] | rows[1]) - {pair.row_id for pair in before})
    missing = {"missing": len(unshared), "missing_ids": unshared[:NAMED_ITEMS]}
    comparisons = compare_samples(policy_samples(before), policy_samples(after), margin=None)
    return {metric: comparison.model_copy(update=missing) for metric, comparison in comparisons.items()}
