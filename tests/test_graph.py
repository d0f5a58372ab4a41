"""Every change of the asset graph is seen in review."""

from __future__ import annotations

from tests import graph


def test_the_graphs_of_the_shipped_recipes_are_the_recorded_ones() -> None:
    recorded = graph.RECORD.read_text(encoding="utf-8")
    assert graph.graphs().splitlines() == recorded.splitlines(), "after a change that is meant: python -m tests.graph"
