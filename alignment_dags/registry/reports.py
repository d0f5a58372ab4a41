"""A recipe's reports as files: the current one, and the history over its registered versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from alignment.recipe import Recipe, load_recipe
from alignment.stages.stage import PolicySummary
from alignment.store import Artifact, Commit, MissingArtifact, Store
from assets.building.upstream import Upstream
from assets.registration import RegistrationSummary
from eval.report.history import Version, history_page
from eval.stages.evaluation_report import REPORT_FILE, ReportSummary
from resources.home import ensure_home
from resources.store import ArtifactStore


def write_report(recipe_file: Path, out: Path | None, history: bool) -> dict[str, Any]:
    """Writes the current report (or, with `history`, the page over registered versions) to a file.

    Raises `BadInput` when there is no report yet, or the file cannot be written.
    """
    ensure_home()
    recipe, store = load_recipe(recipe_file), ArtifactStore().open()
    if history:
        versions = versions_of(recipe, store)
        text, out = history_page(recipe.name, recipe.model_name, versions), out or Path("history.html")
        about: dict[str, Any] = {"recipe": recipe.name, "versions": [version.version for version in versions]}
    else:
        report = Upstream(store, recipe.name).get("evaluation_report")
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
    versions: list[Version] = []
    registration = Upstream(store, recipe.name).get("registered_model")
    while registration is not None:
        commit = store.commit_of(registration)
        if RegistrationSummary.of(commit).registered:
            versions.append(_version(store, commit))
        registration = commit.inputs.get("previous")
    return versions[::-1]


def _version(store: Store, registration: Commit) -> Version:
    report = store.commit_of(registration.inputs["report"])
    policy = registration.inputs["policy"]
    _, version = RegistrationSummary.of(registration).model_version
    return Version(
        version=version,
        registered=registration.started_at,
        policy=policy.digest,
        sft=report.inputs["sft"].digest,
        rows=_rows(store, policy),
        suites=ReportSummary.of(report).comparisons,
    )


def _rows(store: Store, policy: Artifact) -> int | None:
    """Rows that the policy was trained on; None if its record is lost."""
    try:
        return PolicySummary.of(store.commit_of(policy)).rows_trained
    except MissingArtifact:
        return None
