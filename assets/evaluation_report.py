"""`evaluation_report`: the paired comparison of policy, its baseline and the champion, and the gate's verdict."""

from __future__ import annotations

from pathlib import Path

from alignment.guards import Guard, Guards
from alignment.recipe.evaluation import Gate
from alignment.recipe.recipe import Recipe
from alignment.store import Commit, Store
from assets.building.node import Node, Shown
from assets.building.show import escaped, picture, table
from assets.building.upstream import Upstream
from assets.champion import champion_for
from assets.champion_evals import champion_scores, change_of_judge
from assets.merge import require_one_architecture
from assets.new_rows import NAME as NEW_ROWS
from assets.new_rows import measured
from assets.policy_checkpoint import repeats_of
from assets.policy_divergence import pool_of
from assets.responses import baseline_of
from assets.rounds import comparisons, named
from eval.gate.baselines import PublishedFigure, read_baselines
from eval.gate.default import gate_of, sweep_metric
from eval.gate.evidence import Repeat
from eval.gate.requirement import SHORT_NAMES, baseline_at
from eval.gate.scores import lack_items
from eval.report.guards import REPORT_GUARDS, REPORT_REMEDIES, evaluation_findings
from eval.report.pictures import PICTURES
from eval.stages.evaluation_report import STAGE, ReportRequest, ReportSummary
from eval.summaries import ScoresSummary
from resources.pools import Pools


def evaluation_report(recipe: Recipe, pools: Pools) -> Node:
    """The node of the comparison and the gate's verdict."""
    suites = list(recipe.evals.selected())
    divergence = ("policy_divergence",) if recipe.held_out_fraction else ()
    start, baseline = recipe.start, baseline_of(recipe)

    def request(upstream: Upstream, shard: str | None) -> ReportRequest:
        gate, published = gate_and_baselines(recipe)
        policy = upstream("policy_checkpoint")
        champion = champion_for(upstream, policy)
        their_scores, why_not = champion_scores(recipe, pools, upstream, champion)
        judges = change_of_judge(upstream.store, champion, their_scores)
        scores = {
            model: {suite: upstream(f"{model}_evals/{suite}") for suite in suites} for model in (baseline, "policy")
        }
        compared = [*scores[baseline].values(), *scores["policy"].values(), *their_scores.values()]
        return ReportRequest(
            sft=upstream(start),
            policy=policy,
            sft_scores=scores[baseline],
            policy_scores=scores["policy"],
            champion=champion.policy,
            champion_scores=their_scores,
            gate=gate,
            recipe=recipe.name,
            prices=prices(recipe, pools),
            baselines=published,
            champion_note=" ".join(filter(None, (champion.note, why_not, judges))),
            divergence=upstream("policy_divergence") if divergence else None,
            incomplete=lack_items(upstream.store, compared),
            new_rows=measured(recipe, upstream, policy),
            sweep=upstream("sweep_report") if recipe.candidates else None,
            rounds=comparisons(recipe, upstream),
            repeats=tuple(
                Repeat(
                    policy=upstream(policy.name),
                    scores={suite: upstream(f"{policy.group}policy_evals/{suite}") for suite in suites},
                )
                for policy in repeats_of(recipe)
            ),
        )

    return Node(
        name="evaluation_report",
        phase="train",
        stage=STAGE,
        description="Paired differences with intervals, the gate's verdict with its reasons, and report.html.",
        kinds=frozenset({"html", "json"}),
        needs=(
            start,
            "policy_checkpoint",
            *divergence,
            *((NEW_ROWS,) if recipe.evals.new_rows else ()),
            *(("sweep_report",) if recipe.candidates else ()),
            *(named(number, "comparison") for number in range(2, recipe.rounds.count + 1 if recipe.rounds else 2)),
            *(policy.name for policy in repeats_of(recipe)),
            *(f"{policy.group}policy_evals/{suite}" for policy in repeats_of(recipe) for suite in suites),
            *(f"{model}_evals/{suite}" for model in (baseline, "policy", "champion") for suite in suites),
        ),
        request=request,
        show=show,
        guards=Guards(REPORT_GUARDS, findings, REPORT_REMEDIES),
    )


def findings(store: Store, commit: Commit, deep: bool) -> list[Guard]:
    """What the guards of an evaluation say of a report, from its summary and those of the scores it pins."""
    summary = ReportSummary.of(commit)
    baseline = SHORT_NAMES[baseline_at(store, commit.inputs["sft"])]
    scores: dict[str, dict[str, ScoresSummary]] = {baseline: {}, "policy": {}}
    for place, artifact in commit.inputs.items():
        field, _, suite = place.partition(".")
        if side := {"sft_scores": baseline, "policy_scores": "policy"}.get(field):
            scores[side][suite] = ScoresSummary.of(store.commit_of(artifact))
    return evaluation_findings(summary.verdict, summary.reasons, summary.bounded, scores, summary.contamination)


def gate_and_baselines(recipe: Recipe, file: str | None = None) -> tuple[Gate | None, list[PublishedFigure]]:
    """The recipe's gate and the published figures it names; `file` is the recipe's, for errors.

    Raises `BadInput` for a mistake in the recipe or its files.
    """
    path, gate = recipe.evals.baselines, gate_of(recipe, file)
    require_one_architecture(recipe, file)
    if recipe.candidates is not None:
        sweep_metric(recipe, gate, file)
    return gate, read_baselines(path) if path else []


def prices(recipe: Recipe, pools: Pools) -> dict[str, float]:
    """Stage name to the price of an hour of its pool, for pools that name one."""
    chosen = {
        "sft_checkpoint": recipe.pools.sft,
        "reference_logprobs": recipe.pools.reference,
        # prices are in the key
        **({"policy_logprobs": recipe.pools.reference} if recipe.later_links or recipe.refers_to_champion else {}),
        **({"candidates": recipe.pools.responses} if recipe.generate or recipe.rounds else {}),
        "policy_checkpoint": recipe.pools.policy,
        "policy_divergence": pool_of(recipe),
        "responses": recipe.pools.responses,
        **({NEW_ROWS: recipe.pools.reference} if recipe.evals.new_rows else {}),
    }
    return {stage: price for stage, pool in chosen.items() if (price := pools[pool].price_per_hour)}


def show(commit: Commit, folder: Path) -> Shown:
    """The comparisons as a table, the verdict with its reasons, and the report as files."""
    summary = ReportSummary.of(commit)
    rows = [
        (
            f"{suite} {metric}",
            compared.n,
            f"{compared.baseline:.4f}",
            f"{compared.candidate:.4f}",
            f"{compared.difference:+.4f}" + (" [{:+.4f}, {:+.4f}]".format(*compared.ci95) if compared.ci95 else ""),
            compared.verdict,
        )
        for suite, metrics in summary.comparisons.items()
        for metric, compared in metrics.items()
    ]
    plotted = {
        f"{suite}/{metric}/{name}".replace(",", "_"): getattr(compared, name)
        for suite, metrics in summary.comparisons.items()
        for metric, compared in metrics.items()
        for name in ("baseline", "candidate", "difference", "n")
    }
    baseline = summary.baseline or ("base" if commit.inputs["sft"].kind == "base_model" else "sft")  # of old records
    header = ("metric", "n", SHORT_NAMES[baseline], "policy", "difference [95 %]", "verdict")
    reasons = "\n".join(f"- {escaped(reason)}" for reason in summary.reasons)
    pictures = {title: folder / name for title, name in PICTURES.items() if name in commit.files}
    return Shown(
        plotted=plotted,
        first=("verdict",),
        markdown={
            "gate": f"**{summary.verdict}**\n\n{reasons}",
            "comparison": table(header, rows),
            **{title: picture(title, path.read_bytes()) for title, path in pictures.items()},
        },
        files=[*(folder / name for name in ("report.html", "comparison.json", "verdict.json")), *pictures.values()],
    )
