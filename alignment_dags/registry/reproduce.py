"""`align reproduce`: a recipe run with other seeds, its run-to-run spread, and whether published figures lie in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignment.errors import BadInput, did_you_mean, first_few, no_such
from alignment.recipe import Recipe, load_recipe
from alignment.recipe.evaluation import section_of
from alignment.store import Commit, Store
from alignment_dags.nights.worth import price_of
from alignment_dags.recipes import derived
from alignment_dags.registry.sources import ALONE, Run, Say, first_missing, made, price_told, run_alone, run_each
from alignment_dags.run.workspace import Workspace
from assets.certificate import (
    Certificate,
    Certified,
    Noise,
    NotEvaluated,
    Published,
    about,
    certificate_of,
    keep_certificate,
)
from eval.gate.baselines import WrittenFigure, read_written
from eval.gate.compare import width_by_name
from eval.gate.metrics import METRICS, PREFERENCES, headline
from eval.stages.evaluation_report import ReportSummary
from eval.statistics import repeats
from eval.suites import suite_of
from resources.home import ensure_home
from resources.pools import load_pools
from resources.store import ArtifactStore

NOISE: dict[bool | None, Noise] = {True: "within", False: "outside", None: "unknown"}


def reproduce(
    path: Path, seeds: int, published: Path | None, model: str | None, dry_run: bool, say: Say, run: Run = run_alone
) -> dict[str, Any]:
    """Runs the recipe with `seeds` seeds, its own first, and keeps the certificate with the recipe's policy.

    Figures are those of `model` (by default the recipe's name) in the file `published`, or in the recipe's
    `evals.baselines`, or in baselines/<recipe>.csv beside the recipe. A figure of what the recipe does not measure is
    named and passed over. One that some seed's report lacks is kept as `not_evaluated`. Every seed asks the recipe's
    own questions, where these are not embedded.

    Returns `policies`, `to_train`, `seconds` and `price`, and the `certificate` (with `dry_run` the one that is there,
    None where a policy is to be trained). Raises `BadInput` for a model that the file does not have, and for a figure
    in per cent of a metric whose values are fractions.
    """
    ensure_home()
    recipe = load_recipe(path)
    figures = figures_of(recipe, path, published, model)
    numbers = [recipe.seed + step for step in range(seeds)]
    every = [derived(path, [*ALONE, *with_seed(recipe, number)], f"{recipe.name}_seed_{number}") for number in numbers]
    policies = [made(one) for one in every]
    to_train = policies.count(None)
    lacking = [one for one, policy in zip(every, policies, strict=True) if policy is None]
    # what a seed makes differs from recipe to recipe: of an embedded one the base model as well
    since = first_missing(lacking[-1]) if lacking else ()
    seconds, price = (
        None if part is None else part * to_train for part in price_of(Workspace(recipe, load_pools()), since)
    )
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "policies": len(every),
        "to_train": to_train,
        "seconds": seconds,
        "price": price,
    }
    say(price_told(result))
    if foreign := [one.figure.metric for one in figures if one.figure.metric not in measured_by(recipe)]:
        say(f"published figures that this recipe does not measure: {first_few(foreign)}")
    store = ArtifactStore().open()
    if dry_run:
        own = None if to_train else policies[0]  # what is there of other settings says nothing of these
        return result | {"certificate": None if own is None else about(certificate_of(store, own.digest))}
    run_each(every, say, run)
    by_seed = {number: one.recipe.name for number, one in zip(numbers, every, strict=True)}
    certificate = certify(store, recipe, by_seed, figures)
    keep_certificate(store, certificate)
    return result | {"certificate": about(certificate)}


def with_seed(recipe: Recipe, seed: int) -> list[str]:
    """Changes by which a recipe runs with another seed and asks the questions that it asks with its own.

    The seed also draws the items that a `limit` leaves. Other items would make the certificate's spread that of the
    questions, which is there without any training. Embedded questions are generated from the seed and stay so.
    """
    if seed == recipe.seed:
        return [f"seed={seed}"]  # the requests are then the recipe's own, and what they made is there
    sampled = (
        section_of(name, suite)
        for name, suite in recipe.evals.selected().items()
        if suite.limit is not None and suite.sample_seed is None and not suite.embedded
    )
    return [f"seed={seed}", *(f"{section}.sample_seed={recipe.seed}" for section in sampled)]


def figures_of(recipe: Recipe, path: Path, published: Path | None, model: str | None) -> list[WrittenFigure]:
    """The published figures of what the recipe reproduces."""
    beside = path.parent / "baselines" / f"{recipe.name}.csv"
    file = (
        published or (recipe.evals.baselines and Path(recipe.evals.baselines)) or (beside if beside.is_file() else None)
    )
    if file is None:
        if model is not None:
            raise BadInput("goes with --published, or with evals.baselines in the recipe", field="--model")
        return []
    if published is not None and not published.is_file():
        raise BadInput(no_such("file", published), file=str(published), field="--published")
    known = read_written(file)
    mine = [one for one in known if one.figure.model == (model or recipe.name)]
    if not mine and (model is not None or published is not None):
        names = {one.figure.model for one in known}
        told = did_you_mean(model or recipe.name, names) or f"; it has {', '.join(sorted(names))}"
        raise BadInput(f"has no model '{model or recipe.name}'{told}; --model names one", file=str(file), field="model")
    measured = measured_by(recipe)
    if mine and not any(one.figure.metric in measured for one in mine):
        first = mine[0].figure
        told = f"the recipe measures no {first.metric}{did_you_mean(first.metric, measured)}"
        raise BadInput(f"{told}, nor any other figure of {first.model}", file=str(file), field="metric")
    for one in mine:
        if one.figure.metric in measured:  # what a name tells of a scale is told before anything is trained
            one.refuse_other_scale(_width(recipe, one.figure.metric))
    return mine


def _width(recipe: Recipe, named: str) -> float | None:
    """The width of the scale of `suite/metric`, or of a suite's main metric, as far as the names tell it."""
    suite, _, metric = named.partition("/")
    if suite == PREFERENCES:
        return None if metric == "margin" else 1.0
    metrics = suite_of(recipe.evals, suite).metrics
    return width_by_name(suite, metric or headline(suite, metrics)) if metric or metrics else None


def measured_by(recipe: Recipe) -> set[str]:
    """The names by which a published figure may call what a recipe measures: suites, and their metrics."""
    suites = list(recipe.evals.selected())
    metrics = {f"{suite}/{metric}" for suite in suites for metric in suite_of(recipe.evals, suite).metrics}
    held_out = {PREFERENCES, *(f"{PREFERENCES}/{metric}" for metric in METRICS)} if recipe.held_out_fraction else set()
    return {*suites, *metrics, *held_out}


def certify(
    store: Store, recipe: Recipe, by_seed: dict[int, str], figures: Sequence[WrittenFigure] = ()
) -> Certificate:
    """The certificate of recipes that are the same but for their seeds, whose reports are there; the first is about."""
    reports = {seed: _report(store, name) for seed, name in by_seed.items()}
    summaries = {seed: ReportSummary.of(report) for seed, report in reports.items()}
    policy = store.commit_of(next(iter(reports.values())).inputs["policy"])
    metrics, lacking = certified(summaries, figures)
    return Certificate(
        recipe=recipe.name,
        policy=policy.digest,
        seeds=list(by_seed),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        device=policy.environment.get("device", ""),
        code=policy.environment.get("git", ""),
        seed_makes=[name for name, section in _embedded(recipe).items() if section],
        comparisons=max(1, sum(len(one.published) for one in metrics)),
        metrics=metrics,
        not_evaluated=[
            NotEvaluated(**_about(one), metric=one.figure.metric)
            for one in lacking
            if one.figure.metric in measured_by(recipe)
        ],
    )


def certified(
    summaries: Mapping[int, ReportSummary], figures: Sequence[WrittenFigure] = ()
) -> tuple[list[Certified], list[WrittenFigure]]:
    """Every metric that the reports of all seeds have, compared with the figures that are of it; and the figures that
    are of none of them. The first seed is the recipe's own. Several figures are compared with wider intervals, so that
    where chance alone differs, some figure lies outside with 5 % probability at most."""
    own_seed, own = next(iter(summaries.items()))
    named = {
        f"{suite}/{metric}": {f"{suite}/{metric}", *([suite] if headline(suite, metrics) == metric else [])}
        for suite, metrics in own.comparisons.items()
        for metric in metrics
        if all(metric in summary.comparisons.get(suite, {}) for summary in summaries.values())
    }
    by_metric = {name: [one for one in figures if one.figure.metric in names] for name, names in named.items()}
    lacking = [one for one in figures if not any(one.figure.metric in names for names in named.values())]
    comparisons = len(figures) - len(lacking)
    return [_certified(name, own_seed, summaries, mine, comparisons) for name, mine in by_metric.items()], lacking


def _certified(
    name: str, own_seed: int, summaries: Mapping[int, ReportSummary], figures: Sequence[WrittenFigure], comparisons: int
) -> Certified:
    suite, _, metric = name.partition("/")
    compared = {seed: summary.comparisons[suite][metric] for seed, summary in summaries.items()}
    values = {seed: one.own_of("candidate").mean for seed, one in compared.items()}
    runs, others = repeats(list(values.values())), [value for seed, value in values.items() if seed != own_seed]
    for one in figures:
        one.refuse_other_scale(compared[own_seed].width)
    wider = repeats(list(values.values()), max(1, comparisons))
    return Certified(
        metric=name,
        values=values,
        mean=runs.mean,
        deviation=runs.deviation,
        low=runs.low,
        high=runs.high,
        width=compared[own_seed].width,
        own=values[own_seed],
        noise=NOISE[repeats(others).has(values[own_seed], 1e-12) if others else None],
        published=[
            Published(**_about(one), noise=NOISE[wider.has(one.figure.value, one.half_a_digit)]) for one in figures
        ],
    )


def _about(one: WrittenFigure) -> dict[str, Any]:
    return {"model": one.figure.model, "value": one.figure.value, "source": one.figure.source}


def _report(store: Store, name: str) -> Commit:
    ref = store.read_ref(name, "evaluation_report")
    if ref is None:
        raise BadInput("has no report", file=name)
    return store.commit_of(ref.artifact)


def _embedded(recipe: Recipe) -> dict[str, bool]:
    """What the seed makes beside the course of a training."""
    return {
        "base model": recipe.base_model.embedded is not None,
        "demonstrations": bool(recipe.sft and recipe.sft.dataset and recipe.sft.dataset.embedded),
        "preference data": any(part.embedded for part in recipe.preferences.parts),
        "questions": any(suite.embedded for suite in recipe.evals.selected().values()),
    }
