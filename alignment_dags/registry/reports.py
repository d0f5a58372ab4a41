"""A recipe's reports as files: the current one, and the history over its registered versions."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from alignment.recipe import Recipe, load_recipe
from alignment.stages.stage import PolicySummary
from alignment.store import Artifact, Commit, MissingArtifact, Store
from alignment_dags.nights.records import NightBook
from alignment_dags.registry.source_values import effect, values
from alignment_dags.retention.evidence import evidence_of
from assets.building.upstream import Upstream
from assets.certificate import Certificate, Certified, Published, certificate_of
from assets.registration import RegistrationSummary, registrations
from eval.gate.metrics import unit_of
from eval.report.facts import day
from eval.report.history import Version, history_page
from eval.report.page import probability
from eval.report.worth import CertifiedLine, NightLine, SourceLine, Worth, moment, new_rows_course
from eval.stages.evaluation_report import REPORT_FILE, ReportSummary
from resources.home import ensure_home
from resources.store import ArtifactStore

REPORT = "evaluation_report"


def write_report(recipe_file: Path, out: Path | None, history: bool) -> dict[str, Any]:
    """Writes the current report (or, with `history`, the page over registered versions) to a file.

    Raises `BadInput` when there is no report yet, or the file cannot be written.
    """
    ensure_home()
    recipe, store = load_recipe(recipe_file), ArtifactStore().open()
    if history:
        versions = versions_of(recipe, store)
        text = history_page(recipe.name, recipe.model_name, versions, worth_of(recipe, store, versions))
        out = out or Path("history.html")
        distinct = list(dict.fromkeys(version.version for version in versions))
        about: dict[str, Any] = {"recipe": recipe.name, "versions": distinct}
    else:
        report = Upstream(store, recipe.name).get(REPORT)
        if report is None:
            raise BadInput(f"no report yet; run `align run {recipe_file}` first", file=str(recipe_file))
        text, out = (store.fetch(report, deep=True) / REPORT_FILE).read_text(encoding="utf-8"), out or Path(REPORT_FILE)
        about = {"recipe": recipe.name, "verdict": ReportSummary.of(store.commit_of(report)).verdict}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot be written: {error.strerror}", file=str(out)) from error
    return about | {"file": str(out)}


def versions_of(recipe: Recipe, store: Store) -> list[Version]:
    """The recipe's registrations, oldest first: the chain up to the current one, without those that
    registered nothing."""
    chain = registrations(store, Upstream(store, recipe.name).get("registered_model"))[::-1]
    versions: list[Version] = []
    for commit in chain:
        if RegistrationSummary.of(commit).registered:
            versions.append(_version(store, commit, {one.version for one in versions}))
    return versions


def _version(store: Store, registration: Commit, earlier: Collection[str]) -> Version:
    report = store.commit_of(registration.inputs["report"])
    policy = registration.inputs["policy"]
    summary = RegistrationSummary.of(registration)
    _, version = summary.model_version
    returned = summary.decision is not None and summary.decision.kind == "rollback"
    return Version(
        version=version,
        registered=registration.started_at,
        policy=policy.digest,
        sft=report.inputs["sft"].digest,
        rows=_rows(store, policy),
        suites=ReportSummary.of(report).comparisons,
        before="" if version not in earlier else "return" if returned else "again",
    )


def _rows(store: Store, policy: Artifact) -> int | None:
    """Rows that the policy was trained on; None if its record is lost."""
    try:
        return PolicySummary.of(store.commit_of(policy)).rows_trained
    except MissingArtifact:
        return None


# What is known of the trainings beside their reports.

NIGHTS = 14
"""Nights that the page lists, the latest."""


def worth_of(recipe: Recipe, store: Store, versions: list[Version]) -> Worth:
    """The last nights, the champion on new rows, the sources' values, the newest certificate of a version, and the
    evidence on withdrawn rows."""
    nights = [night for night in islice(NightBook(store, recipe.name).latest(), NIGHTS) if not night.is_open]
    certificates = (certificate_of(store, version.policy) for version in reversed(versions))
    certificate = next((one for one in certificates if one is not None), None)
    policies = {version.version: version.policy for version in reversed(versions)}  # each version once
    evidence = [(version, evidence_of(store, policy)) for version, policy in policies.items()]
    sources, out_of_date = _sources(recipe, store)
    return Worth(
        new_rows=new_rows_course(store, recipe.name),
        nights=[NightLine(moment(night.scheduled_at.isoformat()), night.outcome, night.reason) for night in nights],
        sources=sources,
        out_of_date=out_of_date,
        certificate="" if certificate is None else f"The recipe was {certificate.repeated()}",
        widened="" if certificate is None else certificate.widened(),
        certified=[] if certificate is None else [*map(_certified, certificate.metrics), *_not_evaluated(certificate)],
        evidence=[(version, found["told"]) for version, found in evidence if found is not None],
    )


COLOURS = {"harm": "regressed", "good": "improved", None: ""}


def _sources(recipe: Recipe, store: Store) -> tuple[list[SourceLine], list[str]]:
    """The values of the sources that policies were trained without, and the names of those whose policy is out of date;
    none where a report is lacking."""
    without = {source.name: f"{recipe.name}_without_{source.name}" for source in recipe.preferences.sources}
    whole = f"{recipe.name}_whole"
    made = {name: derived for name, derived in without.items() if store.read_ref(derived, REPORT) is not None}
    if not made or store.read_ref(whole, REPORT) is None:
        return [], []
    measured, out_of_date = values(store, whole, made)
    lines = [_source(one, metric, value) for one in measured for metric, value in one["metrics"].items()]
    return lines, out_of_date


def _source(source: dict[str, Any], metric: str, value: dict[str, Any]) -> SourceLine:
    low, high = value["ci95"] or (0.0, 0.0)
    return SourceLine(
        source=source["source"],
        rows=source["rows"],
        measured=day(source["measured"]),
        metric=metric,
        value=_signed(value["difference"]),
        interval="too few items" if value["ci95"] is None else f"{_signed(low)} to {_signed(high)}",
        corrected="–" if value["p_holm"] is None else probability(value["p_holm"]),
        verdict=COLOURS[effect(value)],
    )


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _certified(one: Certified) -> CertifiedLine:
    unit = unit_of(one.width)
    low, high = one.ends
    return CertifiedLine(
        metric=one.metric,
        mean=unit.format(one.mean) + unit.sign,
        deviation="–" if one.deviation is None else unit.format(one.deviation),
        interval="–" if low is None else f"{unit.format(low)} to {unit.format(high)}",
        own=unit.format(one.own) + unit.sign,
        noise=one.noise,
        published=[_figure(each) for each in one.published],
    )


def _not_evaluated(certificate: Certificate) -> list[CertifiedLine]:
    return [
        CertifiedLine(one.metric, "–", "–", "–", "–", one.noise, [_figure(one)]) for one in certificate.not_evaluated
    ]


def _figure(one: Published) -> str:
    return f"{one.value:g} ({one.source}) {one.judged}"
