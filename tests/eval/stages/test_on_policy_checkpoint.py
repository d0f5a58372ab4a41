"""On-policy training: TRL's GRPO on seeded answers and our scorers, as a policy like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from alignment.data.files import pin_file
from alignment.data.sources import PromptSource
from alignment.errors import BadInput
from alignment.recipe import Dpo, TokenPolicy
from alignment.recipe.generate import Score
from alignment.stages import execute
from alignment.stages.policy import ON_POLICY_FILE, ROWS_FILE, DpoRequest, Rollouts
from alignment.stages.preference_manifest import STAGE as MANIFEST
from alignment.stages.preference_manifest import ManifestRequest
from alignment.stages.preference_shard import STAGE as SHARD
from alignment.stages.preference_shard import ShardRequest
from alignment.stages.stage import PolicySummary
from alignment.store import Artifact, Store
from alignment.training.on_policy_trainer import places_of
from eval.stages.on_policy_checkpoint import NOT_TRAINED, STAGE
from tests.alignment.training.test_resume import killed_while_saving

RUBRIC = [{"kind": "regex", "value": ".*".join(["[0-9]"] * count)} for count in range(1, 7)]
"""The more digits an answer has, the better it is; an untrained model writes about two."""
QUICK = {"learning_rate": 3e-3, "batch_size": 4, "micro_batch_size": 8, "precision": "float32", "warmup_ratio": 0.0}


def lines(path: Path, records: list[dict[str, Any]]) -> Any:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return pin_file(str(path))


def message(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


@pytest.fixture
def request_of(
    store: Store, tmp_path: Path, micro_folder: Path, commit_checkpoint: Callable[..., Artifact]
) -> Callable[..., DpoRequest]:
    pairs = [
        {"prompt": message("user", f"Line {n}")}
        | {side: message("assistant", text) for side, text in (("chosen", "abc"), ("rejected", "xyz"))}
        for n in range(40)
    ]
    shard = execute(SHARD, ShardRequest(file=lines(tmp_path / "pairs.jsonl", pairs)), store).artifact
    manifest = execute(MANIFEST, ManifestRequest(shards={"pairs": shard}, held_out_fraction=0.3), store).artifact
    checkpoint = commit_checkpoint("micro", micro_folder)

    def build(
        count: int = 24,
        settings: dict[str, Any] | None = None,
        prompts: list[dict[str, Any]] | None = None,
        **more: Any,
    ) -> DpoRequest:
        records = prompts or [{"prompt": message("user", f"Say {n}"), "rubric": RUBRIC} for n in range(count)]
        source = PromptSource(file=lines(tmp_path / "prompts.jsonl", records))
        given: dict[str, Any] = {"prompts": (source,), "n": 4, "temperature": 1.0, "max_new_tokens": 12}
        given |= {"scores": (Score(kind="rubric"),), "held_out_fraction": 0.3}
        return DpoRequest(
            manifest=manifest,
            checkpoint=checkpoint,
            settings=Dpo(loss="grpo", **QUICK | (settings or {})),
            tokens=TokenPolicy(max_length=128),
            seed=3,
            pass_tokens=4096,
            rollouts=Rollouts(**given | more),
        )

    return build


def test_answers_that_score_above_their_prompts_mean_become_likelier(
    store: Store, request_of: Callable[..., DpoRequest]
) -> None:
    commit = execute(STAGE, request_of(settings={"epochs": 6}), store)
    told = PolicySummary.of(commit)
    assert commit.kind == "policy_checkpoint"
    first, last = told.rollouts["first_score"], told.rollouts["last_score"]
    assert first is not None and last is not None and last > first + 2, "of a scale from 1 to 10"
    assert told.steps and told.rollouts["answers"] == told.steps * 16 and told.rollouts["unscored"] == 0
    assert told.held_out["pairs"] == told.rows_held_out and "loss" not in told.held_out
    rows = pq.read_table(store.fetch(commit.artifact) / ROWS_FILE).to_pylist()
    assert {(row["split"], row["reason"]) for row in rows} == {("held_out", None), ("dropped", NOT_TRAINED)}
    prompts = pq.read_table(store.fetch(commit.artifact) / ON_POLICY_FILE).to_pylist()
    assert len(prompts) == told.rows_trained and set(prompts[0]) == {"row_id", "source", "source_row"}, "no text"
    assert told.rows_trained + sum(told.rows_dropped.values()) == 24


def test_a_run_that_was_killed_goes_on_and_ends_at_the_same_policy(
    store: Store, tmp_path: Path, request_of: Callable[..., DpoRequest]
) -> None:
    """Every answer has a seed of its own: that of the run, the step, the prompt and the answer's number."""
    request = request_of(settings={"save_steps": 2, "epochs": 2})
    shutil.copytree(Path(store.path("")), tmp_path / "twin")
    killed_while_saving("on_policy_checkpoint", request, store, 4, tmp_path)
    resumed = execute(STAGE, request, store)
    undisturbed = execute(STAGE, request, Store(str(tmp_path / "twin")))
    assert PolicySummary.of(resumed).resumed_from_step == 2 and PolicySummary.of(undisturbed).resumed_from_step is None
    assert resumed.digest == undisturbed.digest
    assert resumed.summary["held_out"] == undisturbed.summary["held_out"]
    assert resumed.summary["steps"] == undisturbed.summary["steps"] > 4


def test_the_divergence_from_the_start_counts_where_it_has_a_weight(
    store: Store, request_of: Callable[..., DpoRequest]
) -> None:
    free, near = (
        PolicySummary.of(execute(STAGE, request_of(settings={"epochs": 4}, kl_weight=weight), store))
        for weight in (0.0, 2.0)
    )
    assert "kl" not in free.history[-1] and free.weights_digest != near.weights_digest
    diverged = [record["kl"] for record in near.history if "kl" in record]
    assert diverged[0] == pytest.approx(0.0, abs=1e-6) and diverged[-1] is not None and diverged[-1] > 0
    scores = [told.rollouts["last_score"] for told in (near, free)]
    assert None not in scores and scores[0] < scores[1], "it is held near its start"  # type: ignore[operator]


def test_answers_without_a_score_are_counted_and_move_nothing(
    store: Store, request_of: Callable[..., DpoRequest]
) -> None:
    prompts = [{"prompt": message("user", f"Say {n}")} | ({"rubric": RUBRIC} if n % 2 else {}) for n in range(24)]
    told = PolicySummary.of(execute(STAGE, request_of(prompts=prompts), store))
    unscored, answers = told.rollouts["unscored"], told.rollouts["answers"]
    assert unscored is not None and answers is not None and 0 < unscored < answers and unscored % 4 == 0
    with pytest.raises(
        BadInput, match=r"no sampled answer has a score \(the prompt has no answer to compare with: 16\)"
    ):
        execute(STAGE, request_of(scores=(Score(kind="exact"),)), store)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"count": 3}, "prompts do not fill one step of 4"),
        (
            {"prompts": [{"prompt": message("user", f"Say {n}"), "answer": "123456789"} for n in range(24)]}
            | {"scores": (Score(kind="exact"),)},
            "nothing was learned: the 4 answers to each of",
        ),
        ({"max_new_tokens": 12, "prompts": [{"text": "no prompt"}]}, "no prompt is left to train on (missing field"),
    ],
)
def test_what_cannot_be_learned_from_is_an_error_of_one_line(
    store: Store, request_of: Callable[..., DpoRequest], changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BadInput) as error:
        execute(STAGE, request_of(**changes), store)
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_every_step_has_whole_groups_once_for_each_slice() -> None:
    assert places_of([2, 0, 1], 2, 3, 2) == [2, 2, 2, 0, 0, 0] * 2, "the third prompt fills no step"
