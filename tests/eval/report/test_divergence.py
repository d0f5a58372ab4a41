"""What the page says of how far the policy has moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from alignment.stages import Request, Result, Stage, execute
from alignment.store import Artifact, Store
from eval.gate.evidence import ReportRequest
from eval.gate.scores import WrongEvidence
from eval.report.answers import divergence_of, nats
from eval.stages.evaluation_report import STAGE

SUMMARY = {
    "prompts": 40,
    "no_room": 2,
    "kl": 1.5,
    "kl_per_token": 0.03,
    "tokens_per_response": 50.0,
    "ended": 0.95,
    "intervals": {"kl": [1.25, 1.75], "kl_per_token": None},
}


class _Measured(Request):
    policy: Artifact
    found: str


@pytest.fixture
def measure(store: Store) -> Callable[..., Artifact]:
    """Commits what was found of a policy."""

    def commit(policy: Artifact, summary: dict[str, Any]) -> Artifact:
        stage = Stage("policy_divergence", 1, _Measured, lambda request, context: Result("d", summary))
        return execute(stage, _Measured(policy=policy, found=str(summary)), store).artifact

    return commit


@pytest.fixture
def asked(commit_checkpoint: Callable[..., Artifact]) -> Callable[[Artifact | None], ReportRequest]:
    def request(divergence: Artifact | None) -> ReportRequest:
        return ReportRequest(
            sft=commit_checkpoint("sft"),
            policy=commit_checkpoint("policy"),
            sft_scores={},
            policy_scores={},
            champion=None,
            champion_scores={},
            gate=None,
            divergence=divergence,
        )

    return request


def test_the_divergence_stands_on_the_page_with_its_intervals(
    store: Store,
    commit_checkpoint: Callable[..., Artifact],
    measure: Callable[..., Artifact],
    asked: Callable[..., ReportRequest],
) -> None:
    request = asked(measure(commit_checkpoint("policy"), SUMMARY))
    found = divergence_of(store, request)
    assert found is not None and (found.responses, found.tokens, found.ended) == (38, "50.0", "95 %")
    assert [(line.value, line.interval) for line in found.lines] == [
        ("1.500", "1.250 to 1.750"),
        ("0.0300", "unknown"),
    ]
    text = (store.fetch(execute(STAGE, request, store).artifact) / "report.html").read_text(encoding="utf-8")
    assert "Length and KL" in text and "1.250 to 1.750" in text and "policy_divergence" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (0.000431, "0.000431"),
        (-0.0123, "−0.0123"),
        (0.25, "0.250"),
        (12.5, "12.500"),
        (None, "unknown"),
    ],
)
def test_a_small_divergence_has_significant_digits(value: float | None, text: str) -> None:
    assert nats(value) == text


def test_without_one_nothing_is_said_and_the_key_is_as_before(
    store: Store,
    commit_checkpoint: Callable[..., Artifact],
    measure: Callable[..., Artifact],
    asked: Callable[..., ReportRequest],
) -> None:
    request = asked(None)
    assert divergence_of(store, request) is None and "divergence" not in request.identity()
    assert divergence_of(store, asked(measure(commit_checkpoint("policy"), {"prompts": 0, "no_room": 0}))) is None
    text = (store.fetch(execute(STAGE, request, store).artifact) / "report.html").read_text(encoding="utf-8")
    assert "Length and KL" not in text
    assert "<dt>Evaluated</dt><dd>not at all</dd>" in text


@pytest.mark.parametrize(("rows", "told"), [("pairs", "pairs"), ("rows", "completions")])
def test_held_out_rows_alone_are_said_to_be_what_was_evaluated(
    rows: str,
    told: str,
    store: Store,
    measure: Callable[..., Artifact],
    asked: Callable[..., ReportRequest],
    commit_checkpoint: Callable[..., Artifact],
) -> None:
    policy = measure(commit_checkpoint("start"), {"held_out": {"accuracy": 0.75, rows: 40}})
    request = asked(None).model_copy(update={"policy": policy})
    text = (store.fetch(execute(STAGE, request, store).artifact) / "report.html").read_text(encoding="utf-8")
    assert f"<dt>Evaluated</dt><dd>on held-out {told} only</dd>" in text


def test_the_divergence_of_another_policy_is_refused(
    store: Store,
    commit_checkpoint: Callable[..., Artifact],
    measure: Callable[..., Artifact],
    asked: Callable[..., ReportRequest],
) -> None:
    with pytest.raises(WrongEvidence, match="of policy another, not of policy"):
        execute(STAGE, asked(measure(commit_checkpoint("another"), SUMMARY)), store)
