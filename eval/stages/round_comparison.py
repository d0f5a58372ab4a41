"""`round_comparison`: the policy of a round beside that of the round before, on the same held-out prompts and scorer.

No pair was ever made of these prompts. Whether a round improved decides whether there is a next one.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import ClassVar

import pyarrow as pa
from pydantic import Field

from alignment.data.rows import write_records
from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.recipe import Judge
from alignment.recipe.generate import Score
from alignment.stages import Context, Request, Result, Stage
from alignment.stages.candidates import read_candidates
from alignment.store import Artifact
from eval.ranking.scorers import Reading, Scores, added, scored_of
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
    unscored: Counter[str] = Counter()
    summed = Scores(request.scores, request.length_penalty, request.judge, request.reward_model, request.reading)
    sides: list[dict[str, float]] = []
    bills = []
    for candidates in (request.before, request.after):
        sides.append(_means(candidates, summed, context, unscored))
        bills.append(summed.bill)
    prompts = [row_id for row_id in sides[0] if row_id in sides[1]]
    if not prompts:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in unscored.most_common())
        raise BadInput(f"round {request.round} cannot be compared: no held-out prompt has a score ({reasons})")
    rows = [{"row_id": row_id, "before": sides[0][row_id], "after": sides[1][row_id]} for row_id in prompts]
    write_records(context.out / COMPARISON_FILE, SCHEMA, rows)
    interval = paired_interval([row["after"] - row["before"] for row in rows], prompts, None)
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
        improved=interval.mean.value > 0,
        unscored=dict(sorted(unscored.items())),
        judge_name=summed.name,
        judge=added([bill for bill in bills if bill]),
    )
    log.info("round %d: mean score %.4g, before %.4g, on %d prompts", request.round, after, before, len(prompts))
    return Result(json_digest([request.round, summed.name, [list(row.values()) for row in rows]]), summary)


def _means(
    candidates: Sequence[Artifact], summed: Scores, context: Context, unscored: Counter[str]
) -> dict[str, float]:
    """Prompt to the mean score of its answers; a prompt with an answer that has no score is left out."""
    answers = [
        scored_of(row, row["k"], row["text"], row["tokens"])
        for artifact in candidates
        for row in read_candidates(context.fetch(artifact))
    ]
    values: dict[str, list[float | None]] = defaultdict(list)
    for answer, total in zip(answers, summed.of(answers, context), strict=True):
        values[answer.prompt_id].append(total.score)
        if total.failed is not None:
            unscored[total.failed] += 1
    known = {row_id: [one for one in of if one is not None] for row_id, of in values.items()}
    return {row_id: math.fsum(of) / len(of) for row_id, of in known.items() if len(of) == len(values[row_id])}


STAGE: Stage[RoundRequest] = Stage(name="round_comparison", code_version=1, request=RoundRequest, run=run)
