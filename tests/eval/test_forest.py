from __future__ import annotations

import pytest

from eval.forest import MARGIN, WIDTH, forest


@pytest.mark.parametrize("scale", [1e-4, 0.3, 7.0, 4000.0])
def test_everything_lies_inside_the_plot_and_in_order(scale: float) -> None:
    plot = forest(
        ["a", "b"], [0.5 * scale, -0.1 * scale], [(0.2 * scale, scale), (-0.4 * scale, 0.2 * scale)], ["x", "y"]
    )
    first, second = plot.rows
    assert first.low is not None and first.high is not None and second.low is not None
    assert MARGIN <= second.low < plot.zero < first.low < first.x < first.high <= WIDTH - MARGIN
    assert 3 <= len(plot.ticks) <= 8 and "0" in {tick.label for tick in plot.ticks}


def test_models_that_do_not_differ_are_a_point_on_zero() -> None:
    plot = forest(["a", "b"], [0.0, 0.0], [(0.0, 0.0), None], ["equivalent", "inconclusive"])
    assert plot.rows[0].x == plot.rows[1].x == plot.zero
    assert plot.rows[1].low is None
