"""What a recipe names outside of it, where it is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.errors import BadInput
from alignment.recipe.evaluation import Evals
from alignment.recipe.generate import Prompts
from assets.pins import prompt_sources, suite_spec


def test_missing_prompts_are_told_with_their_field_and_a_similar_name(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").touch()
    with pytest.raises(BadInput) as refused:
        list(prompt_sources(Prompts(files=[f"{tmp_path}/prompt.jsonl"]), 0, "rounds.prompts"))
    told = f"{tmp_path}/prompt.jsonl, field 'rounds.prompts.files': no such file; did you mean prompts.jsonl?"
    assert str(refused.value) == told


@pytest.mark.parametrize(
    ("suite", "key", "told"),
    [
        ("gsm8k", "data", "field 'evals.gsm8k.data': no such file; did you mean item.jsonl?"),
        ("gsm8k", "few_shot_data", "field 'evals.gsm8k.few_shot_data': no such file; did you mean item.jsonl?"),
        ("colours", "include_path", "field 'evals.lm_eval.colours.include_path': no such folder; did you mean tasks?"),
    ],
)
def test_a_missing_file_of_a_suite_is_told_with_its_field_and_a_similar_name(
    suite: str, key: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "item.jsonl").touch()
    (tmp_path / "tasks").mkdir()
    path = str(tmp_path / ("task" if key == "include_path" else "items.jsonl"))
    data = {"data": str(tmp_path / "item.jsonl"), "num_fewshot": 1}
    settings = {"data": data["data"], "include_path": path} if key == "include_path" else data | {key: path}
    evals = Evals.model_validate({"lm_eval": {suite: settings}} if key == "include_path" else {suite: settings})
    with pytest.raises(BadInput) as refused:
        suite_spec(suite, evals.selected()[suite])
    assert str(refused.value) == f"{path}, {told}"
