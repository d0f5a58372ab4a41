from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment.recipe import LmEvalTask, parse_recipe
from assets.graph import nodes_of
from assets.pins import suite_spec
from resources.pools import load_pools

SMALLEST: dict[str, Any] = {
    "name": "small",
    "base_model": {"embedded": "micro"},
    "sft": {"dataset": {"embedded": "micro"}},
    "preferences": {"embedded": "micro"},
}


def test_every_task_of_lm_eval_is_a_suite_of_both_models() -> None:
    tasks = {"mmlu": {"data": "mmlu.jsonl", "num_fewshot": 5}, "arc_challenge": {"hub": "allenai/ai2_arc"}}
    recipe = parse_recipe(SMALLEST | {"evals": {"gsm8k": {"embedded": "micro"}, "lm_eval": tasks}}, "r", {})
    names = [node.name for node in nodes_of(recipe, load_pools())]
    for model in ("sft", "policy"):
        evals = [name for name in names if name.startswith(f"{model}_evals/")]
        assert evals == [f"{model}_evals/{suite}" for suite in ("gsm8k", "mmlu", "arc_challenge")]


def test_files_are_pinned_by_content(tmp_path: Path) -> None:
    for name in ("test", "dev"):
        (tmp_path / name).write_text(name)
    task = LmEvalTask(data=str(tmp_path / "test"), few_shot_data=str(tmp_path / "dev"), limit=7, chat_template=False)
    spec = suite_spec("mmlu", task)
    assert spec.data is not None and spec.few_shot_data is not None
    assert spec.data.sha256 != spec.few_shot_data.sha256
    assert (spec.hub, spec.limit, spec.num_fewshot, spec.chat_template) == (None, 7, None, False)


def test_the_seed_of_a_sample_is_a_setting_of_its_own_and_absent_where_the_recipes_counts(tmp_path: Path) -> None:
    (tmp_path / "test").write_text("test")
    task = LmEvalTask(data=str(tmp_path / "test"), limit=7)
    plain, seeded = (suite_spec("mmlu", one) for one in (task, task.model_copy(update={"sample_seed": 0})))
    assert "sample_seed" not in plain.model_dump() and "sample_seed" not in task.model_dump()
    assert seeded.sample_seed == 0 and seeded.digest() != plain.digest()
    with pytest.raises(ValueError, match="sample_seed goes with limit"):
        LmEvalTask(data="test", sample_seed=0)


def test_a_data_set_on_the_hub_is_pinned_to_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    asked: list[str | None] = []

    class Info:
        sha = "b" * 40

    def info(self: HfApi, name: str, revision: str | None = None) -> Info:
        asked.append(revision)
        return Info()

    monkeypatch.setattr(HfApi, "dataset_info", info)
    task = LmEvalTask(hub="cais/mmlu", config="all", few_shot_split="dev", num_fewshot=5)
    spec = suite_spec("mmlu", task)
    assert spec.hub is not None and spec.few_shot_hub is not None
    assert (spec.hub.revision, spec.hub.split, spec.few_shot_hub.split) == ("b" * 40, "test", "dev")
    pinned = suite_spec("mmlu", task.model_copy(update={"revision": "c" * 40}))
    assert pinned.hub is not None and pinned.hub.revision == "c" * 40
    assert asked == [None, None]
    assert pinned.digest() != spec.digest()
