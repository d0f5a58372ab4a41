"""What a night makes before it trains: the first manifest, and the generated pairs that it pins."""

from __future__ import annotations

from typing import Any

from alignment_dags.run.workspace import Workspace
from resources.pools import load_pools
from tests.assets.test_generation import GENERATE
from tests.assets.test_policy_divergence import recipe
from tests.assets.test_rounds import ROUNDS


def pinned(**changes: Any) -> list[str]:
    return [node.name for node in Workspace(recipe(**changes), load_pools()).pinning]


def test_a_night_pins_the_pairs_of_the_day_with_the_manifest() -> None:
    assert pinned() == ["preference_manifest"]
    generated = ["candidates", "ranked_pairs", "generated_shard", "generated_logprobs"]
    assert pinned(generate=GENERATE) == [*generated, "preference_manifest"]


def test_later_rounds_are_made_with_the_training() -> None:
    assert pinned(rounds=ROUNDS) == ["preference_manifest"]
