"""The stage that answers every selected suite with one loaded checkpoint."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator

from alignment.digest import file_sha256, json_digest
from alignment.errors import BadInput
from alignment.generation.engine import Served
from alignment.generation.workers import Workers, leading, serve
from alignment.logprobs.effort import Ranks
from alignment.recipe.evaluation import BestOf, Generate
from alignment.recipe.forward import TokenPolicy
from alignment.stages.stage import Context, Request, Result, Stage
from alignment.store import Artifact
from eval.answers.answer import Answered, answer_suite
from eval.answers.asking import AnyGenerator, BestOfGenerator
from eval.answers.files import ITEMS_FILE, RESPONSES_FILE, SETTINGS_FILE, write_responses
from eval.ranking.scorers import Reading, RewardScorer
from eval.suites import SuiteSpec, suite_named
from eval.suites.rows import write_records
from eval.summaries import AnsweredCounts, ResponsesSummary

log = logging.getLogger(__name__)

KEPT_FILE = "answers.jsonl"


class ResponsesRequest(Request):
    """A checkpoint and the suites (by name) it answers; build the specs with `SuiteSpec.for_answering`.

    `tokens` is how training wrote its conversations (`TokenPolicy.writing`): prompts are written the same way.
    `sharded` cuts the model over the processes, where there are several. With `best_of` the `reward_model` chooses the
    answers, which it reads by `reading`.
    """

    speed_only: ClassVar[frozenset[str]] = frozenset({"batch_tokens", "sharded"})
    absent_by_default: ClassVar[frozenset[str]] = frozenset({"tokens", "best_of", "reward_model", "reading"})

    checkpoint: Artifact
    suites: dict[str, SuiteSpec]
    seed: int
    precision: str
    batch_tokens: int
    sharded: bool = False
    generate: Generate = Generate()
    tokens: TokenPolicy = TokenPolicy()
    best_of: BestOf | None = None
    reward_model: Artifact | None = None
    reading: Reading | None = None

    @model_validator(mode="after")
    def _chosen_by_a_reward_model(self) -> ResponsesRequest:
        if len({self.best_of is None, self.reward_model is None, self.reading is None}) > 1:
            raise ValueError("best_of, reward_model and reading go together")
        return self


def run(request: ResponsesRequest, context: Context) -> Result:
    """Writes `<suite>/items.jsonl` (id and item) and `<suite>/responses.jsonl`, in the same order, and
    `<suite>/generation.json`, how they were generated.

    Several processes share what is generated. Log-likelihoods are the first one's work, and so is asking a server.
    """
    together = request.generate.kind == "transformers"
    if context.rank and not together:
        return Result("")
    ranks = Ranks(context.rank, context.world_size if together else 1)
    with ranks.together():
        if request.sharded and ranks.world_size > 1:
            return _answer(request, context, None)
        if ranks.rank:
            serve(ranks, context, context.work)
            return Result("")
        with leading(ranks, context.work) as workers:
            return _answer(request, context, workers)


def _answer(request: ResponsesRequest, context: Context, workers: Workers | None) -> Result:
    """The first rank's work. Without workers the model is sharded: then every rank asks all questions and gets all
    answers, and the first one writes them."""
    for name, spec in request.suites.items():
        if name != spec.name:
            raise BadInput(f"suite {spec.name} is named {name} in the request")
        suite_named(name, spec.tasks)
    suites: dict[str, AnsweredCounts] = {}
    digests: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    tokens = 0
    how = (request.precision, request.batch_tokens, request.tokens)
    served = Served(
        context, request.checkpoint, *how, sharded=workers is None, workers=None if workers is None else workers.of
    )
    with served.by(request.generate, context.work / KEPT_FILE) as loaded:
        generator = _choosing(request, context, loaded)
        for name, spec in request.suites.items():
            started = time.monotonic()
            answered = answer_suite(suite_named(name, spec.tasks), spec, request.seed, generator)
            seconds[name] = round(time.monotonic() - started, 3)
            digests[name] = _write(context.out / name, answered)  # what other ranks write is thrown away
            tokens += 0 if isinstance(generator, BestOfGenerator) else answered.tokens
            failed = sum(response.failed is not None for response in answered.responses)
            asked = len(answered.items)
            suites[name] = AnsweredCounts(items=asked, answered=asked - failed, failed=failed)
            log.info("%s: %d answered, %d failed, %.1f s", name, suites[name].answered, failed, seconds[name])
    more: dict[str, Any] = {"tokens_per_rank": workers.per_rank} if workers and workers.per_rank else {}
    if isinstance(generator, BestOfGenerator):
        tokens, more = generator.tokens, more | {"best_of": generator.settings.n, "unscored": generator.unscored}
    # the same texts from two checkpoints are two results: scores must be traceable to the model that answered
    digest = json_digest({"checkpoint": request.checkpoint.digest, "responses": digests})
    summary = ResponsesSummary(
        suites=suites,
        tokens=tokens,
        seconds_per_suite=seconds,
        precision=request.precision,
        generator=request.generate.kind,
        **more,
    )
    return Result(digest, summary)


def _choosing(request: ResponsesRequest, context: Context, generator: Any) -> AnyGenerator:
    """The generator, or with `best_of` the best of several of its answers."""
    if request.best_of is None or request.reward_model is None or request.reading is None:
        return generator  # type: ignore[no-any-return]
    reading = request.reading
    folder = context.fetch(request.reward_model)
    scorer = RewardScorer(folder, reading.tokens, reading.precision, reading.batch_tokens)
    return BestOfGenerator(generator, request.best_of, scorer)


def _write(folder: Path, answered: Answered) -> dict[str, str]:
    folder.mkdir(parents=True)
    write_records(folder / ITEMS_FILE, ({"id": item.id, "item": item.fields} for item in answered.items))
    write_responses(folder / RESPONSES_FILE, answered.responses)
    settings = json.dumps(answered.settings, indent=1, sort_keys=True) + "\n"
    (folder / SETTINGS_FILE).write_text(settings, encoding="utf-8")
    return {name: file_sha256(folder / name)[0] for name in (ITEMS_FILE, RESPONSES_FILE)}


STAGE = Stage("responses", 2, ResponsesRequest, run, device="gpu", elastic=True)
