"""Committed scores, read back and compared as the report does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from alignment.stages import Context, Request, Result, Stage, execute
from alignment.store import Artifact, Store
from eval.gate.evidence import ReportRequest, gather
from eval.grading.alpaca import length_controlled
from eval.grading.arena import linearised
from eval.suites.samples import SAMPLES_FILE, Sample, write_samples

N = 60


class _Responses(Request):
    checkpoint: Artifact


class _Scores(Request):
    responses: Artifact
    suite: str
    metric: str
    values: list[float]


def _write(request: _Scores, context: Context) -> Result:
    names = [str(n) for n in range(len(request.values))]
    samples = [Sample(request.suite, n, n, request.metric, v, "") for n, v in zip(names, request.values, strict=True)]
    write_samples(context.out / SAMPLES_FILE, samples)
    return Result("scores", {"judged": True, "settings": "same"})


@pytest.fixture
def score(store: Store) -> Callable[[Artifact, str, str, list[float]], Artifact]:
    """Commits a suite's values as scores of a checkpoint."""

    def commit(checkpoint: Artifact, suite: str, metric: str, values: list[float]) -> Artifact:
        answered = Stage("responses", 1, _Responses, lambda request, context: Result("answers"))
        responses = execute(answered, _Responses(checkpoint=checkpoint), store).artifact
        request = _Scores(responses=responses, suite=suite, metric=metric, values=values)
        return execute(Stage("scores", 1, _Scores, _write), request, store).artifact

    return commit


def arena(wins: int) -> list[float]:
    """Every fifth question is decided by "much better" in both orders, the others by "better"."""
    played = [6.0 if n % 5 == 0 else 2.0 for n in range(N)]
    return list(linearised({str(n): (most * (n < wins), most) for n, most in enumerate(played)}).values())


def alpaca(wins: int) -> list[float]:
    return length_controlled([float(n < wins) for n in range(N)], [(n * 37) % 400 - 300 for n in range(N)]).values


@pytest.mark.parametrize(
    ("suite", "metric", "values"),
    [("arena_hard", "score", arena), ("alpaca_eval", "length_controlled_win_rate", alpaca)],
)
def test_metrics_of_a_whole_suite_are_compared_though_their_items_leave_the_scale(
    store: Store,
    commit_checkpoint: Callable[..., Artifact],
    score: Callable[[Artifact, str, str, list[float]], Artifact],
    suite: str,
    metric: str,
    values: Callable[[int], list[float]],
) -> None:
    sft, policy = commit_checkpoint("sft"), commit_checkpoint("policy")
    before, after = values(20), values(50)
    assert max(abs(new - old) for old, new in zip(before, after, strict=True)) > 1.0
    request = ReportRequest(
        sft=sft,
        policy=policy,
        sft_scores={suite: score(sft, suite, metric, before)},
        policy_scores={suite: score(policy, suite, metric, after)},
        champion=None,
        champion_scores={},
        gate=None,
    )
    found = gather(store, request).against_sft.suites[suite][metric]
    assert found.difference == pytest.approx((sum(after) - sum(before)) / N) and found.width == 1.0
    assert found.ci95 is not None and 0 < found.ci95[0] < found.ci95[1] < 1 and found.verdict == "improved"
