"""What the numbers of the preference data say, for the report; and their distributions as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alignment.data.overlap import overlap_of, strings_in
from alignment.data.statistics import BIN, Finding, LogpNumbers, contamination
from alignment.stages.stage import ManifestSummary
from alignment.store import Artifact, MissingArtifact, Store
from eval.report.curves import png_of


def preference_findings(
    store: Store, manifest: Artifact, suites: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> list[Finding]:
    """What a manifest's record says of its pairs, and whether they hold pieces of the items of `suites` (by id)."""
    found = ManifestSummary.of(store.commit_of(manifest)).findings()
    items = {
        suite: {name: list(strings_in(item)) for name, item in of_suite.items()} for suite, of_suite in suites.items()
    }
    try:
        overlap = contamination(overlap_of(store, manifest, items))
    except MissingArtifact:  # a manifest whose files were erased
        return found
    return found if overlap is None else [*found, overlap]


CHOSEN, REJECTED, PLAIN = "#3a5a98", "#b3261e", "#777777"


def distributions_png(ratios: Iterable[int], margins: Sequence[float | None], logps: LogpNumbers | None) -> bytes:
    """Pairs by the ratio of their answers' lengths, with the scores' mean margin, and answers by reference log-prob.

    `ratios` and `margins` have a value for each of equal bins of log2(chosen length / rejected length) from -3 to 3.
    """
    from matplotlib.figure import Figure

    counts = list(ratios)
    width = 6 / len(counts)
    places = [-3 + width * (index + 0.5) for index in range(len(counts))]
    known = [(place, margin) for place, margin in zip(places, margins, strict=True) if margin is not None]
    panels = 1 + bool(known) + (logps is not None)
    figure = Figure(figsize=(3.6 * panels, 2.6), dpi=100, layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    lengths = axes.pop(0)
    lengths.bar(places, counts, width, color=[CHOSEN if place > 0 else REJECTED for place in places])
    lengths.set_title("pairs by length: right, the chosen is longer", fontsize=8, loc="left")
    if known:
        scores = axes.pop(0)
        scores.plot(*zip(*known, strict=True), ".-", color=CHOSEN, linewidth=1)
        scores.axhline(0, color=PLAIN, linewidth=1)
        scores.set_title("mean margin of the scores by length", fontsize=8, loc="left")
    for axis in (lengths, *([scores] if known else [])):
        axis.set_xticks([-3, -2, -1, 0, 1, 2, 3], ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
        axis.set_xlabel("length of chosen / rejected", fontsize=8)
        axis.axvline(0, color=PLAIN, linewidth=1)
    if logps is not None:
        axis = axes.pop(0)
        for side, colour in (("chosen", CHOSEN), ("rejected", REJECTED)):
            bins = logps.counts.get(side, [])
            merged = [sum(bins[start : start + 5]) for start in range(0, len(bins), 5)]
            axis.plot([-(index + 0.5) * 5 * BIN for index in range(len(merged))], merged, color=colour, label=side)
        axis.legend(fontsize=7, frameon=False)
        axis.set_title("answers by reference log-prob", fontsize=8, loc="left")
        axis.set_xlabel("nats a token", fontsize=8)
    for axis in figure.axes:
        axis.tick_params(labelsize=7)
        for side in ("right", "top"):
            axis.spines[side].set_visible(False)
    return png_of(figure)
