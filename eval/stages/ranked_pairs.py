"""`ranked_pairs`: sampled answers, scored, and put into preference pairs that a shard takes like any other data.

Pairs of one source of prompts are an artifact of its own, so that no answer is judged twice because prompts beside it
changed. Every answer and prompt that gave no pair is counted with its reason.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field, model_validator

from alignment.data.rows import iter_records, write_records
from alignment.digest import json_digest
from alignment.errors import BadInput, counted, first_few
from alignment.recipe.evaluation import Judge
from alignment.recipe.generate import Pairing, Score
from alignment.stages.candidates import STAGE as CANDIDATES
from alignment.stages.candidates import CandidatesSummary, read_candidates
from alignment.stages.execute import execute
from alignment.stages.preference_shard import PAIRS_FILE, PAIRS_SCHEMA
from alignment.stages.stage import Context, Request, Result, Stage
from alignment.store import Artifact, Commit, Summary
from eval.ranking.pairs import Candidate, Made, delta_pairs, paired, usable
from eval.ranking.scorers import Reading, Scores, Total, added, scored_of
from eval.summaries import Number

log = logging.getLogger(__name__)

SCORES_FILE = "scores.parquet"
SCORES_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("k", pa.int32()),
        ("score", pa.float64()),
        ("parts", pa.string()),
        ("failed", pa.string()),
    ]
)
"""One row a scored answer: `parts` maps each scorer to its own score, as JSON."""


class RankedRequest(Request):
    """`candidates` of one source of prompts each, and for `delta` also `weak`, those of a weaker generator.

    `judge` is given where a scorer asks it; its budgets are for one source of prompts. `reward_model` goes with
    `reading`. `round` is the number that the
    pairs carry.
    """

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"judge", "reward_model", "reading", "weak", "round"})

    candidates: tuple[Artifact, ...] = Field(min_length=1)
    weak: tuple[Artifact, ...] = ()
    scores: tuple[Score, ...] = ()
    length_penalty: float = Field(default=0.0, ge=0)
    judge: Judge | None = None
    reward_model: Artifact | None = None
    reading: Reading | None = None
    pairs: Pairing = "best_worst"
    min_gap: float = Field(default=0.0, ge=0)
    top_k: int = Field(default=2, ge=1)
    seed: int = 0
    round: int = 0

    @model_validator(mode="after")
    def _weak_beside_strong(self) -> RankedRequest:
        if len(self.weak) not in (0, len(self.candidates)) or bool(self.weak) != (self.pairs == "delta"):
            raise ValueError("weak has the candidates of as many sources, and goes with pairs: delta")
        return self


class NoPairs(BadInput):
    """One source's answers that make no pair: how many they are, their scores, why none is in a pair, and what judging
    them cost."""

    def __init__(
        self, message: str, candidates: int, scores: Sequence[Total], left_out: Counter[str], cost: dict[str, Any]
    ) -> None:
        super().__init__(message)
        self.candidates = candidates
        self.scores = scores
        self.left_out = left_out
        self.cost = cost


class RankedSummary(Summary):
    """`pairs` of `prompts` prompts. `left_out` has the reasons for answers and prompts that are in no pair; `scored`
    and `unscored` count answers. Means are of all pairs: `score_gap` of the scores, `longer` the share of pairs whose
    better side is the longer one. `judge` is what judging cost. `without_pairs` names the sources of which no pair was
    made, where others have some, with the reason."""

    prompts: int
    candidates: int
    scored: int
    unscored: int
    pairs: int
    left_out: dict[str, int] = Field(default_factory=dict)
    generator: str = ""
    judge_name: str = ""
    round: int = 0
    mean_score: Number = None
    score_gap: Number = None
    longer: Number = None
    judge: dict[str, Any] = Field(default_factory=dict)
    without_pairs: dict[str, str] = Field(default_factory=dict)


def run(request: RankedRequest, context: Context) -> Result:
    """Writes pairs.parquet and scores.parquet. A source of which no pair is made is named, and the pairs of the others
    are kept; raises `BadInput` if no pair is left."""
    if context.rank:
        return Result("")
    if len(request.candidates) > 1:
        return _several(request, context)
    tally = Tally()
    scorers = Scores(request.scores, request.length_penalty, request.judge, request.reward_model, request.reading)
    prompts = _prompts(context, request.candidates[0])
    answers = {row_id: _usable(rows, tally) for row_id, rows in prompts.items()}
    scores = _scored(scorers, context, prompts, answers)
    if request.scores:
        answers = {row_id: _with_scores(row_id, kept, scores) for row_id, kept in answers.items()}
    weaker = _prompts(context, request.weak[0]) if request.weak else {}
    weak = {row_id: _usable(rows, tally) for row_id, rows in weaker.items()}
    generators = [CandidatesSummary.of(context.store.commit_of(one)).generator for one in _both(request)]
    origin = {
        "generator": generators[0],
        "rejected_generator": generators[-1],
        "judge": scorers.name,
        "round": request.round,
    }
    rows = _pairs(request, prompts, answers, weak, tally)
    write_records(context.out / PAIRS_FILE, PAIRS_SCHEMA, (row | origin for row in rows))
    _write_scores(context.out / SCORES_FILE, scores)
    if not tally.pairs:
        told = f"no pair was made of {counted(len(prompts), 'prompt')}; {_told(tally.left_out)}"
        raise NoPairs(told, sum(map(len, prompts.values())), list(scores.values()), tally.left_out, scorers.bill)
    if tally.left_out:
        log.warning("%d pairs; %s", len(tally.pairs), _told(tally.left_out))
    known = [total.score for total in scores.values() if total.score is not None]
    summary = RankedSummary(
        prompts=tally.prompts,
        candidates=sum(map(len, prompts.values())),
        scored=len(known),
        unscored=len(scores) - len(known),
        pairs=len(tally.pairs),
        left_out=dict(sorted(tally.left_out.items())),
        generator=" > ".join(generators),
        judge_name=scorers.name,
        round=request.round,
        mean_score=sum(known) / len(known) if known else None,
        score_gap=sum(tally.gaps) / len(tally.gaps) if tally.gaps else None,
        longer=tally.longer / len(tally.pairs),
        judge=scorers.bill,
    )
    candidates = [one.digest for one in _both(request)]
    content = {"candidates": candidates, "judge": scorers.name, "round": request.round, "pairs": tally.pairs}
    return Result(json_digest(content), summary)


@dataclass
class Tally:
    """What is counted while the pairs of one source are made: each pair as the data version has it, the score gaps of
    those with scores, the pairs whose better side is the longer one, and the prompts that gave a pair."""

    left_out: Counter[str] = field(default_factory=Counter)
    prompts: int = 0
    pairs: list[list[Any]] = field(default_factory=list)
    longer: int = 0
    gaps: list[float] = field(default_factory=list)

    def count(self, row_id: str, made: Made) -> None:
        """Takes in the pairs of one prompt."""
        self.left_out.update(made.left_out)
        self.prompts += bool(made.pairs)
        for better, worse in made.pairs:
            self.pairs.append([row_id, better.text, worse.text, better.score, worse.score])
            self.longer += better.tokens > worse.tokens
            if better.score is not None and worse.score is not None:
                self.gaps.append(better.score - worse.score)


def _pairs(
    request: RankedRequest,
    prompts: dict[str, list[dict[str, Any]]],
    answers: dict[str, list[Candidate]],
    weak: dict[str, list[Candidate]],
    tally: Tally,
) -> Iterator[dict[str, Any]]:
    """The rows of pairs.parquet, without what is the same in all of them; each prompt is counted before its rows."""
    for row_id, rows in prompts.items():
        made = _made(request, row_id, answers[row_id], weak.get(row_id, []))
        tally.count(row_id, made)
        for better, worse in made.pairs:
            yield {
                "row_id": row_id,
                "form": rows[0]["form"],
                "prompt": rows[0]["prompt"],
                "chosen": better.text,
                "rejected": worse.text,
                "chosen_score": better.score,
                "rejected_score": worse.score,
            }


def _several(request: RankedRequest, context: Context) -> Result:
    """Every source's own artifact, and all their pairs in one file."""
    commits, without = list[Commit](), list[tuple[str, NoPairs]]()
    for place, candidates in enumerate(request.candidates):
        weak = request.weak[place : place + 1]
        one = request.model_copy(update={"candidates": (candidates,), "weak": weak})
        try:
            commits.append(execute(STAGE, one, context.store))
        except NoPairs as error:
            source = _source(context, candidates)
            log.warning("%s: %s", source, error)
            without.append((source, error))
    if not commits:
        told = first_few([f"{source}: {error}" for source, error in without], "; ")
        raise BadInput(f"none of {len(request.candidates)} sources of prompts makes a pair: {told}")
    folders = [context.fetch(commit.artifact) for commit in commits]
    for file, schema in ((PAIRS_FILE, PAIRS_SCHEMA), (SCORES_FILE, SCORES_SCHEMA)):
        write_records(context.out / file, schema, (row for folder in folders for row in iter_records(folder / file)))
    summaries = [RankedSummary.of(commit) for commit in commits]
    left_out: Counter[str] = Counter()
    for counts in (*(summary.left_out for summary in summaries), *(error.left_out for _, error in without)):
        left_out.update(counts)
    lost = [total.score for _, error in without for total in error.scores]
    pairs = sum(summary.pairs for summary in summaries)

    def mean(name: str, weights: str) -> float | None:
        known = [(getattr(one, name), getattr(one, weights)) for one in summaries if getattr(one, name) is not None]
        total = sum(weight for _, weight in known)
        return sum(value * weight for value, weight in known) / total if total else None

    more: dict[str, Any] = {"without_pairs": {name: str(error) for name, error in without}} if without else {}
    summary = RankedSummary(
        prompts=sum(one.prompts for one in summaries),
        candidates=sum(one.candidates for one in summaries) + sum(error.candidates for _, error in without),
        scored=sum(one.scored for one in summaries) + sum(score is not None for score in lost),
        unscored=sum(one.unscored for one in summaries) + lost.count(None),
        pairs=pairs,
        left_out=dict(sorted(left_out.items())),
        generator=summaries[0].generator,
        judge_name=summaries[0].judge_name,
        round=request.round,
        mean_score=mean("mean_score", "scored"),
        score_gap=mean("score_gap", "pairs"),
        longer=mean("longer", "pairs"),
        judge=added(
            [bill for bill in (*(one.judge for one in summaries), *(error.cost for _, error in without)) if bill]
        ),
        **more,
    )
    return Result(json_digest([commit.digest for commit in commits]), summary)


def _source(context: Context, candidates: Artifact) -> str:
    """The name of the source that all prompts of an artifact of candidates come from."""
    return next((str(row["source"]) for row in read_candidates(context.fetch(candidates))), candidates.key[:12])


def _both(request: RankedRequest) -> list[Artifact]:
    return [request.candidates[0], *request.weak[:1]]


def _prompts(context: Context, candidates: Artifact) -> dict[str, list[dict[str, Any]]]:
    """Prompt to its candidates' rows, in the order they were sampled."""
    if candidates.kind != CANDIDATES.kind:
        raise BadInput(f"{candidates.kind} are no candidates")
    prompts: dict[str, list[dict[str, Any]]] = {}
    for row in read_candidates(context.fetch(candidates)):
        prompts.setdefault(row["row_id"], []).append(row)
    return prompts


def _usable(rows: Sequence[dict[str, Any]], tally: Tally) -> list[Candidate]:
    kept, reasons = usable([Candidate(row["text"], row["k"], row["tokens"], row["ended"]) for row in rows])
    tally.left_out.update(reasons)
    return kept


def _with_scores(row_id: str, kept: list[Candidate], scores: dict[tuple[str, int], Total]) -> list[Candidate]:
    return [replace(one, score=scores[row_id, one.k].score, failed=scores[row_id, one.k].failed) for one in kept]


def _scored(
    scorers: Scores, context: Context, prompts: dict[str, list[dict[str, Any]]], answers: dict[str, list[Candidate]]
) -> dict[tuple[str, int], Total]:
    """Prompt and number of every answer that could be in a pair to its score; a prompt's only answer has none."""
    listed = [
        ((row_id, one.k), scored_of(prompts[row_id][0], one.k, one.text, one.tokens))
        for row_id, kept in answers.items()
        for one in kept
    ]
    asked = [(place, answer) for place, answer in listed if len(answers[place[0]]) > 1]
    totals = dict.fromkeys((place for place, _ in listed), Total(None, {}, "its prompt has no other answer"))
    totals |= dict(zip((place for place, _ in asked), scorers.of([one for _, one in asked], context), strict=True))
    return totals


def _made(request: RankedRequest, row_id: str, kept: list[Candidate], weak: list[Candidate]) -> Made:
    if request.pairs == "delta":
        return delta_pairs(kept, weak)
    return paired(kept, request.pairs, request.min_gap, request.top_k, f"{request.seed}/{row_id}")


def _write_scores(path: Path, scores: dict[tuple[str, int], Total]) -> None:
    write_records(
        path,
        SCORES_SCHEMA,
        (
            {"row_id": row_id, "k": k, "score": one.score, "parts": json.dumps(one.parts), "failed": one.failed}
            for (row_id, k), one in scores.items()
        ),
    )


def _told(left_out: Counter[str]) -> str:
    """What was left out, the most frequent first, in one line."""
    return ", ".join(f"{reason}: {count}" for reason, count in left_out.most_common()) or "nothing was left out"


STAGE: Stage[RankedRequest] = Stage(name="ranked_pairs", code_version=1, request=RankedRequest, run=run)
