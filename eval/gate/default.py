"""What a recipe decides by: its own requirements or those of `gate: default`, and the metric that picks a candidate."""

from __future__ import annotations

from collections.abc import Mapping

from alignment.errors import BadInput
from alignment.recipe.evaluation import Gate, Requirement
from alignment.recipe.recipe import Recipe
from eval.gate.bounded import ANSWERS, BOUNDED, DIVERGENCE, ENDED, LENGTH, NEW_ROWS
from eval.gate.compare import default_margin
from eval.gate.metrics import METRICS, PREFERENCES
from eval.suites import SUITES, Suite, suite_of

MOST_LENGTH = 2.0
"""Answers of twice the SFT checkpoint's length are the length hacking that judges reward."""
LEAST_ENDED = 0.05
SAFETY = {"xstest": "unsafe_refusal"}
"""Suite to the metric that its main metric leaves open: a policy may not stop to refuse, nor refuse what is safe."""


def gate_of(recipe: Recipe, file: str | None = None) -> Gate | None:
    """The gate of a recipe; None for `gate: none`. `file` is the recipe's file, for errors.

    Raises `BadInput` for a metric that could never pass: the recipe does not run its suite, its suite does not have it,
    or no preference pairs are held out. `default` does not ask for held-out preferences, because a policy is trained to
    win them.
    """
    try:
        return _gate_of(recipe)
    except BadInput as error:
        raise BadInput(error.message, file=file or recipe.name, row=error.row, field=error.field) from error


def _gate_of(recipe: Recipe) -> Gate | None:
    if recipe.gate == "default":
        left_out = without_judge(recipe)
        suites = {suite: suite_of(recipe.evals, suite) for suite in recipe.evals.selected()}
        texts = any(suite.output == "generate_until" for suite in suites.values())
        return default_gate({name: suite for name, suite in suites.items() if name not in left_out}, texts)
    if not isinstance(recipe.gate, Gate):
        return None
    for metric in recipe.gate.metrics:
        suite, _, name = metric.partition("/")
        if suite == PREFERENCES:
            why = _no_preferences(recipe, name)
        elif suite in BOUNDED:
            why = _no_bounded(recipe, suite, name)
        else:
            why = _no_metric(recipe, suite, name)
        if why is None and suite in (PREFERENCES, DIVERGENCE) and recipe.gate.metrics[metric].max_ratio is not None:
            why = "the start checkpoint's own value is 0, which has no ratio: bound it by at_most"
        asked = recipe.gate.metrics[metric]
        if why is None and suite == NEW_ROWS and asked.at_least is None and asked.at_most is None:
            why = "it is measured on the champion, not on the policy: bound it by at_least or at_most"
        if why is not None:
            raise BadInput(why, field=f"gate.metrics.{metric}")
    return recipe.gate


def without_judge(recipe: Recipe) -> list[str]:
    """The recipe's suites that only a judge can score, where the recipe has none."""
    return (
        []
        if recipe.judge
        else [suite for suite in recipe.evals.selected() if suite_of(recipe.evals, suite).needs_judge]
    )


def left_out_of_default(recipe: Recipe) -> list[str]:
    """A sentence on the suites that `gate: default` does not ask of, for want of a judge; none for other gates."""
    if recipe.gate != "default" or not (suites := without_judge(recipe)):
        return []
    return [f"gate: default asks nothing of {', '.join(suites)}: the recipe has no judge"]


def _no_bounded(recipe: Recipe, suite: str, name: str) -> str | None:
    if name not in BOUNDED[suite]:
        return f"{suite} has no such metric; write {suite}/ and one of {', '.join(BOUNDED[suite])}"
    if suite == NEW_ROWS:
        return None if recipe.evals.new_rows else "the recipe does not measure new rows: give evals.new_rows"
    if suite == DIVERGENCE:
        return None if recipe.held_out_fraction else "no prompt to sample from is held out: held_out_fraction is 0"
    texts = [name for name in recipe.evals.selected() if suite_of(recipe.evals, name).output == "generate_until"]
    return None if texts else "no suite of the recipe is answered by texts"


def _no_metric(recipe: Recipe, suite: str, name: str) -> str | None:
    """Why no suite of the recipe has this metric; None if a suite may have it."""
    suites = recipe.evals.selected()
    if suite not in suites:
        available = f"evals has {', '.join(suites)}" if suites else "evals is empty"
        return f"the recipe runs no such suite ({available})"
    if suite in SUITES and name not in SUITES[suite].metrics:
        return f"{suite} has no such metric; write {suite}/ and one of {'; '.join(SUITES[suite].metrics)}"
    return None if name else f"no metric is named; write {suite}/ and one of the task's metrics"


def _no_preferences(recipe: Recipe, name: str) -> str | None:
    if not name:
        return f"no metric is named; write {PREFERENCES}/ and one of {', '.join(METRICS)}"
    if name not in METRICS:
        return f"no such metric of held-out pairs (metrics are {', '.join(METRICS)})"
    return None if recipe.held_out_fraction else "no pair is held out: held_out_fraction is 0"


def default_gate(suites: Mapping[str, Suite], texts: bool = True) -> Gate:
    """`no_regression` of every suite's main metric and of XSTest's refusals of what is unsafe, bounds on the answers'
    length and endings if there are `texts`, and `any_improves`; raises `BadInput` without a suite.

    The caller leaves out suites that need a judge if there is none, because they could never pass.
    """
    if not suites:
        raise BadInput("`default` needs a suite that is scored: add a suite under evals, or a judge", field="gate")
    asked = [default_requirement(name, suite) for name, suite in suites.items()]
    metrics = {metric: Requirement(no_regression=margin) for metric, margin in asked}
    for suite, metric in SAFETY.items():
        if suite in suites:
            low, high = suites[suite].scale_of(metric)
            metrics[f"{suite}/{metric}"] = Requirement(no_regression=default_margin(high - low))
    if texts:
        metrics[f"{ANSWERS}/{LENGTH}"] = Requirement(max_ratio=MOST_LENGTH)
        metrics[f"{ANSWERS}/{ENDED}"] = Requirement(no_regression=LEAST_ENDED)
    return Gate(metrics=metrics, any_improves=True)


def default_requirement(name: str, suite: Suite) -> tuple[str, float]:
    """A suite's main metric as `suite/metric`, and the margin that counts as no loss of it."""
    low, high = suite.scale_of(suite.headline)
    return f"{name}/{suite.headline}", default_margin(high - low)


def sweep_metric(recipe: Recipe, gate: Gate | None, file: str | None = None) -> str:
    """The metric, as `suite/metric`, by which a recipe's sweep or soups pick and confirm; `gate` is the recipe's, and
    `file` its file, for errors.

    Raises `BadInput` for a metric that no scored suite has.
    """

    def wrong(told: str, field: str) -> BadInput:
        return BadInput(told, file=file or recipe.name, field=field)

    several, section = recipe.candidates, "sweep" if recipe.sweep else "soups"
    assert several is not None
    scored = [suite for suite in recipe.evals.selected() if suite not in without_judge(recipe)]
    if not scored:
        raise wrong("no suite of the recipe is scored without a judge: give one that is, or a judge", section)
    metric = several.by
    if metric is None:
        improved = [name for name, asked in (gate.metrics if gate else {}).items() if asked.improve is not None]
        of_suites = [name for name in improved if name.partition("/")[0] in scored]
        metric = of_suites[0] if of_suites else default_requirement(scored[0], suite_of(recipe.evals, scored[0]))[0]
    suite, _, name = metric.partition("/")
    if suite not in scored:
        raise wrong(f"{suite} is not scored: the recipe has no judge", f"{section}.by")
    known = suite_of(recipe.evals, suite).metrics
    if name not in known:
        raise wrong(f"{suite} has no such metric; it has {'; '.join(known)}", f"{section}.by")
    return metric
