"""What a gate or a file of published figures asks amiss shows before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.errors import BadInput
from alignment_dags.run.run import run_recipe
from resources.store import ArtifactStore


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"gate": {"metrics": {"mmlu/acc": {"improve": 0.1}}}},
            r"gate\.metrics\.mmlu/acc.*the recipe runs no such suite",
        ),
        ({"gate": "default"}, r"'gate': `default` needs a suite"),
        ({"evals": {"baselines": "nowhere.csv"}}, r"nowhere\.csv.*no such file"),
    ],
)
def test_a_run_refuses_it_before_it_starts(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    embedded = {"embedded": "micro"}
    plain = {"name": "r", "base_model": embedded, "sft": {"dataset": embedded}, "preferences": embedded}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(plain | changes), encoding="utf-8")
    with pytest.raises(BadInput, match=told):
        run_recipe(path, print)
    assert list(ArtifactStore().open().commits("base_model")) == []


def test_a_suite_whose_file_is_not_there_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    """It is read last, when days of training may be over, and may have come by then: so nothing is refused."""
    embedded, data = {"embedded": "micro"}, tmp_path / "questions.jsonl"
    (tmp_path / "question.jsonl").touch()
    plain = {
        "name": "r",
        "base_model": embedded,
        "sft": {"dataset": embedded},
        "evals": {"ifeval": {"data": str(data)}},
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(plain | {"preferences": {"files": ["nowhere.jsonl"]}}), encoding="utf-8")
    said: list[str] = []
    with pytest.raises(BadInput, match=r"field 'preferences\.files'"):
        run_recipe(path, said.append)
    told = f"warning: evals.ifeval.data: not there yet: {data}; did you mean question.jsonl?"
    assert said == [f"{told}; the run ends there if it does not come"]
