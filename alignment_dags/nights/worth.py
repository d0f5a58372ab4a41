"""Whether a night is worth its price: what is new, the smallest change that the night could prove, and what it takes.

A night compares its policy with the champion on the same items, so what it can prove is known before it trains: the
number of items stands in the last report, and how much paired differences vary is what the last reports measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Literal

from alignment.data.hub import HubUnreachable
from alignment.errors import BadInput, counted, first_few
from alignment.guards import Guard
from alignment.recipe import Gate, Recipe
from alignment.recipe.schedule import Schedule, Worth
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.preference_manifest import ManifestRequest
from alignment.stages.stage import PolicySummary, first_training
from alignment.store import Artifact, Commit, MissingArtifact, Store
from alignment.store.store import readable_commits
from alignment_dags.nights.changes import changed_rows, settings_of
from alignment_dags.nights.decide import is_settled
from alignment_dags.nights.night import NightWorth, Provable
from alignment_dags.nights.state import state_of
from alignment_dags.planner.forecast import History, seconds_of
from alignment_dags.run.plan import plan
from alignment_dags.run.upgrade import ACCEPT
from alignment_dags.run.workspace import MANIFEST, Workspace
from assets.building.node import Node, NotNeeded
from assets.building.upstream import Upstream
from eval.gate.bounded import NEW_ROWS, compare_new_rows
from eval.gate.compare import MetricComparison
from eval.gate.default import default_requirement, gate_of
from eval.gate.metrics import unit_of
from eval.gate.verdict import champion_threshold, decide
from eval.report.guards import drift_of
from eval.stages.evaluation_report import ReportSummary
from eval.statistics import clusters_to_prove, pooled_spread, smallest_provable
from eval.suites import suite_of
from eval.summaries import NewRowsSummary

REPORTS = 5
"""Reports whose spread is pooled: the spread hardly changes, and an old one is of another evaluation."""
REPORT = "evaluation_report"


def reason_to_sleep(worth: NightWorth, rule: Worth, next_night: datetime) -> str | None:
    """Why a night does not train on what is new, in one line; None if it does. `next_night` is when the night after it
    begins. Where nothing is new or gone, there is nothing to train on."""
    if not worth.new_rows and not worth.gone_rows:
        return f"{changed(worth)}: nothing to train on is new or gone"
    if worth.refused and not worth.gone_rows:
        return f"{told(worth)}; the gate would refuse whatever is trained on them: {'; '.join(worth.refused)}"
    lacking = lacks(worth, rule)
    if not lacking or cannot_wait(worth, rule, next_night) is not None:
        return None
    return f"{told(worth)}; {', and '.join(lacking)}"


def reason_to_wake(worth: NightWorth, rule: Worth, next_night: datetime) -> str:
    """Why a night that does not sleep trains, in one line."""
    return f"{changed(worth)}: {cannot_wait(worth, rule, next_night) or 'as much as schedule.worth asks for'}"


def sleeps_or_wakes(worth: NightWorth, schedule: Schedule, at: datetime) -> tuple[str | None, str | None]:
    """Why the night at a moment sleeps, or why it wakes; neither where the recipe does not ask."""
    if schedule.worth is None:
        return None, None
    next_night = schedule.next_night(at)
    sleeps = reason_to_sleep(worth, schedule.worth, next_night)
    return sleeps, reason_to_wake(worth, schedule.worth, next_night) if sleeps is None else None


def lacks(worth: NightWorth, rule: Worth) -> list[str]:
    """What a rule asks for and a night does not have, each in a few words."""
    asked = {
        "min_new_rows": rule.min_new_rows or 0,
        "min_new_share": math.ceil((rule.min_new_share or 0) * worth.trained_rows),
    }
    lacking = [f"schedule.worth.{name} asks for {rows:,}" for name, rows in asked.items() if worth.new_rows < rows]
    if rule.provable and (weak := [one for one in worth.provable if not one.is_enough]):
        lacking.append(f"schedule.worth.provable: {'; '.join(map(too_few_items, weak))}")
    return lacking


def cannot_wait(worth: NightWorth, rule: Worth, next_night: datetime) -> str | None:
    """Why a night trains whatever it lacks: somebody may have withdrawn the rows that are gone, the alarm of a drift
    is red and no training went on in spite of it yet, or the night after this would be too late. None if nothing of
    this is so."""
    if worth.gone_rows:
        return "rows that are gone do not wait"
    if rule.wake_on_drift and drifted(worth) and not worth.drift_tried:
        return "; ".join(("schedule.worth.wake_on_drift", *(one.sentence for one in _drift(worth))))
    if rule.max_wait_days is not None and next_night - worth.trained_at > timedelta(days=rule.max_wait_days):
        return f"schedule.worth.max_wait_days: no row waits for more than {counted(rule.max_wait_days, 'day')}"
    return None


def drifted(worth: NightWorth) -> bool:
    """Whether the alarm of a drift is red on the rows that are new now."""
    return any(not finding.passed for finding in _drift(worth))


def _drift(worth: NightWorth) -> list[Guard]:
    return [] if worth.measured is None else drift_of(worth.measured)


def changed(worth: NightWorth) -> str:
    """What is new and what is gone, in a few words."""
    gone = f", {worth.gone_rows:,} gone" if worth.gone_rows else ""
    since = f"since the training of {worth.trained_at:%Y-%m-%d} on {worth.trained_rows:,}"
    return f"{counted(worth.new_rows, 'new row')}{gone} {since}"


def told(worth: NightWorth) -> str:
    """What a night would have, could prove and would take, in one line."""
    parts = [changed(worth)]
    if known := [f"{one.metric} {_size(one, one.change)}" for one in worth.provable if one.change is not None]:
        parts.append(f"the smallest change that a night could prove: {first_few(known)}")
    parts += [finding.sentence for finding in _drift(worth)]
    if worth.seconds is not None:
        price = "" if worth.price is None else f" and {worth.price:.2f}"
        parts.append(f"it would take {worth.seconds:,.0f} s{price}")
    return "; ".join(parts)


def too_few_items(one: Provable) -> str:
    """What a metric whose margin is too small for its items would need."""
    more = (
        "no number of items would be enough" if one.needed is None else f"{counted(one.needed, 'item')} would be enough"
    )
    return f"{one.metric} has a margin of {_size(one, one.margin)}, and {more} instead of {one.clusters:,}"


def _size(one: Provable, value: float | None) -> str:
    unit = unit_of(one.width)
    return f"{unit.format(value)} {unit.name}"


# What is new, by the manifest that was trained on and the one that would be pinned now.


def worth_of(workspace: Workspace) -> NightWorth | None:
    """What a night that trains now would have, could prove and would take.

    None where that is not the question: no policy was trained yet, its manifest is gone, or the settings of the
    manifest are not those of the last training.
    """
    upstream, store = workspace.upstream(), workspace.store
    policy = upstream.get("policy_checkpoint")
    # of rounds the first one trains on the recipe's own rows, and later ones on pairs made for them
    of_rows = policy if workspace.recipe.rounds is None else upstream.get("round_1/policy_checkpoint")
    if policy is None or of_rows is None:
        return None
    trained, first = store.commit_of(policy), first_training(store.commit_of, of_rows)
    node = next(node for node in workspace.nodes if node.name == MANIFEST)
    request = node.request(upstream, None)
    assert isinstance(request, ManifestRequest)
    try:
        manifest = first.inputs["manifest"]
        before = ManifestRequest.model_validate_json(store.read(manifest, REQUEST_FILE))
        if settings_of(before) != settings_of(request):
            return None
        new, gone = changed_rows(store, manifest, request, upstream.withdrawn().rows)
    except MissingArtifact:  # erased: what was trained on is not known any more
        return None
    seconds, price = price_of(workspace)
    measured = measured_now(workspace) if new or gone else None
    return NightWorth(
        new_rows=new,
        gone_rows=gone,
        trained_rows=PolicySummary.of(first).rows_trained or 0,
        trained_at=datetime.fromisoformat(trained.started_at),
        provable=provable_by(workspace.recipe, reports_of(store, workspace.recipe.name)),
        measured=None if measured is None else NewRowsSummary.of(measured),
        drift_tried=measured is not None and _drift_tried(upstream, measured),
        refused=[] if measured is None else refusals(workspace.recipe, store, measured.artifact),
        seconds=seconds,
        price=price,
    )


def measured_now(workspace: Workspace) -> Commit | None:
    """The measurement of the champion on the rows that are new now; None where that was not made, or none of them could
    be measured."""
    planned = plan(workspace, workspace.measuring, ())
    commit = planned[-1].commit if planned else None
    return commit if commit is not None and NewRowsSummary.of(commit).measured else None


def _drift_tried(upstream: Upstream, now: Commit) -> bool:
    """Whether the alarm was red already, for the same champion, on the rows of the last training."""
    before = upstream.get(NEW_ROWS)
    if before is None:
        return False
    then = upstream.store.commit_of(before)
    same = then.inputs["checkpoint"].digest == now.inputs["checkpoint"].digest
    return same and any(not finding.passed for finding in drift_of(NewRowsSummary.of(then)))


def refusals(recipe: Recipe, store: Store, measured: Artifact) -> list[str]:
    """What the gate's own bounds on the champion's numbers say against the new rows. They hold for whatever is trained
    on these, as the numbers are not the policy's."""
    gate = gate_of(recipe)
    asked = {} if gate is None else {name: one for name, one in gate.metrics.items() if name.startswith(f"{NEW_ROWS}/")}
    if gate is None or not asked:
        return []
    bounds = gate.model_copy(update={"metrics": asked, "any_improves": False})
    checks = decide({NEW_ROWS: compare_new_rows(store, measured)}, None, bounds, key="").checks
    return [check.reason for check in checks if check.outcome == "fail"]


# What could be proved, by the spread that earlier reports showed.


def reports_of(store: Store, recipe: str) -> list[ReportSummary]:
    """The recipe's last reports, the latest first, one of each policy."""
    ours = [one for one in readable_commits(store, REPORT) if one.environment.get("recipe") == recipe]
    latest: dict[str, Commit] = {}
    for report in sorted(ours, key=lambda one: one.started_at, reverse=True):
        latest.setdefault(report.inputs["policy"].digest, report)
    return [ReportSummary.of(report) for report in list(latest.values())[:REPORTS]]


def provable_by(recipe: Recipe, reports: Sequence[ReportSummary]) -> list[Provable]:
    """The smallest provable change of each metric that the gate compares, or of every suite's main metric without a
    gate; none without a report.

    The comparisons are those with the champion, or with the start checkpoint where no report has a champion.
    """
    return [_provable(metric, margin, reports) for metric, margin in _margins(gate_of(recipe), recipe, reports).items()]


def _margins(gate: Gate | None, recipe: Recipe, reports: Sequence[ReportSummary]) -> dict[str, float]:
    """Metric to the loss against the champion that the gate allows. Left out are metrics with a scale of no end and no
    margin, and a margin of zero: however many items there are, a policy as good as the champion may look worse."""
    if not reports:
        return {}
    if gate is None:
        scored = {suite for report in reports for suite in report.comparisons}
        return dict(
            default_requirement(suite, suite_of(recipe.evals, suite))
            for suite in recipe.evals.selected()
            if suite in scored
        )
    margins: dict[str, float] = {}
    for metric, asked in gate.metrics.items():
        if asked.no_regression is not None or asked.improve is not None:
            comparison = next(iter(_comparisons(metric, reports)[1]), None)
            margins[metric] = -(champion_threshold(asked, comparison) or 0.0)
    return {metric: margin for metric, margin in margins.items() if margin}


def _comparisons(
    metric: str, reports: Iterable[ReportSummary]
) -> tuple[Literal["champion", "sft"], list[MetricComparison]]:
    """Those with the champion, the latest first; if there are none, those with the start checkpoint."""
    suite, _, name = metric.partition("/")
    sides = [(report.champion or {}, report.comparisons | report.bounded) for report in reports]
    if found := [champion[suite][name] for champion, _ in sides if name in champion.get(suite, {})]:
        return "champion", found
    return "sft", [sft[suite][name] for _, sft in sides if name in sft.get(suite, {})]


def _provable(metric: str, margin: float, reports: Sequence[ReportSummary]) -> Provable:
    against, compared = _comparisons(metric, reports)
    spread = pooled_spread(
        (one.difference_interval(), None if one.p_mcnemar is None else one.gained + one.lost) for one in compared
    )
    clusters = compared[0].clusters if compared else 0
    change = None if spread is None else smallest_provable(spread, clusters)
    enough = change is None or change <= margin
    return Provable(
        metric=metric,
        change=change,
        margin=margin,
        clusters=clusters,
        needed=None if spread is None else clusters if enough else clusters_to_prove(spread, margin),
        reports=len(compared),
        against=against,
        width=compared[0].width if compared else None,
    )


def price_of(workspace: Workspace, since: Collection[str] = (MANIFEST,)) -> tuple[float | None, float | None]:
    """Seconds of slots and USD of other artifacts of the nodes `since` and of what follows from them, every shard of
    it, as the last ones took; None where a part is not known, and for a price where no pool names one."""
    history, upstream = History(workspace.store, workspace.recipe.name), workspace.upstream()
    follows = set(since)
    seconds: list[float | None] = []
    price: list[float | None] = []
    for node in workspace.nodes:
        if node.name not in since and not follows & set(node.needs):
            continue
        follows.add(node.name)
        # the champion is measured again only when the settings of a suite change
        if node.name.startswith("champion_") or node.adopts or node in workspace.measuring:
            continue
        made = history.latest_first(node)
        if not made and _has_nothing_to_make(node, upstream):
            continue
        took = seconds_of(made, len(upstream.shards(workspace.recipe)) if node.partitioned else 1).value
        rate = workspace.pools[node.pool].price_per_hour if node.pool else 0.0
        seconds.append(took)
        price.append(0.0 if not rate else None if took is None else took / 3600 * rate)
    return _sum(seconds, 1), _sum(price, 4)


def _has_nothing_to_make(node: Node, upstream: Upstream) -> bool:
    """Whether a node waits for what is not there yet, such as a champion; False where that is not known."""
    try:
        node.request(upstream, None)
    except NotNeeded:
        return not node.partitioned
    except (LookupError, ValueError, HubUnreachable):  # what it needs is not made, is gone, or cannot be read now
        return False
    return False


def _sum(parts: Sequence[float | None], digits: int) -> float | None:
    known = [part for part in parts if part is not None]
    return round(sum(known), digits) or None if len(known) == len(parts) else None


# `align worth`: the same for a person, at any hour.


def worth_now(workspace: Workspace, now: datetime) -> dict[str, object]:
    """`recipe`, the night's `worth` and what is `told` of it, `late`: shards of the source that are not ready, whose
    rows are not counted; whether nights are `scheduled`, why the next one `sleeps` (None: it trains), and why it
    `wakes` (None where it sleeps, or the recipe has no `schedule.worth`). Raises `BadInput` where rows decide nothing:
    there is no policy, its settings are others, or its training or evaluation did not end."""
    recipe, state = workspace.recipe, state_of(workspace)
    schedule = recipe.schedule
    if state.upgrade:
        raise BadInput(f"the next night waits for {ACCEPT}", file=recipe.name)
    worth = None if state.base or not is_settled(state) else worth_of(workspace)
    if worth is None:
        behind = ", ".join(state.base or state.train)
        why = f"{behind} {'is' if len(state.base or state.train) == 1 else 'are'} to be made, whatever rows are new"
        what = why if behind else "no training of these settings is there to compare with"
        whoever = "no night does, as the recipe has no schedule" if schedule is None else "the next night does"
        raise BadInput(f"{what}: {whoever}", file=recipe.name)
    sleeps, wakes = (None, None) if schedule is None else sleeps_or_wakes(worth, schedule, schedule.next_night(now))
    return {
        "recipe": recipe.name,
        "worth": worth.model_dump(mode="json"),
        "told": told(worth),
        "late": list(state.behind),
        "scheduled": schedule is not None,
        "sleeps": sleeps,
        "wakes": wakes,
    }
