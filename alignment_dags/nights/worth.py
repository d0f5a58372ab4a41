"""Whether a night is worth its price: what is new, the smallest change that the night could prove, and what it takes.

A night compares its policy with the champion on the same items, so what it can prove is known before it trains: the
number of items stands in the last report, and how much paired differences vary is what the last reports measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.manifest import SPLIT_FILE, Manifest, read_manifest
from alignment.data.rows import ROWS_FILE, SPLIT_AT, are_held_out, read_columns
from alignment.errors import BadInput, counted, first_few
from alignment.guards import Guard
from alignment.recipe import Gate, Recipe
from alignment.recipe.schedule import Worth
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.preference_manifest import ManifestRequest
from alignment.stages.stage import PolicySummary, first_training
from alignment.store import Artifact, Commit, MissingArtifact, Store
from alignment.store.store import readable_commits
from alignment_dags.nights.night import NightWorth, Provable
from alignment_dags.planner.forecast import History, seconds_of
from alignment_dags.run.plan import plan
from alignment_dags.run.workspace import MANIFEST, Workspace
from eval.gate.compare import MetricComparison
from eval.gate.default import default_requirement, gate_of
from eval.gate.metrics import unit_of
from eval.gate.verdict import champion_threshold
from eval.report.guards import drift_of
from eval.stages.evaluation_report import ReportSummary
from eval.statistics import clusters_to_prove, pooled_spread, smallest_provable
from eval.suites import suite_of
from eval.summaries import NewRowsSummary

REPORTS = 5
"""Reports whose spread is pooled: the spread hardly changes, and an old one is of another evaluation."""
REPORT = "evaluation_report"


def reason_to_sleep(worth: NightWorth, rule: Worth, now: datetime) -> str | None:
    """Why new rows wait, in one line; None if the night trains. Where no row is new, none waits."""
    lacking = lacks(worth, rule)
    if not lacking or not worth.new_rows or cannot_wait(worth, rule, now) is not None:
        return None
    return f"{told(worth)}; {', and '.join(lacking)}"


def reason_to_wake(worth: NightWorth, rule: Worth, now: datetime) -> str | None:
    """Why a night that does not sleep trains, in one line; None if neither a row that is new nor one that is gone is
    why."""
    if not worth.new_rows and not worth.gone_rows:
        return None
    return f"{changed(worth)}: {cannot_wait(worth, rule, now) or 'as much as schedule.worth asks for'}"


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


def cannot_wait(worth: NightWorth, rule: Worth, now: datetime) -> str | None:
    """Why a night trains whatever it lacks: somebody may have withdrawn the rows that are gone, the alarm of a drift
    is red, or rows have waited for as long as the rule lets them. None if nothing of this is so."""
    if worth.gone_rows:
        return "rows that are gone do not wait"
    if rule.wake_on_drift and drifted(worth):
        return "; ".join(("schedule.worth.wake_on_drift", *(one.sentence for one in _drift(worth))))
    if rule.max_wait_days is not None and now - worth.trained_at >= timedelta(days=rule.max_wait_days):
        return f"schedule.worth.max_wait_days: no row waits for more than {rule.max_wait_days:g} days"
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
        new, gone = changed_rows(store, manifest, request)
    except MissingArtifact:  # erased: what was trained on is not known any more
        return None
    seconds, price = price_of(workspace)
    return NightWorth(
        new_rows=new,
        gone_rows=gone,
        trained_rows=PolicySummary.of(first).rows_trained or 0,
        trained_at=datetime.fromisoformat(trained.started_at),
        provable=provable_by(workspace.recipe, reports_of(store, workspace.recipe.name)),
        measured=measured_now(workspace),
        seconds=seconds,
        price=price,
    )


def measured_now(workspace: Workspace) -> NewRowsSummary | None:
    """The champion on the rows that are new now; None where that was not measured, or none of them could be."""
    planned = plan(workspace, workspace.measuring, ())
    summary = NewRowsSummary.of(planned[-1].commit) if planned and planned[-1].commit is not None else None
    return summary if summary is not None and summary.measured else None


def settings_of(request: ManifestRequest) -> object:
    """What a manifest asks for beside its shards. How many rows of each a mix keeps follows from the shards, and how
    many of all a point of a sweep takes is that point's."""
    plain: dict[str, object] = {"shards": {}, "references": {}, "left_out": {}, "mix": (), "train_rows": None}
    return request.model_copy(update=plain).identity()


def changed_rows(store: Store, manifest: Artifact, request: ManifestRequest) -> tuple[int, int]:
    """Rows to train on that a manifest does not have, and those it trains on that the request's shards have no more.

    Only shards that are not in both are read. Rows of a shard that is only late are not gone.
    """
    folder = store.fetch(manifest)
    pinned = read_manifest(folder)
    known = {shard.shard.digest for shard in pinned.shards}
    current = {shard.digest for shard in request.shards.values()}
    late = {name for name, why in request.left_out.items() if "withdrawn" not in why}
    current |= {shard.shard.digest for shard in pinned.shards if shard.name in late}
    added = [_to_train_on(store, one, request) for one in request.shards.values() if one.digest not in known]
    old = _trained_on(folder / SPLIT_FILE, pinned, current)
    new = pa.chunked_array(added, pa.string()).unique()
    if not len(new) and not len(old):
        return 0, 0
    everything = pq.read_table(folder / SPLIT_FILE, columns=["row_id"])["row_id"]
    kept = [_row_ids(store, one) for one in request.shards.values()] if len(old) else []
    still = pa.chunked_array(kept, pa.string())
    return _count_outside(new, everything), _count_outside(old, still)


def _to_train_on(store: Store, shard: Artifact, request: ManifestRequest) -> pa.Array:
    table = read_columns(store.fetch(shard) / ROWS_FILE, "row_id", SPLIT_AT)
    if SPLIT_AT not in table.column_names:  # of an earlier version, which does not say what is held out
        return table["row_id"].combine_chunks()
    apart = are_held_out(table[SPLIT_AT], request.held_out_fraction)
    return table["row_id"].filter(pc.invert(apart)).combine_chunks()


def _row_ids(store: Store, shard: Artifact) -> pa.Array:
    return read_columns(store.fetch(shard) / ROWS_FILE, "row_id")["row_id"].combine_chunks()


def _trained_on(split: object, pinned: Manifest, current: set[str]) -> pa.ChunkedArray:
    """Rows of the training split in shards that are not current any more."""
    gone = [shard.name for shard in pinned.shards if shard.shard.digest not in current]
    these = pc.field("shard").isin(pa.array(gone, pa.string())) & (pc.field("split") == "train")
    return pq.read_table(split, columns=["row_id"], filters=these)["row_id"]


def _count_outside(rows: pa.Array | pa.ChunkedArray, others: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.invert(pc.is_in(rows, value_set=others.unique()))).as_py() or 0)


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


def price_of(workspace: Workspace, since: str = MANIFEST) -> tuple[float | None, float | None]:
    """Seconds of slots and USD of what follows from another artifact of the node `since`, as the last ones took; None
    where nothing is known, and for a price where no pool names one."""
    history = History(workspace.store, workspace.recipe.name)
    follows, seconds, price = {since}, 0.0, 0.0
    for node in workspace.nodes:
        if node.name != since and not follows & set(node.needs):
            continue
        follows.add(node.name)
        # the champion is measured again only when the settings of a suite change
        if node.name.startswith("champion_") or node.adopts or node in workspace.measuring:
            continue
        took = seconds_of(history.latest_first(node), 1).value or 0.0
        seconds += took
        price += took / 3600 * (workspace.pools[node.pool].price_per_hour if node.pool else 0.0)
    return (round(seconds, 1) or None), (round(price, 4) or None)


# `align worth`: the same for a person, at any hour.


def worth_now(workspace: Workspace, now: datetime) -> dict[str, object]:
    """`recipe`, the night's `worth` and what is `told` of it, why it `sleeps` (None: it trains), and why it `wakes`
    (None where it sleeps, no row changed, or the recipe has no `schedule.worth`). Raises `BadInput` where no night
    asks: no policy, or other settings than those of the last training."""
    recipe = workspace.recipe
    worth = worth_of(workspace)
    if worth is None:
        raise BadInput(
            "no training of these settings is there to compare with: the next night trains whatever is new",
            file=recipe.name,
        )
    rule = None if recipe.schedule is None else recipe.schedule.worth
    sleeps = None if rule is None else reason_to_sleep(worth, rule, now)
    return {
        "recipe": recipe.name,
        "worth": worth.model_dump(mode="json"),
        "told": told(worth),
        "sleeps": sleeps,
        "wakes": None if rule is None or sleeps is not None else reason_to_wake(worth, rule, now),
    }
