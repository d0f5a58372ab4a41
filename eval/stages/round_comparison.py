"""`round_comparison`: the policy of a round beside that of the round before, on the same held-out prompts and scorer.

No pair was ever made of these prompts. Whether a round improved decides whether there is a next one.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import pyarrow as pa
from pydantic import Field

from alignment.data.rows import write_records
from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.recipe.evaluation import Judge
from alignment.recipe.generate import Score
from alignment.stages.candidates import read_candidates
from alignment.stages.stage import Context, Request, Result, Stage
from alignment.store import Artifact
from eval.ranking.scorers import Reading, Scores, scored_of
from eval.statistics import paired_interval
from eval.summaries import RoundSummary

log = logging.getLogger(__name__)

COMPARISON_FILE = "comparison.parquet"
SCHEMA = pa.schema([("row_id", pa.string()), ("before", pa.float64()), ("after", pa.float64())])
"""One row a held-out prompt: the mean score of each policy's answers to it."""


class RoundRequest(Request):
    """Answers to held-out prompts, source by source: those of the policy `before`, and those `after` round `round`."""

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"judge", "reward_model", "reading"})

    before: tuple[Artifact, ...] = Field(min_length=1)
    after: tuple[Artifact, ...] = Field(min_length=1)
    scores: tuple[Score, ...] = Field(min_length=1)
    length_penalty: float = Field(default=0.0, ge=0)
    judge: Judge | None = None
    reward_model: Artifact | None = None
    reading: Reading | None = None
    round: int


def run(request: RoundRequest, context: Context) -> Result:
    """Writes comparison.parquet. Raises `BadInput` if no prompt has a score on both sides."""
    if context.rank:
        return Result("")
    summed = Scores(request.scores, request.length_penalty, request.judge, request.reward_model, request.reading)
    sides, unscored = _means(request, summed, context)
    prompts = [row_id for row_id in sides[0] if row_id in sides[1]]
    if not prompts:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in unscored.most_common())
        raise BadInput(f"round {request.round} cannot be compared: no held-out prompt has a score ({reasons})")
    rows = [{"row_id": row_id, "before": sides[0][row_id], "after": sides[1][row_id]} for row_id in prompts]
    write_records(context.out / COMPARISON_FILE, SCHEMA, rows)
    differences = [sides[1][row_id] - sides[0][row_id] for row_id in prompts]
    interval = paired_interval(differences, prompts, width_of(request.scores, request.length_penalty))
    before, after = (math.fsum(side[row_id] for row_id in prompts) / len(prompts) for side in sides)
    summary = RoundSummary(
        round=request.round,
        prompts=len(prompts),
        before=before,
        after=after,
        difference=interval.mean.value,
        low=interval.low,
        high=interval.high,
        p_value=interval.p_value,
        improved=interval.low is not None and interval.low > 0,
        unscored=dict(sorted(unscored.items())),
        judge_name=summed.name,
        judge=summed.bill,
    )
    log.info("round %d: mean score %.4g, before %.4g, on %d prompts", request.round, after, before, len(prompts))
    return Result(json_digest([request.round, summed.name, [list(row.values()) for row in rows]]), summary)


WIDTHS = {"rubric": 9.0, "judge": 9.0, "exact": 1.0, "instructions": 1.0, "judge_pairs": 1.0}


def width_of(scores: Sequence[Score], length_penalty: float) -> float | None:
    """The largest difference of two answers' scores; None where nothing bounds it, as of a reward model."""
    if length_penalty or any(score.kind not in WIDTHS for score in scores):
        return None
    return math.fsum(score.weight * WIDTHS[score.kind] for score in scores)


def _means(
    request: RoundRequest, summed: Scores, context: Context
) -> tuple[tuple[dict[str, float], dict[str, float]], Counter[str]]:
    """For each side, prompt to the mean score of its answers, and why answers have none: a prompt with such an answer
    is left out. All answers are scored together, so a judge that compares sees those of both policies."""
    answers = [
        (side, replace(answer, name=f"{side}/{answer.name}"))
        for side, candidates in enumerate((request.before, request.after))
        for artifact in candidates
        for row in read_candidates(context.fetch(artifact))
        for answer in [scored_of(row, row["k"], row["text"], row["tokens"])]
    ]
    values: tuple[dict[str, list[float | None]], ...] = (defaultdict(list), defaultdict(list))
    unscored: Counter[str] = Counter()
    for (side, answer), total in zip(answers, summed.of([one for _, one in answers], context), strict=True):
        values[side][answer.prompt_id].append(total.score)
        unscored.update([total.failed] if total.failed is not None else [])
    before, after = ({row_id: _mean(of) for row_id, of in side.items() if None not in of} for side in values)
    return (before, after), unscored


def _mean(scores: Sequence[float | None]) -> float:
    known = [score for score in scores if score is not None]
    return math.fsum(known) / len(known)


STAGE: Stage[RoundRequest] = Stage(name="round_comparison", code_version=1, request=RoundRequest, run=run)
