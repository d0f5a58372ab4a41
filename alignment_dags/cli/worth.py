"""Verbs that say what a training would be worth, or was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.errors import counted, first_few
from alignment_dags.cli.arguments import RecipeFile
from alignment_dags.cli.output import AsJson, columns, interval, painted, say, tell

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what it would take.")]


def show_worth(result: dict[str, Any]) -> None:
    """Prints what a night would have, could prove and would take."""
    print(f"{result['recipe']}: {result['told']}")
    rows = [
        (
            one["metric"],
            "unknown" if one["change"] is None else f"{one['change']:.4g}",
            f"{one['margin']:.4g}",
            str(one["clusters"]),
            "-" if one["needed"] is None else str(one["needed"]),
            f"{one['reports']}{'' if one['against'] == 'champion' else ' (with the start checkpoint)'}",
        )
        for one in result["worth"]["provable"]
    ]
    if rows:
        header = ("metric", "smallest provable change", "margin", "items", "items for the margin", "reports")
        print(columns(header, rows))
    if late := result["late"]:
        print(f"not counted are rows of {counted(len(late), 'shard')} not read or scored yet: {first_few(late)}")
    if result["sleeps"]:
        print(f"the next night sleeps{', unless these rows wake it' if late else ''}: {result['sleeps']}")
    elif not (result["worth"]["new_rows"] or result["worth"]["gone_rows"] or late):
        print("no row is new or gone, so rows give no reason to train")
    elif not result["scheduled"]:
        print("no night trains on them, as the recipe has no schedule: `align run` does")
    else:
        print("the next night trains" + (f": {result['wakes']}" if result["wakes"] else ""))


def worth(recipe: RecipeFile, as_json: AsJson = False) -> None:
    """Say what is new since the last training, and the smallest change that a night could prove."""
    from datetime import UTC, datetime

    from alignment.recipe import load_recipe
    from alignment_dags.nights.worth import worth_now
    from alignment_dags.run.workspace import Workspace
    from resources.home import ensure_home
    from resources.pools import load_pools

    ensure_home()
    tell(lambda: worth_now(Workspace(load_recipe(recipe), load_pools()), datetime.now(UTC)), as_json, show_worth)


def show_sources(result: dict[str, Any]) -> None:
    """Prints the value of each source, the worst first."""
    rows = [
        (
            one["source"],
            f"{one['rows']:,}",
            metric,
            str(value["n"]),
            f"{value['difference']:+.4f}",
            interval(value["ci95"]),
            "-" if value["p_holm"] is None else f"{value['p_holm']:.3g}",
        )
        for one in result["sources"]
        for metric, value in one["metrics"].items()
    ]
    if rows:
        print(columns(("source", "rows", "metric", "n", "value", "95 % interval", "p (Holm)"), rows))
        print("value: the policy of all sources minus the one without this source, on the same items")
        print("p: corrected over all sources and metrics; each policy is one training, with training noise of its own")
    for source in result["out_of_date"]:
        print(f"{source}: data or settings changed while the policies were trained; `align sources` measures it again")


def sources(
    recipe: RecipeFile,
    source: Annotated[list[str] | None, typer.Option(help="A source; repeat for more; all by default.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Train as the recipe does, not a LoRA adapter.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Say what each source of the preference data did, by policies that are trained without it."""
    from alignment_dags.registry.sources import sources_of

    tell(lambda: sources_of(recipe, source or [], full, dry_run, say), as_json, show_sources)


def show_certificate(result: dict[str, Any]) -> None:
    """Prints a certificate: each metric over the seeds, and the published figures."""
    from assets.certificate import certificate_in

    if result["certificate"] is None:
        print(f"{result['recipe']}: no certificate of these settings yet")
        return
    certificate = certificate_in(result["certificate"])
    rows = [
        (
            one.metric,
            f"{one.mean:.4f}",
            "-" if one.deviation is None else f"{one.deviation:.4f}",
            "-" if one.low is None else "[{:.4f}, {:.4f}]".format(*one.ends),
            f"{one.own:.4f}",
            one.noise,
        )
        for one in certificate.metrics
    ]
    print(columns(("metric", "mean", "deviation", "one more run, 95 %", "own", "own is … noise"), rows))
    for metric, figure in certificate.figures():
        print(painted(f"{metric}: {figure.model} {figure.value:g} ({figure.source}) {figure.judged}"))
    if widened := certificate.widened():
        print(widened)
    seeds = ", ".join(map(str, certificate.seeds))
    makes = f"; the seed also makes {', '.join(certificate.seed_makes)}" if certificate.seed_makes else ""
    print(f"seeds {seeds}{makes}; kept with policy {certificate.policy[:12]}")


def reproduce(
    recipe: RecipeFile,
    seeds: Annotated[int, typer.Option(help="Runs, each with its seed.", min=2, max=100)] = 5,
    published: Annotated[Path | None, typer.Option(help="CSV of published figures: model,metric,value,source.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The model in it that the recipe reproduces; by default the recipe's name.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Certify a recipe's spread over seeds. Exit 1 if a published figure lies outside of it, or was not evaluated."""
    from alignment_dags.registry.reproduce import reproduce

    result = tell(lambda: reproduce(recipe, seeds, published, model, dry_run, say), as_json, show_certificate)
    if not dry_run and not result["certificate"]["reproduced"]:
        raise typer.Exit(1)
