"""Two models side by side, each named by a samples file, a recipe or a registered version: scores, and what differs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from alignment.errors import BadInput, MissingArtifact, did_you_mean
from alignment.models.checkpoint import CONFIG_FILE
from alignment.models.gguf import is_gguf
from alignment.recipe import load_recipe
from alignment.stages.stage import starts_of, trainings_of
from alignment.store import Artifact, Commit, Store
from alignment_dags.recipes import flat, is_recipe, recipe_names
from alignment_dags.registry.registrations import name_and_version, registration_of
from assets.champion import scores_of
from assets.registration import RegistrationSummary
from eval.commands import compare_files
from eval.gate.compare import margin_of
from eval.gate.held_out import against_champion, read_held_out
from eval.gate.metrics import PREFERENCES
from eval.report.facts import ancestry, stage_totals
from eval.statistics import verdict
from eval.suites.samples import SAMPLES_FILE
from resources.store import ArtifactStore

log = logging.getLogger(__name__)

SCORES = "policy_evals"
BASE_MODEL = "base_model"
SHOWN = ("n", "baseline", "candidate", "difference", "ci95", "margin", "verdict")
"""Fields of a comparison that a list of differences has."""


@dataclass(frozen=True)
class Side:
    """One of two models: its samples (a file, or scores by suite), its policy, and its recipe as it was written."""

    name: str
    file: Path | None = None
    scores: dict[str, Artifact] = field(default_factory=dict)
    policy: Commit | None = None
    recipe: dict[str, Any] = field(default_factory=dict)


def side_of(store: Store, name: str) -> Side:
    """What a person named: a samples file, `MODEL@VERSION`, or a recipe (its name or file), whose newest policy is
    meant.

    Raises `BadInput` for a name that is none of them, and for a recipe without a policy.
    """
    if is_recipe(name):
        recipe = load_recipe(name)
        return _newest(store, name, recipe.name, recipe.written)
    if is_file(name):
        refuse_model(name)
        return Side(name, file=Path(name))
    if "@" in name:
        return _registered(store, name)
    names = recipe_names()
    made = {str(folder).rstrip("/").rsplit("/", 1)[-1] for folder in store.fs.glob(store.path("refs", "*"))}
    if name not in {*names, *made}:
        raise BadInput(f"no file, recipe or MODEL@VERSION{did_you_mean(name, {*names, *made})}", file=name)
    return _newest(store, name, name, load_recipe(names[name]).written if name in names else {})


def _newest(store: Store, named: str, recipe: str, written: dict[str, Any]) -> Side:
    policy = store.read_ref(recipe, "policy_checkpoint")
    if policy is None:
        raise BadInput(f"recipe {recipe} has no policy yet; run `align run {named}` first", file=named)
    scores = {suite: ref.artifact for suite, ref in store.read_refs(recipe, SCORES).items()}
    return Side(named, scores=scores, policy=store.commit_of(policy.artifact), recipe=written)


def is_file(name: str) -> bool:
    """Whether a person means a samples file, there or not, and no recipe or version."""
    if is_recipe(name):
        return False
    return Path(name).exists() or len(Path(name).parts) != 1 or name.endswith(".parquet")


def refuse_model(name: str) -> None:
    """Raises `BadInput` for a model's files: nothing says how a model was measured before a recipe measured it."""
    path = Path(name)
    if path.is_dir() and (path / SAMPLES_FILE).exists():
        return
    if path.is_dir() or is_gguf(name):
        what = (
            "the folder of a model" if (path / CONFIG_FILE).exists() else "a GGUF file" if is_gguf(name) else "a folder"
        )
        raise BadInput(
            f"is {what}, not a recipe, MODEL@VERSION or samples file; a model is compared by what a recipe measured:"
            " name it as base_model or sft.adopt of a recipe, run that, and name the recipe here",
            file=name,
        )


def _registered(store: Store, name: str) -> Side:
    registration = registration_of(store, *name_and_version(name))
    summary = RegistrationSummary.of(registration)
    policy = store.commit_of(registration.inputs["policy"])
    recipe = yaml.safe_load(summary.recipe) if summary.recipe else {}
    return Side(name, scores=scores_of(registration), policy=policy, recipe=recipe)


def compare(baseline: str, candidate: str, metric: str | None, margin: float | None) -> dict[str, Any]:
    """The comparison of every metric that both sides have: of two files by metric, else by `suite/metric`.

    Both sides may be one model, which a warning says. Raises `BadInput` for sides that cannot be compared; what it says
    of a file names the file.
    """
    for name in filter(is_file, (baseline, candidate)):
        refuse_model(name)
    if is_file(baseline) and is_file(candidate):  # needs no store
        compared = compare_files(baseline, candidate, metric, margin)
        if Path(baseline).samefile(candidate):
            log.warning("both sides are one file, so no value differs")
        return compared
    store = ArtifactStore().open()
    sides = side_of(store, baseline), side_of(store, candidate)
    first, second = (side.policy and side.policy.artifact.digest for side in sides)
    if first and first == second:
        log.warning("both sides are one model (policy %s), so only what was measured twice can differ", first[:12])
    return compare_sides(store, *sides, metric, margin)


def compare_sides(
    store: Store, baseline: Side, candidate: Side, metric: str | None = None, margin: float | None = None
) -> dict[str, Any]:
    """The comparison of two sides, suite by suite, and on held-out pairs; with a file on one side, of its suite."""
    from eval.suites.samples import read_samples

    suites = [suite for suite in candidate.scores if suite in baseline.scores]
    for side, other in ((baseline, candidate), (candidate, baseline)):
        if side.file is not None:
            suites = [suite for suite in other.scores if suite in {sample.suite for sample in read_samples(side.file)}]
    found: dict[str, Any] = {}
    for suite in sorted(suites):
        before, after = (side.file or store.fetch(side.scores[suite], deep=True) for side in (baseline, candidate))
        found |= {f"{suite}/{name}": one for name, one in compare_files(before, after, margin=margin).items()}
    found |= {f"{PREFERENCES}/{name}": one for name, one in _held_out(store, baseline, candidate, margin).items()}
    if not found:
        raise BadInput(f"{baseline.name} and {candidate.name} have no suite in common ({_suites(baseline, candidate)})")
    wanted = {key: one for key, one in found.items() if metric in (None, key, key.partition("/")[2])}
    if not wanted:
        raise BadInput(f"no metric '{metric}' that both have{did_you_mean(str(metric), found)}", field="--metric")
    return wanted


def _held_out(store: Store, baseline: Side, candidate: Side, margin: float | None) -> dict[str, Any]:
    """The comparison on held-out pairs that both policies were measured on against one reference; empty without."""
    if baseline.policy is None or candidate.policy is None:
        return {}
    before, after = (read_held_out(store, side.policy.artifact) for side in (baseline, candidate) if side.policy)
    compared = "" if after is None else against_champion(before, after)
    if isinstance(compared, str):
        return {}
    found = {}
    for name, one in compared.items():
        used = margin_of(one.width) if margin is None else margin
        judged = one.model_copy(update={"verdict": verdict(one.difference_interval(), used)})
        found[name] = judged.model_dump(mode="json") | {"margin": used}
    return found


def _suites(*sides: Side) -> str:
    return "; ".join(f"{side.name}: {', '.join(sorted(side.scores)) or 'none'}" for side in sides if side.file is None)


# What differs: settings, data, checkpoints, code and metrics.


def diff(first: str, second: str) -> dict[str, Any]:
    """`settings` and `code` {name: [first, second]}, `shards` (only in one, or changed), `checkpoints`, `metrics`, and
    what making both took (`taken`, by stage: seconds and GPU-seconds).

    Raises `BadInput` for sides without a policy of their own.
    """
    store = ArtifactStore().open()
    sides = [side_of(store, name) for name in (first, second)]
    for side in sides:
        if side.policy is None:
            raise BadInput("a samples file: it says nothing of settings; name recipes or versions", file=side.name)
    parts = [_parts(store, side.policy) for side in sides if side.policy is not None]
    shards = [_shards(store, part["policy"]) for part in parts]
    try:
        metrics = compare_sides(store, sides[0], sides[1])
    except (BadInput, MissingArtifact):  # nothing that both were measured on
        metrics = {}
    return {
        "sides": [first, second],
        "settings": _pairs(*(dict(flat(side.recipe)) for side in sides)),
        "shards": {
            "first_alone": sorted(shards[0].keys() - shards[1].keys()),
            "second_alone": sorted(shards[1].keys() - shards[0].keys()),
            "changed": sorted(name for name in shards[0].keys() & shards[1] if shards[0][name] != shards[1][name]),
            "same": sum(shards[1].get(name) == digest for name, digest in shards[0].items()),
        },
        "checkpoints": {
            name: [part[name].digest if name in part else None for part in parts]
            for name in ("base", "sft", "manifest", "policy")
        },
        "code": _pairs(*({name: commit.code_version for name, commit in part.items()} for part in parts)),
        "taken": _taken(store, *(part["policy"] for part in parts)),
        "metrics": {name: {key: compared[key] for key in SHOWN} for name, compared in metrics.items()},
    }


def _taken(store: Store, *policies: Commit) -> dict[str, list[dict[str, float] | None]]:
    """By stage, what making each policy took of its machines, with everything that it was made from, and the `total`;
    None for a stage that a side has not. `gpu_seconds` is 0 for what never touched a GPU."""
    sides = []
    for policy in policies:
        totals = stage_totals(ancestry(store, [policy.artifact]).values(), {})
        known = {
            line.stage: {"seconds": round(line.seconds, 3), "gpu_seconds": round(line.gpu_seconds or 0.0, 3)}
            for line in totals
        }
        known["total"] = {
            name: round(sum(one[name] for one in known.values()), 3) for name in ("seconds", "gpu_seconds")
        }
        sides.append(known)
    return {
        stage: [side.get(stage) for side in sides] for stage in dict.fromkeys(name for one in sides for name in one)
    }


def _parts(store: Store, policy: Commit) -> dict[str, Commit]:
    """The policy's commit and those that it was made from; of a chain or rounds `sft` is where the first began."""
    parts = {"policy": policy, "manifest": store.commit_of(policy.inputs["manifest"])}
    start = starts_of(store.commit_of, policy)[-1]
    if start.kind == BASE_MODEL:
        return parts | {"base": start}
    base = start.inputs.get("base")
    return parts | {"sft": start} | ({} if base is None else {"base": store.commit_of(base)})


def _shards(store: Store, policy: Commit) -> dict[str, str]:
    """Name to digest of the shards that a policy and those that it came from were trained on."""
    manifests = [store.commit_of(trained.inputs["manifest"]) for trained in trainings_of(store.commit_of, policy)]
    return {
        name.removeprefix("shards."): found.digest
        for manifest in reversed(manifests)
        for name, found in manifest.inputs.items()
        if name.startswith("shards.")
    }


def _pairs(first: dict[str, Any], second: dict[str, Any]) -> dict[str, list[Any]]:
    """Names whose values differ, and both values; None where a side has none."""
    names = dict.fromkeys((*first, *second))
    return {name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)}
