"""What `align run` prints at its end: the comparison, the verdict, the version, and the files."""

from __future__ import annotations

from typing import Any

from alignment.stages.stage import ManifestSummary
from alignment.store import Artifact, Commit
from alignment_dags.cli.output import columns, comparison_row, painted, place
from alignment_dags.run.run import Outcome
from alignment_dags.run.workspace import Workspace
from assets.champion import moved_by_hand
from assets.registration import RegistrationSummary
from eval.gate.requirement import SHORT_NAMES, baseline_at
from eval.stages.evaluation_report import ReportSummary
from resources.mlflow import Tracking, TrackingUnreachable


def summary_of(outcome: Outcome) -> dict[str, Any]:
    """Plain data for `--json` and for `show_outcome`."""
    recipe, store, upstream = outcome.workspace.recipe, outcome.workspace.store, outcome.workspace.upstream()

    def commit(name: str) -> Commit | None:
        artifact = upstream.get(name)
        return None if artifact is None else store.commit_of(artifact)

    def uri(artifact: Artifact | None) -> str | None:
        return None if artifact is None else store.uri(artifact)

    report, registration = commit("evaluation_report"), commit("registered_model")
    manifest, policy = commit("preference_manifest"), upstream.get("policy_checkpoint")
    if report is not None and report.inputs["policy"] != policy:
        report = None  # it is of an earlier policy: the current one was not evaluated
    decided = None if report is None else ReportSummary.of(report)
    return {
        "recipe": recipe.name,
        "seconds": round(outcome.seconds, 1),
        "dagster_runs": outcome.dagster_runs,
        "ended_runs": outcome.ended_runs,
        "failure": outcome.failure,
        "stopped": outcome.stopped,
        "verdict": decided.verdict if decided else None,
        "reasons": decided.reasons if decided else [],
        "baseline": None if report is None else SHORT_NAMES[baseline_at(store, report.inputs["sft"])],
        "comparisons": decided.recorded()["comparisons"] if decided else {},
        "notes": decided.notes if decided else [],
        "registered": (RegistrationSummary.of(registration).recorded() if registration and outcome.is_whole else None),
        "rows": ManifestSummary.of(manifest).recorded() if manifest else None,
        "report": f"{uri(upstream.get('evaluation_report'))}/report.html" if report else None,
        "policy": uri(policy),
        "alias": alias_warning(outcome.workspace, upstream.get("registered_model")),
        "store": store.shown,
    }


def alias_warning(workspace: Workspace, registration: Artifact | None) -> str | None:
    """A problem of the champion's alias; None without one, or if MLflow does not answer."""
    try:
        return moved_by_hand(workspace.store, Tracking(attempts=1), workspace.recipe.model_name, registration)
    except TrackingUnreachable:
        return None


def show_outcome(result: dict[str, Any]) -> None:
    """Prints what a run made, its comparisons and its verdict."""
    if result["stopped"]:
        print(painted(result["stopped"]))
        return
    if not result["dagster_runs"] and result["failure"] is None:
        print(f"{result['recipe']}: nothing to do, everything is up to date ({result['seconds']} s)")
    rows = [
        (suite, *comparison_row(metric, comparison))
        for suite, metrics in result["comparisons"].items()
        for metric, comparison in metrics.items()
    ]
    if rows:
        values = (result["baseline"], "policy", "difference", "95 % interval", "verdict")
        print(painted(columns(("suite", "metric", "n", *values), rows)))
    for note in result["notes"]:
        print(f"note: {note}")
    registered = result["registered"] or {}
    if result["verdict"] == "none" and not registered.get("registered"):
        # one sentence, where reason and registration would say the same again
        print("\ngate: none, so nothing is registered; `gate: default` in the recipe decides by the suites under evals")
        registered = {}
    elif result["verdict"]:
        print(painted(f"\ngate: {result['verdict']}"))
        for reason in result["reasons"]:
            print(f"  {reason}")
    if registered.get("registered"):
        print(f"registered: {registered['model']} version {registered['version']} (champion)")
    elif registered:
        print(f"registered: nothing ({registered.get('why')})")
    for name in ("report", "policy", "store"):
        if result[name]:
            print(f"{name}: {place(result[name])}")
    if result["alias"]:
        print(f"warning: {result['alias']}")
    if result["failure"] is not None:
        told = result["failure"]
        if result["reasons"]:  # which are the gate's, and stand above
            told = told.replace(": " + "; ".join(result["reasons"]), " (why: above)")
        print(painted(f"\nfailed: {told}"))
    elif result["dagster_runs"]:
        print(f"done in {result['seconds']} s; `make ui` shows it all")
