"""What stages say of their results: one type a stage, through which every record is read, older and newer ones too."""

from __future__ import annotations

import json
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from alignment.stages.base_model import BaseModelSummary
from alignment.stages.candidates import CandidatesSummary
from alignment.stages.execute import STAGES
from alignment.stages.sft_dataset import SftDatasetSummary
from alignment.stages.stage import (
    CheckpointSummary,
    ManifestSummary,
    PolicySummary,
    ReferenceSummary,
    SftSummary,
    ShardSummary,
)
from alignment.store import Commit, CorruptArtifact, Summary
from assets.registration import RegistrationSummary
from eval.gate.sweep import SweepSummary
from eval.stages.checkpoint_check import CheckSummary
from eval.stages.evaluation_report import ReportSummary
from eval.stages.ranked_pairs import RankedSummary
from eval.stages.reward_model import RewardSummary
from eval.summaries import DivergenceSummary, NewRowsSummary, ResponsesSummary, RoundSummary, ScoresSummary

PROJECT = Path(__file__).resolve().parents[1]
RECORDED: dict[str, dict[str, Any]] = json.loads((PROJECT / "tests/recorded_summaries.json").read_text())
"""The summary of every stage as the first version with it recorded it: what it wrote must stay readable."""
SUMMARIES: dict[str, type[Summary]] = {
    "base_model": BaseModelSummary,
    "sft_dataset": SftDatasetSummary,
    "sft_checkpoint": SftSummary,
    "preference_shard": ShardSummary,
    "reference_logprobs": ReferenceSummary,
    "preference_manifest": ManifestSummary,
    "policy_checkpoint": PolicySummary,
    "policy_logprobs": ReferenceSummary,
    "on_policy_checkpoint": PolicySummary,
    "merged_checkpoint": PolicySummary,
    "policy_divergence": DivergenceSummary,
    "new_rows": NewRowsSummary,
    "responses": ResponsesSummary,
    "scores": ScoresSummary,
    "evaluation_report": ReportSummary,
    "sweep_report": SweepSummary,
    "checkpoint_check": CheckSummary,
    "registered_model": RegistrationSummary,
    "candidates": CandidatesSummary,
    "ranked_pairs": RankedSummary,
    "reward_model": RewardSummary,
    "round_comparison": RoundSummary,
}
BILL = {"asked": 3, "judgments": 5, "input_tokens": 7, "output_tokens": 2, "usd": None, "refused": {"q1": "HTTP 400"}}
DECISION = {
    "kind": "override",
    "candidate": "c1",
    "registration": None,
    "reason": "demo",
    "by": "ann",
    "at": "2026-01-01",
}
MORE: list[tuple[type[Summary], dict[str, Any]]] = [
    (SftSummary, {"steps": 0, "train_loss": None, "history": [], "adopted": True, "from": {"path": "/models/m"}}),
    (BaseModelSummary, {"weights_digest": "w", "runs_code": {"own.py": "ab"}, "from": {"hub": "a/b", "revision": "c"}}),
    (PolicySummary, {"held_out": {"pairs": 0}, "history": [{"step": 1, "loss": 0.5}], "rows_dropped": {"too long": 2}}),
    (ShardSummary, {"rows": 2, "kind": "unpaired", "withdrawn": 1}),
    (ScoresSummary, {"judged": True, "judge": BILL, "classes": {"refused": {"full": 3}}, "left_out": ["math"]}),
    (DivergenceSummary, {"prompts": 0, "no_room": 0}),
    (RegistrationSummary, {"registered": True, "model": "m", "decision": DECISION, "gate": "fail: x", "version": "3"}),
    (RegistrationSummary, {"registered": False, "why": "gate: none registers nothing"}),
]


def commit(summary: dict[str, Any], stage: str = "some_stage") -> Commit:
    return Commit(
        kind=stage,
        key="k1",
        attempt="a",
        digest="d",
        stage=stage,
        code_version=1,
        inputs={},
        files={},
        summary=summary,
        environment={},
        started_at="2026-01-01T00:00:00+00:00",
        seconds=1.0,
    )


def test_every_stage_has_a_type_for_its_summary() -> None:
    assert {point.name for point in entry_points(group=STAGES)} == set(SUMMARIES) == set(RECORDED)


@pytest.mark.parametrize(
    ("summary", "recorded"), [*((SUMMARIES[stage], recorded) for stage, recorded in RECORDED.items()), *MORE]
)
def test_a_recorded_summary_is_read_and_written_as_it_is(summary: type[Summary], recorded: dict[str, Any]) -> None:
    assert json.dumps(summary.of(commit(recorded)).recorded()) == json.dumps(recorded)


def test_fields_that_an_older_version_did_not_write_are_none_and_are_not_written() -> None:
    older = PolicySummary.of(commit({"rows_trained": 7}))
    assert (older.rows_trained, older.tokens, older.history, older.may_run_code) == (7, None, [], False)
    assert older.recorded() == {"rows_trained": 7}


def test_fields_that_a_newer_version_wrote_are_passed_over_and_a_stage_cannot_write_them() -> None:
    assert ShardSummary.of(commit({"rows": 1, "kind": "paired", "languages": ["en"]})).rows == 1
    with pytest.raises(ValueError, match="languages"):
        ShardSummary(rows=1, kind="paired", languages=["en"])  # type: ignore[call-arg]


def test_a_number_that_is_not_finite_is_recorded_as_null_and_read_as_none() -> None:
    made = commit(PolicySummary(first_loss=float("nan"), held_out={"pairs": 2, "loss": float("inf")}).recorded())
    again = PolicySummary.of(Commit.model_validate_json(made.model_dump_json()))
    assert (again.first_loss, again.held_out) == (None, {"pairs": 2, "loss": None})


def test_a_summary_that_cannot_be_read_is_one_line_that_names_record_and_field() -> None:
    with pytest.raises(CorruptArtifact) as error:
        ReportSummary.of(commit({"verdict": "pass", "reasons": "a text"}, "evaluation_report"))
    told = str(error.value)
    assert told.startswith("the commit record of evaluation_report/k1 cannot be read: field 'summary.reasons': ")
    assert "backup" in told and "\n" not in told


def test_every_checkpoint_is_described_by_the_same_fields() -> None:
    for stage in (BaseModelSummary, SftSummary, PolicySummary):
        assert issubclass(stage, CheckpointSummary)


def test_no_reader_looks_a_field_of_a_summary_up_by_its_name() -> None:
    look_up = re.compile(r"""summary(\[|\.get\()["']""")
    found = [
        f"{path.relative_to(PROJECT)}: {line.strip()}"
        for floor in ("alignment", "eval", "resources", "assets", "alignment_dags")
        for path in (PROJECT / floor).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if look_up.search(line)
    ]
    assert not found
