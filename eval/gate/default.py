"""The gate of a recipe: what it writes down, or what `gate: default` stands for."""

from __future__ import annotations

from alignment.errors import BadInput
from alignment.recipe import Gate, Recipe, Requirement
from eval.gate.compare import default_margin
from eval.gate.metrics import METRICS, PREFERENCES
from eval.suites import SUITES, suite_named


def gate_of(recipe: Recipe, file: str | None = None) -> Gate | None:
    """The gate that a recipe's policies stand before; None for `gate: none`. `file` is the recipe's, for errors.

    Raises `BadInput` for a metric of a suite that the recipe does not run, for one that a suite does not have, and for
    one of held-out preferences that there is none of: it could never pass. `default` asks nothing of held-out
    preferences, for a policy was trained to win them.
    """
    try:
        return _gate_of(recipe)
    except BadInput as error:
        raise BadInput(error.message, file=file or recipe.name, row=error.row, field=error.field) from error


def _gate_of(recipe: Recipe) -> Gate | None:
    if recipe.gate == "default":
        judged = recipe.judge is not None
        return default_gate(
            [suite for suite in recipe.evals.selected() if judged or not suite_named(suite).needs_judge]
        )
    if not isinstance(recipe.gate, Gate):
        return None
    for metric in recipe.gate.metrics:
        suite, _, name = metric.partition("/")
        why = _no_preferences(recipe, name) if suite == PREFERENCES else _no_metric(recipe, suite, name)
        if why is not None:
            raise BadInput(why, field=f"gate.metrics.{metric}")
    return recipe.gate


def _no_metric(recipe: Recipe, suite: str, name: str) -> str | None:
    """Why a recipe's suites have no such metric; None where they may."""
    suites = recipe.evals.selected()
    if suite not in suites:
        available = f"evals has {', '.join(suites)}" if suites else "evals is empty"
        return f"no such suite is run ({available})"
    if suite in SUITES and name not in SUITES[suite].metrics:
        return f"{suite} has no such metric; write {suite}/ and one of {'; '.join(SUITES[suite].metrics)}"
    return None if name else f"no metric is named; write {suite}/ and one of the task's"


def _no_preferences(recipe: Recipe, name: str) -> str | None:
    if not name:
        return f"no metric is named; write {PREFERENCES}/ and one of {', '.join(METRICS)}"
    if name not in METRICS:
        return f"no such metric of held-out pairs (there are {', '.join(METRICS)})"
    return None if recipe.held_out_fraction else "no pair is held out: held_out_fraction is 0"


def default_gate(suites: list[str]) -> Gate:
    """No main metric lost by a twentieth of its scale, and one of them better; raises `BadInput` without a suite.

    A suite that needs a judge is named only where there is one: it could never pass.
    """
    if not suites:
        raise BadInput(
            "`default` needs a suite that is scored; give evals, or a judge for those there are", field="gate"
        )
    metrics = {metric: Requirement(no_regression=margin) for metric, margin in map(default_requirement, suites)}
    return Gate(metrics=metrics, any_improves=True)


def default_requirement(suite: str) -> tuple[str, float]:
    """A suite's main metric as `suite/metric`, and the margin that counts as no loss of it."""
    definition = suite_named(suite)
    low, high = definition.scale_of(definition.headline)
    return f"{suite}/{definition.headline}", default_margin(high - low)
