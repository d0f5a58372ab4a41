"""`evaluation_report`: the paired comparison of policy, SFT baseline and champion, and the gate's verdict."""

from __future__ import annotations

from pathlib import Path

from alignment.artifacts import Commit
from alignment.recipe import Gate, Recipe
from assets.champion import champion_beside
from assets.node import Node, Shown
from assets.plots import table
from assets.upstream import Upstream
from eval.report import STAGE, ReportRequest


def evaluation_report(recipe: Recipe) -> Node:
    suites = list(recipe.evals.selected())

    def request(upstream: Upstream, shard: str | None) -> ReportRequest:
        policy = upstream("policy_checkpoint")
        champion = champion_beside(upstream, policy)
        return ReportRequest(
            sft=upstream("sft_checkpoint"),
            policy=policy,
            sft_scores={suite: upstream(f"sft_evals/{suite}") for suite in suites},
            policy_scores={suite: upstream(f"policy_evals/{suite}") for suite in suites},
            champion=champion.policy,
            champion_scores={suite: scores for suite, scores in champion.scores.items() if suite in suites},
            gate=recipe.gate if isinstance(recipe.gate, Gate) else None,
            champion_note=champion.note,
        )

    return Node(
        name="evaluation_report",
        stage=STAGE,
        description="Paired differences with intervals, the gate's verdict with its reasons, and report.html.",
        kinds=frozenset({"html", "json"}),
        needs=(
            "sft_checkpoint",
            "policy_checkpoint",
            *(f"{model}_evals/{suite}" for model in ("sft", "policy") for suite in suites),
        ),
        request=request,
        show=show,
    )


def show(commit: Commit, folder: Path) -> Shown:
    rows = [
        (
            f"{suite} {metric}",
            one["n"],
            f"{one['baseline']:.4f}",
            f"{one['candidate']:.4f}",
            f"{one['difference']:+.4f}" + ("" if one["ci95"] is None else " [{:+.4f}, {:+.4f}]".format(*one["ci95"])),
            one["verdict"],
        )
        for suite, metrics in commit.summary["comparisons"].items()
        for metric, one in metrics.items()
    ]
    plotted = {
        f"{suite}/{metric}/{name}".replace(",", "_"): one[name]
        for suite, metrics in commit.summary["comparisons"].items()
        for metric, one in metrics.items()
        for name in ("baseline", "candidate", "difference", "n")
    }
    header = ("metric", "n", "SFT", "policy", "difference [95 %]", "verdict")
    reasons = "\n".join(f"- {reason}" for reason in commit.summary["reasons"])
    return Shown(
        plotted=plotted,
        markdown={"comparison": table(header, rows), "gate": f"**{commit.summary['verdict']}**\n\n{reasons}"},
        files=[folder / name for name in ("report.html", "comparison.json", "verdict.json")],
    )
