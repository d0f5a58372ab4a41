"""The gate of a recipe: what it writes down, or what `gate: default` stands for."""

from __future__ import annotations

from alignment.errors import BadInput
from alignment.recipe import Gate, Recipe, Requirement
from eval.preferences import METRICS, PREFERENCES
from eval.scale import default_margin
from eval.suites import suite_named


def gate_of(recipe: Recipe) -> Gate | None:
    """The gate that a recipe's policies stand before; None for `gate: none`.

    Raises `BadInput` for a metric of a suite that the recipe does not run, and for one of held-out preferences that
    there is none of: it could never pass. `default` asks nothing of held-out preferences, for a policy was trained to
    win them.
    """
    if recipe.gate == "default":
        judged = recipe.judge is not None
        return default_gate(
            [suite for suite in recipe.evals.selected() if judged or not suite_named(suite).needs_judge]
        )
    if not isinstance(recipe.gate, Gate):
        return None
    suites = recipe.evals.selected()
    for metric in recipe.gate.metrics:
        suite, _, name = metric.partition("/")
        if suite == PREFERENCES:
            _check_preferences(recipe, metric, name)
        elif suite not in suites:
            there_are = f"evals has {', '.join(suites)}" if suites else "evals is empty"
            raise BadInput(f"no such suite is run ({there_are})", file=recipe.name, field=f"gate.metrics.{metric}")
    return recipe.gate


def _check_preferences(recipe: Recipe, metric: str, name: str) -> None:
    why = None
    if name not in METRICS:
        why = f"no such metric of held-out pairs (there are {', '.join(METRICS)})"
    elif not recipe.held_out_fraction:
        why = "no pair is held out: held_out_fraction is 0"
    if why is not None:
        raise BadInput(why, file=recipe.name, field=f"gate.metrics.{metric}")


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
    found = suite_named(suite)
    low, high = found.scale_of(found.headline)
    return f"{suite}/{found.headline}", default_margin(high - low)
