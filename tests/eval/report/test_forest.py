from __future__ import annotations

import pytest

from eval.report.tables import MARGIN, axis


@pytest.mark.parametrize("scale", [1e-4, 0.3, 7.0, 4000.0])
def test_everything_lies_inside_the_plot_and_in_order(scale: float) -> None:
    found = axis([-0.4 * scale, 0.2 * scale, scale])
    places = [found.place(value * scale) for value in (-0.4, 0.0, 0.2, 1.0)]
    assert places == sorted(places) and places[1] == found.zero
    assert places[0] >= MARGIN and places[-1] <= 100 - MARGIN
    assert 3 <= len(found.ticks) <= 7 and "0" in {tick.label for tick in found.ticks}
    assert [tick.at for tick in found.ticks] == sorted(tick.at for tick in found.ticks)


def test_models_that_do_not_differ_are_a_point_on_zero() -> None:
    found = axis([0.0, 0.0])
    assert found.place(0.0) == found.zero == 50.0


def test_ticks_are_labelled_with_their_sign() -> None:
    assert [tick.label for tick in axis([-1.5, 1.5]).ticks] == ["−2", "−1", "0", "+1", "+2"]
