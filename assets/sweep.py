"""The nodes of a sweep: every point's policy with its answers and scores, `sweep_report`, and the winner as the policy.

A point's nodes stand in a group of its name, as `point_beta_0_1/policy_checkpoint`. All points share the reference
log-probs, so a point costs its training and its evaluation only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from alignment.recipe.recipe import Recipe
from alignment.recipe.training import Dpo
from alignment.stages.stage import Request
from alignment.store import Artifact, Commit
from assets.building.node import Node, Shown
from assets.building.show import picture, table
from assets.building.upstream import Upstream
from assets.evals import evals
from assets.policy_checkpoint import Policy, policies_of, policy_checkpoint
from assets.preference_manifest import part_manifest
from assets.responses import baseline_of, responses
from eval.gate.default import gate_of, sweep_metric
from eval.gate.metrics import unit_of
from eval.gate.sweep import SweepRequest, SweepSummary, SweptPoint, described
from eval.stages.sweep_report import PICTURE_FILE, STAGE, SWEEP_FILE
from resources.pools import Pools

REPORT = "sweep_report"


def points_of(recipe: Recipe) -> dict[str, Policy]:
    """The policies of a recipe's sweep by the name of their point, in the recipe's order."""
    assert recipe.sweep is not None
    (plain,) = policies_of(recipe)
    return {name: _point(plain, name, settings) for name, settings in recipe.sweep.points.items()}


def _point(plain: Policy, name: str, point: dict[str, float]) -> Policy:
    changed = {key: value for key, value in point.items() if key != "rows"}
    settings = Dpo.model_validate(plain.settings.model_dump() | changed)
    of_all = replace(plain, name=f"{name}/policy_checkpoint", settings=settings)
    if "rows" not in point:
        return of_all
    most = int(point["rows"])
    return replace(of_all, manifest=f"rows_{most}/preference_manifest", rows=partial(min, most))


def sweep(recipe: Recipe, pools: Pools) -> Iterator[Node]:
    """All nodes of the sweep, and `policy_checkpoint`, which is the point that it picked."""
    assert recipe.sweep is not None
    points = points_of(recipe)
    for most in recipe.sweep.rows:
        yield part_manifest(recipe, f"rows_{most}/preference_manifest", most)
    trained = {name: policy_checkpoint(recipe, pools, policy) for name, policy in points.items()}
    yield from trained.values()
    yield from compared(recipe, pools, points)
    yield winning(trained, "The policy: the point of the sweep that was picked.")


def compared(recipe: Recipe, pools: Pools, points: Iterable[str]) -> Iterator[Node]:
    """The answers and scores of all points and of the baseline, and the report that picks one of them."""
    suites = recipe.evals.selected()
    for name in points:
        yield responses(recipe, pools, f"{name}/policy")
        yield from (evals(recipe, f"{name}/policy", suite, settings) for suite, settings in suites.items())
    yield from (responses(recipe, pools, baseline_of(recipe)), *baseline_evals(recipe))
    yield sweep_report(recipe)


def baseline_evals(recipe: Recipe) -> list[Node]:
    """The nodes of the baseline's scores."""
    return [evals(recipe, baseline_of(recipe), suite, of) for suite, of in recipe.evals.selected().items()]


def sweep_report(recipe: Recipe) -> Node:
    """The node of the table of all points, and of the choice. What is the same policy as another is in it once: an
    average of more champions than there are."""
    assert recipe.candidates is not None
    baseline, settings = baseline_of(recipe), recipe.candidates.points
    suites, models = list(recipe.evals.selected()), (baseline, *(f"{name}/policy" for name in settings))

    def request(upstream: Upstream, shard: str | None) -> SweepRequest:
        def scores(model: str) -> dict[str, Artifact]:
            return {suite: upstream(f"{model}_evals/{suite}") for suite in suites}

        policies = {name: upstream(f"{name}/policy_checkpoint") for name in settings}
        first = {policy.key: name for name, policy in reversed(policies.items())}
        points = {
            name: SweptPoint(settings=settings[name], policy=policy, scores=scores(f"{name}/policy"))
            for name, policy in policies.items()
            if first[policy.key] == name
        }
        metric = sweep_metric(recipe, gate_of(recipe))
        return SweepRequest(sft=upstream(recipe.start), sft_scores=scores(baseline), points=points, metric=metric)

    return Node(
        name=REPORT,
        phase="train",
        stage=STAGE,
        description="All candidates: one is picked on one half of the items, and confirmed on the other.",
        kinds=frozenset({"json"}),
        needs=(
            recipe.start,
            *(f"{name}/policy_checkpoint" for name in settings),
            *(f"{model}_evals/{suite}" for model in models for suite in suites),
        ),
        request=request,
        show=show,
    )


def winning(trained: dict[str, Node], description: str) -> Node:
    """The node of the point that was picked: the same request, whose artifact is there."""
    any_point = next(iter(trained.values()))

    def request(upstream: Upstream, shard: str | None) -> Request:
        picked = SweepSummary.of(upstream.store.commit_of(upstream(REPORT))).picked
        return trained[picked].request(upstream, None)

    return replace(
        any_point,
        name="policy_checkpoint",
        description=description,
        needs=(REPORT, *dict.fromkeys(need for node in trained.values() for need in node.needs)),
        request=request,
        pool=None,
        training=None,
    )


def show(commit: Commit, folder: Path) -> Shown:
    """The table of all points, and the picture."""
    summary = SweepSummary.of(commit)
    unit = unit_of(summary.width)
    header = (
        summary.called[:-1],
        "picking half",
        "confirming half",
        "p, corrected",
        *next(iter(summary.points.values())).means,
    )
    rows = [
        (
            described(point.settings) + (" (picked)" if name == summary.picked else ""),
            unit.format(point.picking.difference, "+"),
            unit.format(point.confirming.difference, "+"),
            "-" if point.corrected is None else f"{point.corrected:.3g}",
            *(f"{mean:.4f}" for mean in point.means.values()),
        )
        for name, point in summary.points.items()
    ]
    plotted = {
        f"{name}/{half}": getattr(point, half).difference
        for name, point in summary.points.items()
        for half in ("picking", "confirming")
    }
    state = "confirmed" if summary.confirmed else "not confirmed"
    image = folder / PICTURE_FILE
    return Shown(
        plotted=plotted | {"confirmed": float(summary.confirmed)},
        first=("picked",),
        markdown={
            "sweep": f"**{state}**: {summary.sentence}",
            "points": table(header, rows),
            "picture": picture("points of the sweep", image.read_bytes()),
        },
        files=[folder / SWEEP_FILE, image],
    )
