"""The report's figures as small PNG files, for Dagster and MLflow, which show pictures but no page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.gate.metrics import headline, title_of, unit_of
from eval.gate.scores import Compared
from eval.gate.sweep import Choice, described
from eval.report.curves import curves_png, png_of
from eval.report.tables import Categories

FOREST_FILE = "differences.png"
CATEGORIES_FILE = "categories.png"
TRAINING_FILE = "training.png"
PICTURES = {"differences": FOREST_FILE, "categories": CATEGORIES_FILE, "training curves": TRAINING_FILE}
TRAINING = {"loss": ["loss"], "reward margin": ["margin"], "accuracy": ["accuracy"]}
COLOURS = {"improved": "#0b6e4f", "regressed": "#b3261e", "equivalent": "#3a5a98", "inconclusive": "#8a5a00"}
BEFORE, AFTER = "#b9c0ca", "#3a5a98"


def write_pictures(
    folder: Path, compared: Compared, categories: Sequence[Categories], history: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the pictures for which there is data."""
    if compared.suites:
        (folder / FOREST_FILE).write_bytes(forest_png(compared))
    if categories:
        (folder / CATEGORIES_FILE).write_bytes(categories_png(categories))
    if history:
        (folder / TRAINING_FILE).write_bytes(curves_png(history, TRAINING))


def forest_png(compared: Compared) -> bytes:
    """The suites' main metrics, each with its interval on an axis of its own."""
    from matplotlib.figure import Figure

    rows = [(suite, metrics[headline(suite, metrics)]) for suite, metrics in compared.suites.items()]
    figure = Figure(figsize=(5.6, 0.5 + 0.75 * len(rows)), dpi=100, layout="constrained")
    for axis, (suite, comparison) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        unit = unit_of(comparison.width)
        if comparison.ci95 is not None:
            axis.plot(
                [end * unit.factor for end in comparison.ci95], [0, 0], color=COLOURS[comparison.verdict], linewidth=2.5
            )
        axis.plot([comparison.difference * unit.factor], [0], "o", color=COLOURS[comparison.verdict], markersize=6)
        axis.axvline(0, color="#777777", linewidth=1)
        axis.margins(x=0.12)
        axis.set_ylim(-1, 1)
        axis.set_yticks([])
        axis.tick_params(labelsize=7)
        axis.set_title(
            f"{title_of(suite)}: {unit.format(comparison.difference, '+')} {unit.name}", fontsize=8, loc="left"
        )
        for side in ("left", "right", "top"):
            axis.spines[side].set_visible(False)
    return png_of(figure)


def sweep_png(choice: Choice) -> bytes:
    """The points below each other: a hollow dot on the half that picks, a full one with its interval on the other."""
    from matplotlib.figure import Figure

    unit = unit_of(choice.width)
    figure = Figure(figsize=(5.6, 0.9 + 0.3 * len(choice.points)), dpi=100, layout="constrained")
    axis = figure.subplots()
    for place, (name, point) in enumerate(choice.points.items()):
        colour = AFTER if name == choice.picked else "#8a919c"
        half = point.confirming
        if half.low is not None and half.high is not None:
            axis.plot([half.low * unit.factor, half.high * unit.factor], [place, place], color=colour, linewidth=2.5)
        axis.plot([half.difference * unit.factor], [place], "o", color=colour, markersize=6)
        axis.plot([point.picking.difference * unit.factor], [place], "o", color=colour, markersize=6, fillstyle="none")
    axis.axvline(0, color="#777777", linewidth=1)
    axis.set_yticks(range(len(choice.points)), [described(point.settings) for point in choice.points.values()])
    axis.set_ylim(len(choice.points) - 0.5, -0.5)
    axis.tick_params(labelsize=7)
    difference = f"{choice.metric}: {choice.called[:-1]} minus start, in {unit.name}"
    title = f"{difference}\nhollow: the half that picks; full: the half that confirms"
    figure.suptitle(title, fontsize=8, x=0.01, horizontalalignment="left")
    for side in ("right", "top"):
        axis.spines[side].set_visible(False)
    return png_of(figure)


def categories_png(suites: Sequence[Categories]) -> bytes:
    """Bars by category, with SFT above the policy."""
    from matplotlib.figure import Figure

    most = sum(len(suite.categories) for suite in suites)
    figure = Figure(figsize=(5.6, 0.6 * len(suites) + 0.42 * most), dpi=100, layout="constrained")
    ratios = [len(suite.categories) + 1 for suite in suites]
    axes = figure.subplots(len(suites), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for axis, suite in zip(axes, suites, strict=True):
        names = [category.name for category in suite.categories]
        for index, colour in enumerate((BEFORE, AFTER)):
            bars = [category.bars[index] for category in suite.categories]
            places = [row - 0.2 + 0.4 * index for row in range(len(names))]
            drawn = axis.barh(places, [bar.width for bar in bars], 0.36, color=colour, label=bars[0].model)
            axis.bar_label(drawn, [bar.text for bar in bars], fontsize=7, padding=2)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.invert_yaxis()
        axis.set_xticks([])
        axis.set_xlim(0, 112)
        axis.set_title(f"{suite.title}, {suite.metric} ({suite.scale})", fontsize=8, loc="left")
        axis.legend(fontsize=7, frameon=False, loc="lower right", ncols=2, bbox_to_anchor=(1, 1))
        for side in ("right", "top", "bottom"):
            axis.spines[side].set_visible(False)
    return png_of(figure)
