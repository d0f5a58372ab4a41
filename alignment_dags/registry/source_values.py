"""What each source of preference data did, by policies that were trained without it: the values, and which count.

A source's value is the whole policy's result minus that of a policy which never saw the source, paired item by item. It
says something of the source only where the two were made alike but for the source's shards, with the same rows of the
others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from alignment.data.manifest import SPLIT_FILE, read_manifest
from alignment.data.mixing import Mix
from alignment.stages.execute import REQUEST_FILE, load_stage
from alignment.stages.preference_manifest import ManifestRequest
from alignment.store import Artifact, Commit, MissingArtifact, Store
from alignment_dags.registry.compare import Side, compare_sides, side_of
from eval.gate.metrics import PREFERENCES, headline
from eval.statistics import holm

LEVEL = 0.05
"""A source is said to do harm, or good, if the p-value that is corrected over all sources and metrics is below this."""
SHOWN = ("n", "difference", "stderr", "ci95", "p_value")


def values(store: Store, whole: str, without: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Each source's value by metric, and the names of the sources whose policy is out of date.

    `whole` and `without` (by source) are names of recipes. The worst source is first: one that does harm (`effect`),
    then by the first metric, which is that of the first suite or the margin on held-out pairs of the other sources, and
    where sources are alike in it by the next. `p_holm` is corrected over all sources and metrics, and `measured` is
    when the later of the two policies, or its scores, was begun (an ISO time). A policy is out of date where more than
    the source's shards tells it from the whole one: other data, settings or start checkpoint.
    """
    everything = side_of(store, whole)
    made = store.read_ref(whole, "preference_manifest")
    assert made is not None
    pinned = read_manifest(store.fetch(made.artifact))  # a policy of rounds was trained on pairs made for its round
    found: list[dict[str, Any]] = []
    out_of_date: list[str] = []
    for source, recipe in without.items():
        lacking = side_of(store, recipe)
        if not differ_by(store, source, everything, lacking):
            out_of_date.append(source)
            continue
        compared = compare_sides(store, lacking, everything)
        found.append(
            {
                "source": source,
                "recipe": recipe,
                "rows": sum(shard.rows for shard in pinned.shards if shard.name.startswith(f"{source}-")),
                "measured": max(one.started_at for side in (everything, lacking) for one in _made(store, side)),
                "metrics": {name: {key: compared[name][key] for key in SHOWN} for name in _main(compared)},
            }
        )
    return sorted(corrected(found), key=badness), out_of_date


def _made(store: Store, side: Side) -> list[Commit]:
    assert side.policy is not None
    return [side.policy, *map(store.commit_of, side.scores.values())]


# Whether a source is all that tells two policies from each other.


def differ_by(store: Store, source: str, whole: Side, without: Side) -> bool:
    """Whether policy and scores of `without` were made as those of `whole`, but that the shards of `source` were left
    out.

    What is not the same is followed to what it was made from: a policy to its manifest, a later round to the pairs
    that the round before it made. False as well where that is not known any more.
    """

    @cache
    def alike(first: Artifact, second: Artifact) -> bool:
        if first.digest == second.digest:
            return True
        try:
            made, requests = zip(_request(store, first, source), _request(store, second), strict=True)
        except (MissingArtifact, ValidationError):  # erased, or of a version whose requests had other fields
            return False
        inputs = [{(one.kind, one.digest): one for one in commit.inputs.values()} for commit in made]
        codes = {(commit.stage, commit.code_version) for commit in made}
        return len(codes) == 1 and same(*requests, *inputs)

    def same(first: Any, second: Any, *inputs: dict[tuple[str, str], Artifact]) -> bool:
        if isinstance(first, list) and isinstance(second, list):
            return len(first) == len(second) and all(same(*pair, *inputs) for pair in zip(first, second, strict=True))
        if not isinstance(first, dict) or not isinstance(second, dict):
            return bool(first == second)
        if first.keys() == second.keys() == {"kind", "digest"}:
            return alike(*(of[one["kind"], one["digest"]] for of, one in zip(inputs, (first, second), strict=True)))
        kept = {name: one for name, one in first.items() if not name.startswith(f"{source}-")}
        return kept.keys() == second.keys() and all(same(kept[name], second[name], *inputs) for name in kept)

    assert whole.policy is not None and without.policy is not None
    suites = [suite for suite in whole.scores if suite in without.scores]
    pairs = [(whole.policy.artifact, without.policy.artifact)]
    pairs += [(whole.scores[suite], without.scores[suite]) for suite in suites]
    return all(alike(*pair) for pair in pairs)


def _request(store: Store, artifact: Artifact, left_out: str = "") -> tuple[Commit, Any]:
    """An artifact's commit and the identity of its request, in which artifacts and files stand for their content. With
    a source that is `left_out`, a manifest's asks for the rows of the other sources that it has."""
    commit = store.commit_of(artifact)
    request = load_stage(commit.stage).request.model_validate_json(store.read(artifact, REQUEST_FILE))
    if left_out and isinstance(request, ManifestRequest):
        request = request.model_copy(update={"mix": _as_kept(store, artifact, request, left_out)})
    return commit, request.identity()


def _as_kept(store: Store, manifest: Artifact, request: ManifestRequest, left_out: str) -> tuple[Mix, ...]:
    gone = {shard.digest for name, shard in request.shards.items() if name.startswith(f"{left_out}-")}
    mixes = [mix for mix in request.mix if not gone & set(mix.shards)]
    if all(mix.weight is None for mix in mixes):
        return tuple(mixes)
    rows = kept_rows(store, manifest)
    counts = {shard.digest: rows.get(name, 0) for name, shard in request.shards.items()}
    return tuple(
        mix
        if mix.weight is None
        else mix.model_copy(update={"weight": None, "max_rows": sum(map(counts.__getitem__, mix.shards))})
        for mix in mixes
    )


def kept_rows(store: Store, manifest: Artifact) -> dict[str, int]:
    """Shard to the number of its rows that a manifest keeps, in training and held out."""
    kept = pq.read_table(store.fetch(manifest) / SPLIT_FILE, columns=["shard"], filters=pc.field("split") != "dropped")
    return {one["values"]: one["counts"] for one in kept["shard"].value_counts().to_pylist()}


def corrected(sources: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sources with `p_holm` beside each metric's `p_value`, by Holm's method over all metrics of all sources (Holm
    1979): where no source does anything, some value of the table is below `LEVEL` with this probability at most. None
    where there is no p-value."""
    known = {(one["source"], name): each["p_value"] for one in sources for name, each in one["metrics"].items()}
    adjusted = holm({claim: p_value for claim, p_value in known.items() if p_value is not None})

    def with_holm(source: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
        return {name: {**each, "p_holm": adjusted.get((source, name))} for name, each in metrics.items()}

    return [{**one, "metrics": with_holm(one["source"], one["metrics"])} for one in sources]


def effect(value: Mapping[str, Any]) -> Literal["harm", "good"] | None:
    """What a value of a source shows, by its sign, if its corrected p-value is below `LEVEL`; else None."""
    if value["p_holm"] is None or value["p_holm"] >= LEVEL:
        return None
    return "harm" if value["difference"] < 0 else "good"


def badness(source: Mapping[str, Any]) -> tuple[bool, list[float]]:
    """By which sources are sorted, the worst first."""
    metrics = source["metrics"].values()
    harms = any(effect(each) == "harm" for each in metrics)
    return not harms, [each["difference"] for each in metrics]


def _main(compared: Mapping[str, Any]) -> list[str]:
    """The main metric of every suite, then the margin and the accuracy on held-out pairs."""
    by_suite: dict[str, list[str]] = {}
    for name in compared:
        suite, _, metric = name.partition("/")
        by_suite.setdefault(suite, []).append(metric)
    held_out = by_suite.pop(PREFERENCES, [])
    mains = [f"{suite}/{headline(suite, metrics)}" for suite, metrics in by_suite.items()]
    return [*mains, *(f"{PREFERENCES}/{name}" for name in ("margin", "accuracy") if name in held_out)]
