"""The card of a registered model, by the commit records of what it was made from.

What is not recorded is named as unknown and never guessed. The card holds no text of a model or of a row, and of paths
only the last part, because it leaves the house together with the model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from alignment.errors import CorruptArtifact, MissingArtifact, first_few
from alignment.methods import NORMALISED, RENAMED
from alignment.stages.base_model import STAGE as BASE_MODEL
from alignment.stages.base_model import BaseModelSummary
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.policy import DpoRequest
from alignment.stages.stage import ManifestSummary, PolicySummary, SftSummary, first_manifest, starts_of, trained_policy
from alignment.store import Artifact, Commit, Store
from assets.card_text import UNKNOWN, text_of
from assets.certificate import certificate_of
from assets.champion import scores_of
from assets.learned import withdrawn_since
from assets.registration import RegistrationSummary
from eval.gate.compare import MetricComparison
from eval.gate.metrics import headline, title_of
from eval.stages.evaluation_report import ReportSummary
from eval.summaries import ScoresSummary

CARD_FILE = "README.md"
OWN_LICENCE = "Apache-2.0"
"""Of models and text that alignment-dags makes from a seed."""
GENERATED = re.compile(r"shards\.(generated|round_\d+)")
"""Shards of pairs that were made of sampled answers."""
SAFETY = frozenset({"harmless", "xstest"})
Z = 1.96
TRAINING = ("learning_rate", "epochs", "max_steps", "batch_size", "warmup_ratio", "schedule", "precision", "lora")
"""Settings of an optimiser that the card names; the recipe has them all."""


@dataclass(frozen=True)
class Card:
    """`about` is what the card says, as plain data, and `text` the README.md. `unknown` names what is not known, and
    `licences` those of them that a public model needs."""

    about: dict[str, Any]
    text: str
    unknown: list[str]
    licences: list[str]


def card_of(
    store: Store, registration: Commit, recipe: Mapping[str, Any] | None = None, *, adapter: bool = False
) -> Card:
    """The card of a registration that registered a model, or with `adapter` of the adapter that was kept beside it.

    `recipe` is the recipe as it is written now: a licence that it gives counts for a source that the registered recipe
    has too. Raises `MissingArtifact` if the record of the policy, or of what it was made from, is lost.
    """
    registered = RegistrationSummary.of(registration)
    policy = store.commit_of(registration.inputs["policy"])
    report = _report(store, registration)
    then = yaml.safe_load(registered.recipe) if registered.recipe else {}
    model, version = registered.model_version
    trained = PolicySummary.of(policy)
    decided = ReportSummary(verdict=UNKNOWN) if report is None else ReportSummary.of(report)
    start, manifest = starts_of(store.commit_of, policy)[-1], store.commit_of(policy.inputs["manifest"])
    pinned = ManifestSummary.of(manifest)
    base = _base(store, start, then, recipe or {})
    data = list(trained_on(store, policy, then, recipe or {}))
    decision = registered.decision
    unknown = [f"licence of the model ({base['name']})"] if base["license"] == UNKNOWN else []
    unknown += [f"licence of the {each['use']} {each['name']}" for each in data if each["license"] == UNKNOWN]
    licences = list(unknown)
    unknown += [f"source of the {what}" for what, name in _sources(base, data) if name == UNKNOWN]
    method, settings = _method(store, policy)
    unknown += ["method and settings of the training"] if settings is None else []
    unknown += ["what the gate said, and every evaluation"] if report is None else []
    evaluations = list(_evaluations(store, registration, decided))
    since = withdrawn_since(store, registration.environment.get("recipe", ""), policy)
    withdrawn = None if since is None else since.told()
    about = {
        "model": model,
        "version": version,
        "digest": policy.digest,
        "description": str(then.get("description") or ""),
        "base": base,
        "data": data,
        "rows": {"trained": trained.rows_trained, "held_out": pinned.held_out, "dropped": pinned.dropped},
        "method": method,
        "settings": settings,
        "adapter": trained.adapter and trained.adapter.model_dump(),
        "adapter_alone": adapter,
        "evaluations": evaluations,
        "judge": _judge(then),
        "certificate": None if (certificate := certificate_of(store, policy.digest)) is None else certificate.told(),
        "gate": {"verdict": decided.verdict, "reasons": decided.reasons},
        "decision": None if decision is None else decision.model_dump(mode="json"),
        "withdrawn_since": withdrawn,
        "limits": list(_limits(decided, registered, then, base, evaluations, trained)),
        "made": {
            "at": policy.started_at,
            "registered_at": registration.started_at,
            "recipe": policy.environment.get("recipe"),
            "code": policy.environment.get("git"),
            "device": policy.environment.get("device"),
            "packages": {
                name: policy.environment[name]
                for name in ("alignment-dags", "torch", "transformers", "trl", "peft")
                if name in policy.environment
            },
            "manifest": manifest.digest,
            "report": None if report is None else report.digest,
        },
        "unknown": unknown,
    }
    return Card(about, text_of(about), unknown, licences)


# What the records say.


def _report(store: Store, registration: Commit) -> Commit | None:
    try:
        return store.commit_of(registration.inputs["report"])
    except (KeyError, MissingArtifact):
        return None


def _base(store: Store, start: Commit, then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Where the model came from: an adopted SFT checkpoint, or the base model. `name` is its hub id, its folder's name,
    or that it was made from a seed."""
    source: dict[str, Any] | None = None
    sections: tuple[str, ...] = ("base_model",)
    if start.kind == BASE_MODEL.kind:
        source = BaseModelSummary.of(start).source
    elif (summary := SftSummary.of(start)).adopted:
        source, sections = summary.source, ("sft", "adopt")
    elif "base" in start.inputs:
        source = BaseModelSummary.of(store.commit_of(start.inputs["base"])).source
    source = source or {}
    name = source.get("hub") or source.get("embedded") or str(source.get("path") or UNKNOWN).rsplit("/", 1)[-1]
    was, is_now = _at(then, sections), _at(now, sections)
    kind = next((kind for kind in ("hub", "embedded", "path") if source.get(kind)), UNKNOWN)
    return {
        "name": name,
        "kind": kind,
        "revision": source.get("revision"),
        "license": was.get("license")
        or (is_now.get("license") if _same(was, is_now) else None)
        or (OWN_LICENCE if kind == "embedded" else UNKNOWN),
    }


def trained_on(
    store: Store, policy: Commit, then: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The sources of preference pairs, of prompts and of demonstrations that were trained on, and the models that
    answered the prompts or are averaged in, each with its licence."""
    pinned = store.commit_of(first_manifest(store.commit_of, policy.artifact)).inputs
    made_here = GENERATED if "rounds" in then or "generate" in then else None
    shards = {
        name.removeprefix("shards."): one
        for name, one in pinned.items()
        if name.startswith("shards.") and (made_here is None or not made_here.fullmatch(name))
    }
    parts = _parts(then)
    for part in parts:
        lead = f"{part['name']}-" if len(parts) > 1 and "name" in part else ""
        own = [shard for name, shard in sorted(shards.items()) if name.startswith(lead)]
        if own or "rounds" in then:  # whose later rounds may not start from the first, which trains on them
            yield _source("preferences", part, _parts(now), len(own) or None, _pin(store, own[0]) if own else {})
    if not parts:
        yield _source("preferences", {}, [], len(shards), {})
    for section in ("generate", "rounds", "on_policy"):
        if prompts := _at(then, (section, "prompts")):
            yield _source("prompts", prompts, [_at(now, (section, "prompts"))], None, {})
        for name in ("generator", "weak"):
            if model := _at(then, (section, name)):
                yield _source("answers", model, [_at(now, (section, name))], None, {}) | {"hub": None}
    merged = [part.get("model") for part in now.get("merge") or []]
    for model in filter(None, (part.get("model") for part in then.get("merge") or [])):
        yield _source("average", model, merged, None, {}) | {"hub": None}  # `hub` is that of a data set
    if dataset := _at(then, ("sft", "dataset")):
        yield _source("demonstrations", dataset, [_at(now, ("sft", "dataset"))], None, {})


def _source(
    use: str, part: Mapping[str, Any], now: list[Any], shards: int | None, pin: Mapping[str, Any]
) -> dict[str, Any]:
    licence = part.get("license") or next((one.get("license") for one in now if _same(part, one)), None)
    places = part.get("files") or ([part["path"]] if part.get("path") else [])
    files = [str(file).rstrip("/").rsplit("/", 1)[-1] for file in places]
    if part.get("embedded"):
        what = "model" if use in ("answers", "average") else "text"
        names, licence = [f"{part['embedded']} {what} made from a seed"], licence or OWN_LICENCE
    else:
        names = [str(part["hub"])] if part.get("hub") else files or [UNKNOWN]
    return {
        "use": use,
        "name": first_few(names),
        "hub": part.get("hub"),
        "split": part.get("split"),
        "revision": pin.get("revision") or part.get("revision"),
        "license": licence or UNKNOWN,
        "shards": shards,
    }


def _parts(recipe: Mapping[str, Any]) -> list[Any]:
    """A recipe's sources of preference data as they are written: a list, a section, or its `sources`."""
    written = recipe.get("preferences") or []
    return written if isinstance(written, list) else list(written.get("sources") or [written])


def _same(one: Any, other: Any) -> bool:
    """Whether two written sources are one place."""
    places = ("hub", "files", "path", "embedded", "split", "config")
    return bool(one) and all(one.get(name) == (other or {}).get(name) for name in places)


def _at(recipe: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    value: Any = recipe
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, dict) else {}


def _pin(store: Store, shard: Artifact) -> dict[str, Any]:
    """The hub's pin in a shard's request; empty for other sources, and if the request is lost."""
    try:
        return json.loads(store.read(shard, REQUEST_FILE)).get("hub") or {}
    except MissingArtifact:
        return {}


def _method(store: Store, policy: Commit) -> tuple[str, dict[str, Any] | None]:
    """The method's name with its settings, as the policy's request has them; None if it cannot be read."""
    try:
        trained = trained_policy(store.commit_of, policy)
        request = DpoRequest.model_validate_json(store.read(trained.artifact, REQUEST_FILE))
    except (MissingArtifact, CorruptArtifact, ValueError):
        return UNKNOWN, None
    settings = request.settings.model_dump(mode="json")
    method = request.settings.method
    chosen = {name: settings[name] for name in (*sorted(method.settings()), *TRAINING) if name in settings}
    chosen |= {"max_length": request.tokens.max_length, "seed": request.seed}
    called = RENAMED.get(method.name, "dpo, length-normalised" if method.name == NORMALISED else method.name)
    return called, {name: value for name, value in chosen.items() if value is not None}


def _sources(base: Mapping[str, Any], data: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    yield "base model", base["name"]
    yield from ((each["use"], each["name"]) for each in data)


def _evaluations(store: Store, registration: Commit, decided: ReportSummary) -> Iterator[dict[str, Any]]:
    scores = scores_of(registration)
    for suite, metrics in decided.comparisons.items():
        own = ScoresSummary.of(store.commit_of(scores[suite])) if suite in scores else ScoresSummary()
        for metric, compared in metrics.items():
            yield _evaluation(suite, metric, compared, own) | {"main": headline(suite, metrics)}


def _evaluation(suite: str, metric: str, compared: MetricComparison, own: ScoresSummary) -> dict[str, Any]:
    measured = own.metrics.get(metric)
    value = compared.candidate if measured is None or measured.value is None else measured.value
    ends: list[Any] | None = list(own.intervals.get(metric) or ()) or None
    if ends is None and measured is not None and measured.stderr is not None:
        ends = own_interval(value, measured.stderr, measured.n or 0, compared.width)
    return {
        "suite": suite,
        "title": title_of(suite),
        "metric": metric,
        "value": value,
        "ci95": ends,
        "n": compared.n if measured is None or measured.n is None else measured.n,
        "baseline": compared.baseline,
        "difference": compared.difference,
        "difference_ci95": None if compared.ci95 is None else list(compared.ci95),
        "verdict": compared.verdict,
        "width": compared.width,
    }


def own_interval(value: float, stderr: float, n: int, width: float | None) -> list[float] | None:
    """The 95 % interval of a mean: of a fraction Wilson's (1927), which stays within 0 and 1, with as many items as the
    standard error stands for; of others the normal one. None if nothing varies and the scale is no fraction."""
    if width != 1.0 or not 0 <= value <= 1:
        return [value - Z * stderr, value + Z * stderr] if stderr else None
    items = value * (1 - value) / stderr**2 if stderr else n
    if not items:
        return None
    centre, square = (value + Z**2 / (2 * items)) / (1 + Z**2 / items), Z**2 / (4 * items**2)
    half = Z / (1 + Z**2 / items) * math.sqrt(value * (1 - value) / items + square)
    return [max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half))]


def _judge(recipe: Mapping[str, Any]) -> str | None:
    judge = recipe.get("judge")
    if not isinstance(judge, dict):
        return None
    return str(judge.get("model") or judge.get("kind"))


def _limits(
    decided: ReportSummary,
    registered: RegistrationSummary,
    recipe: Mapping[str, Any],
    base: Mapping[str, Any],
    evaluations: list[dict[str, Any]],
    trained: PolicySummary,
) -> Iterator[str]:
    if registered.decision is not None and registered.decision.kind == "override":
        decision, by = registered.decision, f"{registered.decision.by} on {registered.decision.at}"
        yield (
            f"The recipe has no gate: promoted by {by}: {decision.reason}."
            if decided.verdict == "none"
            else f"The gate did not pass it ({decided.verdict}): {decision.description}."
        )
    if base["kind"] == "embedded":
        yield "The base is a micro model made from a seed: it shows the pipeline, not quality."
    suites = {each["suite"] for each in evaluations}
    if not suites:
        yield "No suite was evaluated: nothing is known of what it can do."
    if not suites & SAFETY:
        yield "Safety was not measured: no suite asks for harmful content or for refusals."
    for each in evaluations:
        if each["verdict"] == "regressed":
            yield f"{each['title']}, {each['metric']}: worse than where its training started."
    open_ends = [f"{each['title']} {each['metric']}" for each in evaluations if each["verdict"] == "inconclusive"]
    if open_ends:
        yield f"Too few items to say whether these are better, worse or the same: {first_few(open_ends)}."
    if (judge := _judge(recipe)) is not None:
        yield f"Open answers were graded by {judge}, with its preferences and errors; no person graded them."
    if trained.max_positions:
        yield f"Its context is {trained.max_positions} tokens."
    yield from decided.notes
