"""`align plan`: what is there, what is to be made, and what that takes, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.models.weights import tensors
from alignment.recipe import load_recipe
from alignment_dags.planner.hours import UNMEASURED
from assets.building.upstream import Upstream


@pytest.fixture
def pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes `local` a pool whose device holds so many GiB and costs 36 an hour."""

    def write(memory_gib: float) -> None:
        path = tmp_path / f"pools-{memory_gib}.yaml"
        pool = {"slots": 1, "memory_gib": memory_gib, "price_per_hour": 36.0}
        path.write_text(yaml.safe_dump({"pools": {"local": pool}}), encoding="utf-8")
        monkeypatch.setenv("ALIGN_POOLS", str(path))

    return write


def test_a_plan_tells_what_there_is_and_how_each_number_was_reached(
    small_recipe: dict[str, Any],
    small_data: dict[str, str],
    tmp_path: Path,
    pools: Callable[[float], None],
    bring_up_to_date: Callable[..., Upstream],
    align: Callable[..., tuple[int, dict[str, Any], str]],
) -> None:
    pools(1.0)
    path = tmp_path / "recipe.yaml"
    small_recipe["preferences"]["files"] = [small_data["pairs"]]
    path.write_text(yaml.safe_dump(small_recipe), encoding="utf-8")

    def stages(code: int = 0) -> dict[str, dict[str, Any]]:
        found, told, error = align("plan", str(path))
        assert found == code, error
        return {one["stage"]: one for one in told["stages"]}

    before = stages()
    assert not [name for name, one in before.items() if one["current"]]
    assert before["champion_responses"]["to_make"] == 0, "there is no champion to ask"
    assert before["reference_logprobs"]["to_make"] == 2
    known_later = before["reference_logprobs"]["slot_seconds"]
    assert known_later["value"] is None and known_later["how"].endswith(UNMEASURED)
    assert "config.json in " in before["policy_checkpoint"]["memory_gib"]["how"]

    made = bring_up_to_date(load_recipe(path), only=("base", "shards", "reference"))
    source = Path(small_data["pairs"])
    source.write_text(source.read_text(encoding="utf-8").replace("It is 0.", "It is nil."), encoding="utf-8")
    after = stages()
    parameters = sum(tensor.elements for tensor in tensors(made.store.fetch(made("sft_checkpoint"))))
    for stage, bytes_of_each in {
        "policy_checkpoint": {"weights": 4, "gradients": 4, "moments": 8},
        "reference_logprobs": {"weights": 4},
    }.items():
        parts = after[stage]["memory_parts_gib"]
        assert sum(parts.values()) == pytest.approx(after[stage]["memory_gib"]["value"])
        for part, size in bytes_of_each.items():
            assert parts[part] == pytest.approx(size * parameters / 2**30)
    assert after["policy_checkpoint"]["fits"] is True
    assert (after["sft_checkpoint"]["to_make"], after["sft_checkpoint"]["slot_seconds"]["value"]) == (0, 0)
    sft, made_sft = after["sft_checkpoint"]["taken"], made.store.commit_of(made("sft_checkpoint"))
    assert (sft["seconds"], sft["gpu_seconds"]) == (made_sft.seconds, 0)
    assert sft["peak_memory_gib"] > 0 and before["sft_checkpoint"]["taken"] == {}
    took = [commit.seconds for commit in made.store.commits("preference_shard")]
    remade = after["preference_shard"]
    assert remade["to_make"] > 0
    assert remade["slot_seconds"]["value"] == pytest.approx(remade["to_make"] * sum(took) / len(took))
    scored, passes = after["reference_logprobs"], list(made.store.commits("reference_logprobs"))
    assert scored["to_make"] > 0
    assert scored["slot_seconds"]["how"].startswith("1 of "), "a night scores what changed, and no whole shard"
    seconds = sum(commit.summary["tokens"] / commit.summary["tokens_per_second"] for commit in passes)
    per_row = seconds / (sum(commit.summary["scored"] for commit in passes) / 2)
    assert scored["slot_seconds"]["value"] == pytest.approx(per_row, rel=1e-3)
    assert scored["cost"]["value"] == pytest.approx(scored["slot_seconds"]["value"] / 100)
    assert after["policy_checkpoint"]["cost"]["value"] is None

    pools(1e-6)
    assert stages(code=1)["policy_checkpoint"]["fits"] is False


def test_a_recipe_that_was_rewritten_has_nothing_to_make(
    small_recipe: dict[str, Any],
    tmp_path: Path,
    finished: Callable[..., Upstream],
    align: Callable[..., tuple[int, dict[str, Any], str]],
) -> None:
    path = tmp_path / "recipe.yaml"
    small_recipe["dpo"] |= {"loss": "sigmoid"}
    path.write_text(yaml.safe_dump(small_recipe), encoding="utf-8")
    finished(load_recipe(path))
    code, done, error = align("recipes", "upgrade", str(path))
    assert (code, done["recipes"][0]["changed"]) == (0, True), error
    assert load_recipe(path).training.called == "method: dpo"
    code, planned, error = align("plan", str(path))
    assert code == 0 and {stage["to_make"] for stage in planned["stages"]} == {0}, error
    assert {note.partition(" ")[0] for note in planned["notes"]} == {"optimise.learning_rate"}
