"""The night costs what the day's change costs: counted in the model's forward, not by our own counters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from alignment.recipe import Recipe, parse_recipe
from assets.building.upstream import Upstream

SCORING = ("shards", "reference")


@contextmanager
def forwarded_ids() -> Iterator[list[int]]:
    """Every token id that goes through any language model's trunk meanwhile, however it is batched."""
    from transformers import LlamaModel

    ids: list[int] = []
    original = LlamaModel.forward

    def forward(self: Any, *arguments: Any, **keywords: Any) -> Any:
        given = keywords["input_ids"] if "input_ids" in keywords else arguments[0]
        ids.extend(given.flatten().tolist())
        return original(self, *arguments, **keywords)

    LlamaModel.forward = forward  # type: ignore[method-assign]
    try:
        yield ids
    finally:
        LlamaModel.forward = original  # type: ignore[method-assign]


def text_of(ids: list[int], recipe: dict[str, Any]) -> str:
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained(recipe["base_model"]["path"]).decode(ids))


def test_one_changed_row_in_one_shard_scores_that_rows_sequences_only(
    small_recipe: dict[str, Any], shard_folder: Path, bring_up_to_date: Callable[..., Upstream]
) -> None:
    recipe = parse_recipe(small_recipe | {"preferences": {"files": [str(shard_folder)]}}, "-", {})
    with forwarded_ids() as first:
        bring_up_to_date(recipe, only=("base", *SCORING))
    everything = text_of(first, small_recipe)
    assert all(f"It is {number}." in everything for number in range(48))
    assert everything.count("No.") >= 48
    shard = shard_folder / "day-1.jsonl"
    rows = [json.loads(line) for line in shard.read_text(encoding="utf-8").splitlines()]
    rows[3]["chosen"][-1]["content"] = "Another answer."
    shard.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    bring_up_to_date.launched.clear()  # type: ignore[attr-defined]

    with forwarded_ids() as again:
        made = bring_up_to_date(recipe, only=("base", *SCORING))

    only = text_of(again, small_recipe)
    assert "Another answer." in only
    assert "No." not in only, "the rejected completion under the same prompt was known"
    assert "It is" not in only
    assert set(re.findall(r"Name \d+", only)) == {"Name 19"}
    assert bring_up_to_date.launched == [  # type: ignore[attr-defined]
        ("shards", ["preference_shard"]),
        ("reference", ["reference_logprobs"]),
    ]
    summary = made.store.commit_of(made("reference_logprobs", "day-1")).summary
    assert (summary["sequences"], summary["scored"]) == (32, 1)


def test_a_sweep_over_beta_and_learning_rate_is_one_reference_pass(
    small_recipe: dict[str, Any], shard_folder: Path, bring_up_to_date: Callable[..., Upstream]
) -> None:
    data = small_recipe | {"preferences": {"files": [str(shard_folder)]}}
    with forwarded_ids() as first:
        bring_up_to_date(parse_recipe(data, "-", {}), only=("base", *SCORING))
    assert first
    points = [(beta, rate) for beta in (0.05, 0.1, 0.3, 0.5) for rate in (1e-5, 1e-4)]
    with forwarded_ids() as again:
        for number, (beta, rate) in enumerate(points, start=1):
            settings = data["dpo"] | {"beta": beta, "learning_rate": rate}
            point = parse_recipe(data | {"name": f"sweep_{number}", "seed": number, "dpo": settings}, "-", {})
            made = bring_up_to_date(point, only=("base", *SCORING))
            assert made("reference_logprobs", "day-0")
    assert again == []


def test_a_renamed_shard_keeps_its_artifacts_and_the_manifest_its_digest(
    small_recipe: dict[str, Any], shard_folder: Path, bring_up_to_date: Callable[..., Upstream]
) -> None:
    recipe = parse_recipe(small_recipe | {"preferences": {"files": [str(shard_folder)]}}, "-", {})
    before = bring_up_to_date(recipe)
    (shard_folder / "day-2.jsonl").rename(shard_folder / "night.jsonl")
    with forwarded_ids() as ids:
        after = bring_up_to_date(recipe)
    assert ids == []
    assert after("reference_logprobs", "night") == before("reference_logprobs", "day-2")
    assert after("preference_manifest").digest == before("preference_manifest").digest
    assert after("policy_checkpoint") == before("policy_checkpoint")


def test_a_shard_without_a_valid_row_fails_by_name_and_the_others_stand(
    small_recipe: dict[str, Any], shard_folder: Path, bring_up_to_date: Callable[..., Upstream]
) -> None:
    import dagster as dg

    (shard_folder / "bad.jsonl").write_text('{"prompt": "p", "chosen": "same", "rejected": "same"}\n', encoding="utf-8")
    recipe: Recipe = parse_recipe(small_recipe | {"preferences": {"files": [str(shard_folder)]}}, "-", {})
    with pytest.raises(dg.Failure, match=r"1 of 4 shards failed, the others are done: bad: .*bad\.jsonl"):
        bring_up_to_date(recipe)
    from resources.store import ArtifactStore

    upstream = Upstream(ArtifactStore().open(), "small")
    assert [shard for shard in ("bad", "day-0", "day-1", "day-2") if upstream.get("preference_shard", shard)] == [
        "day-0",
        "day-1",
        "day-2",
    ]
