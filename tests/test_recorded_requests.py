"""What version 0.1.0 made from `recipes/quickstart.yaml` is still found: every recorded request has its key today.

The requests are those of one whole quickstart run, by stage and key. A key that moves on purpose is recorded anew, with
a raised code version and a word in `docs/upgrading.md`.
"""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

RECORDED = json.loads(Path(__file__).with_name("recorded_requests.json").read_text(encoding="utf-8"))


def stages() -> dict[str, Any]:
    return {point.name: point.load() for point in entry_points(group="alignment_dags.stages")}


def test_requests_of_every_stage_are_recorded() -> None:
    assert RECORDED.keys() == stages().keys()


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_recorded_request_has_its_recorded_key(name: str) -> None:
    stage = stages()[name]
    keys = {key: stage.key(stage.request.model_validate_json(json.dumps(one))) for key, one in RECORDED[name].items()}
    assert keys == {key: key for key in keys}
