"""Arena-Hard: hard user prompts whose answers are judged beside a baseline's (Li et al. 2024)."""

from __future__ import annotations

from typing import Any

from eval.suites.suite import Suite


def arena_record(record: dict[str, Any]) -> dict[str, Any]:
    """Questions of v0.1 (`question_id`, `turns` of `content`) and of v2.0 (`uid`, `prompt`) in one form."""
    if "uid" in record and "prompt" in record:
        return record | {"question_id": record["uid"], "turns": [record["prompt"]]}
    turns = record.get("turns")
    if not isinstance(turns, list):
        return record
    return record | {"turns": [turn.get("content") if isinstance(turn, dict) else turn for turn in turns]}


ARENA_HARD = Suite(
    name="arena_hard",
    title="Arena-Hard",
    fields={"question_id": str, "turns": list},
    id_field="question_id",
    metrics=("score",),
    linearised=("score",),
    task=None,
    prepare=arena_record,
)
