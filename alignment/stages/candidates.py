"""`candidates`: several answers to each prompt, sampled from one model and seeded prompt by prompt.

A source of prompts is an artifact of its own: several are made one after the other with one loaded model, and a source
that changed makes only its own anew. Within a source, answers are kept part by part, so that a kill loses one part.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field, model_validator

from alignment.data.mixing import place_in_draw
from alignment.data.overlap import item_texts
from alignment.data.rows import encode, form_of, iter_records, write_records
from alignment.data.sources import PromptSource, SuiteItems
from alignment.data.validate import QUARANTINE_FILE, most_common, reason_counts, write_quarantine
from alignment.digest import json_digest
from alignment.errors import BadInput, first_few
from alignment.generation.engine import AnyGenerator, Served, shared_server
from alignment.generation.generator import Answer, Generator, Sampling, as_trained
from alignment.generation.prompts import Items, Prompt, Reading, name_of, prompt_of, records_of
from alignment.generation.workers import Workers, leading, serve
from alignment.logprobs.effort import Ranks
from alignment.progress import ProgressLog
from alignment.recipe.evaluation import Generate
from alignment.recipe.forward import TokenPolicy
from alignment.stages.execute import execute
from alignment.stages.stage import Context, Request, Result, Stage
from alignment.store import Artifact, Commit, Store, Summary
from alignment.store.erase import current_erasure

log = logging.getLogger(__name__)

CANDIDATES_FILE = "candidates.parquet"
ANSWERS_FILE = "answers.jsonl"
PART_PROMPTS = 64
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("form", pa.string()),
        ("prompt", pa.string()),
        ("about", pa.string()),
        ("source", pa.string()),
        ("source_row", pa.int64()),
        ("k", pa.int32()),
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("ended", pa.bool_()),
    ]
)
"""One row a candidate: `row_id` is the prompt's, `about` what verifies an answer to it, `k` the number of the candidate
from 0, `ended` whether it ended by itself."""


class CandidatesRequest(Request):
    """`n` answers to each prompt of the sources from `checkpoint`, each sampled with a seed of its own: that of the
    request, the prompt's id and the answer's number.

    Kept out are prompts that the hash of `held_out_fraction` holds out, that hold an item of `suites`, that were
    `withdrawn` (sorted ids), and those of other portions (`portion` k of n). With `held_out` the prompts are those that
    the hash holds out and no others: what is measured on them is never trained on. `generator` is the name that
    candidates carry, with the first digits of the checkpoint. `checkpoints` has one for each source, where sources were
    sampled from different ones. `tokens` is how training writes its prompts (`TokenPolicy.writing`).
    """

    speed_only: ClassVar[frozenset[str]] = frozenset({"batch_tokens"})
    absent_by_default: ClassVar[frozenset[str]] = frozenset(
        {"withdrawn", "suites", "portion", "max_prompts", "held_out", "checkpoints"}
    )

    checkpoint: Artifact
    prompts: tuple[PromptSource, ...] = Field(min_length=1)
    n: int = Field(ge=1)
    temperature: float = Field(ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(ge=1)
    seed: int
    precision: str
    batch_tokens: int
    generator: str = ""
    generate: Generate = Generate()
    tokens: TokenPolicy = TokenPolicy()
    held_out_fraction: float = Field(default=0.0, ge=0, lt=1)
    held_out: bool = False
    checkpoints: tuple[Artifact, ...] = ()
    suites: dict[str, SuiteItems] | None = None
    withdrawn: tuple[str, ...] = ()
    portion: tuple[int, int] = (0, 1)
    max_prompts: int | None = None

    @model_validator(mode="after")
    def _several_need_chance(self) -> CandidatesRequest:
        if self.n > 1 and self.temperature == 0:
            raise ValueError("several answers to a prompt need a temperature above 0: they would all be the same")
        if len(self.checkpoints) not in (0, len(self.prompts)):
            raise ValueError("checkpoints has one for each source of prompts")
        return self


class NoPrompts(BadInput):
    """A source without a prompt to sample answers to; `reasons` counts those that it has and that were set aside."""

    def __init__(
        self, message: str, file: str | None = None, reasons: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        super().__init__(message, file=file)
        self.reasons = reasons


class CandidatesSummary(Summary):
    """`candidates` to `prompts`, and their `tokens`; `cut` are those that reached the limit of tokens, `reasons` says
    why prompts were set aside. `parts` are the artifacts of the single sources, where there are several, and
    `without_prompts` names those that have none to sample answers to, with the reason.
    `tokens_per_rank` are those of prompts and answers that each process made just now, where several shared them."""

    prompts: int
    candidates: int
    tokens: int
    cut: int
    quarantined: int
    reasons: dict[str, int] = Field(default_factory=dict)
    withdrawn: int | None = None
    generator: str = ""
    tokens_per_rank: list[int] = Field(default_factory=list)
    parts: list[Artifact] = Field(default_factory=list)
    without_prompts: dict[str, str] = Field(default_factory=dict)


def parts_of(store: Store, candidates: Artifact) -> list[Artifact]:
    """The artifacts that hold the candidates: those of the single sources, or the artifact itself."""
    return CandidatesSummary.of(store.commit_of(candidates)).parts or [candidates]


def run(request: CandidatesRequest, context: Context) -> Result:
    """Writes candidates.parquet, ordered by source and number, and quarantine.parquet; of several sources, each in an
    artifact of its own.

    In float32 on a CPU the same request gives the same candidates, whatever the batch and wherever it was interrupted.
    Several processes share the sampling. A source without a prompt is named, and the others are sampled; raises
    `NoPrompts` where none has one.
    """
    together = request.generate.kind == "transformers"
    if context.rank and not together:
        return Result("")  # one process asks the server
    ranks = Ranks(context.rank, context.world_size if together else 1)
    with ranks.together():
        if ranks.rank:
            serve(ranks, context)
            return Result("")
        with leading(ranks) as workers:
            return _run(request, context, workers)


def _run(request: CandidatesRequest, context: Context, workers: Workers) -> Result:
    """What one process does, or the first of several."""
    if len(request.prompts) > 1 or _of_source(request, 0) != request:
        return _several(request, context)
    suites = {suite: item_texts(items, suite) for suite, items in (request.suites or {}).items()}
    reading = Reading(
        request.held_out_fraction,
        Items(suites) if suites else None,
        frozenset(request.withdrawn),
        request.portion,
        request.seed,
        held_out=request.held_out,
    )
    prompts = reading.prompts(request.prompts[0])
    if request.max_prompts is not None:
        prompts = _drawn(prompts, request)
    counts: dict[str, Any] = {"prompts": 0, "candidates": 0, "tokens": 0, "cut": 0}
    lines: list[Any] = []

    def rows() -> Iterator[dict[str, Any]]:
        for prompt, answers in _sampled(request, context, prompts, workers):
            whole = [(k, answer) for k, answer in enumerate(answers) if answer.failed is None]
            if not whole:
                reading.set_aside(prompt, str(answers[0].failed))
                continue
            counts["prompts"] += 1
            for k, answer in whole:
                ended = bool(answer.ended)
                counts["candidates"] += 1
                counts["tokens"] += answer.tokens
                counts["cut"] += not ended
                lines.append([prompt.row_id, k, answer.text, ended])
                yield _cells(prompt, k, answer, ended)

    write_records(context.out / CANDIDATES_FILE, SCHEMA, rows())
    write_quarantine(context.out / QUARANTINE_FILE, reading.quarantined)
    if not counts["candidates"]:
        raise _no_prompts(request, reading)
    shared: dict[str, Any] = {"tokens_per_rank": workers.per_rank} if workers.per_rank else {}
    summary = CandidatesSummary(
        **counts,
        quarantined=len(reading.quarantined),
        reasons=reason_counts(reading.reasons),
        generator=f"{request.generator} {request.checkpoint.digest[:12]}".strip(),
        withdrawn=reading.withdrawn_prompts if request.withdrawn else None,
        **shared,
    )
    # the same texts from two models are two results: a row's generator must be traceable
    return Result(json_digest({"checkpoint": request.checkpoint.digest, "candidates": lines}), summary)


def _no_prompts(request: CandidatesRequest, reading: Reading) -> NoPrompts:
    source = request.prompts[0]
    where = source.file.url if source.file is not None else name_of(source)
    if reading.reasons:
        told = most_common(reading.reasons)
    elif request.held_out:
        told = "none of its prompts is held out: give more prompts"
    else:
        told = f"of its prompts {reading.withdrawn_prompts} were withdrawn"
        if reading.elsewhere:
            told += f", and {reading.elsewhere} are of other rounds: give more prompts, or fresh_prompts: false"
    return NoPrompts(f"no prompt to sample answers to; {told}", where, reading.reasons)


def _several(request: CandidatesRequest, context: Context) -> Result:
    """Every source's own artifact, and a record of which they are."""
    commits, without = list[Commit](), dict[str, NoPrompts]()
    with shared_server():
        for place in range(len(request.prompts)):
            try:
                commits.append(execute(STAGE, _of_source(request, place), context.store))
            except NoPrompts as error:
                log.warning("%s", error)
                without[str(error.file)] = error
    if not commits:
        told = first_few([str(error) for error in without.values()], "; ")
        raise NoPrompts(f"none of {len(request.prompts)} sources has a prompt to sample answers to: {told}")
    summaries = [CandidatesSummary.of(commit) for commit in commits]
    reasons = Counter[str]()
    for counts in (*(summary.reasons for summary in summaries), *(error.reasons for error in without.values())):
        reasons.update(counts)
    totals: dict[str, Any] = {
        name: sum(getattr(summary, name) for summary in summaries)
        for name in ("prompts", "candidates", "tokens", "cut", "quarantined")
    }
    totals["quarantined"] += sum(sum(error.reasons.values()) for error in without.values())
    parts = [commit.artifact for commit in commits]
    more: dict[str, Any] = {}
    if request.withdrawn:
        more["withdrawn"] = sum(summary.withdrawn or 0 for summary in summaries)
    if without:
        more["without_prompts"] = {name: error.message for name, error in without.items()}
    return Result(
        json_digest([part.digest for part in parts]),
        CandidatesSummary(
            **totals,
            reasons=dict(sorted(reasons.items())),
            generator=", ".join(dict.fromkeys(summary.generator for summary in summaries)),
            parts=parts,
            **more,
        ),
    )


def _of_source(request: CandidatesRequest, place: int) -> CandidatesRequest:
    """The request for one source, which names no withdrawn prompt of another: that one's withdrawal changes nothing
    here."""
    source = request.prompts[place]
    checkpoint = request.checkpoints[place] if request.checkpoints else request.checkpoint
    withdrawn: tuple[str, ...] = ()
    if request.withdrawn:
        found = (prompt_of(record.value, "", 0) for record in records_of(source) if record.problem is None)
        ids = {prompt.row_id for prompt in found if isinstance(prompt, Prompt)}
        withdrawn = tuple(row_id for row_id in request.withdrawn if row_id in ids)
    own = {"prompts": (source,), "withdrawn": withdrawn, "checkpoint": checkpoint, "checkpoints": ()}
    return request.model_copy(update=own)


def _drawn(prompts: list[Prompt], request: CandidatesRequest) -> list[Prompt]:
    """`max_prompts` of the prompts, by a hash of the seed and the id, in the order they had."""
    order = sorted(prompts, key=lambda prompt: place_in_draw(request.seed, prompt.row_id))
    kept = {prompt.row_id for prompt in order[: request.max_prompts]}
    return [prompt for prompt in prompts if prompt.row_id in kept]


def _sampled(
    request: CandidatesRequest, context: Context, prompts: list[Prompt], workers: Workers
) -> Iterator[tuple[Prompt, list[Answer]]]:
    """Every prompt with its answers, part by part; parts that are whole in the work folder are read from there, and no
    model is loaded where all are. Several processes make as many parts at a time."""
    progress = ProgressLog(log, "prompts sampled", len(prompts))
    how = (request.precision, request.batch_tokens, request.tokens)
    served = Served(context, request.checkpoint, *how, kept=True, workers=workers.of)
    before = _before_withdrawal(request, context)
    with ExitStack() as stack:
        generator: AnyGenerator | None = None
        at_once = PART_PROMPTS * workers.ranks.world_size
        for first in range(0, len(prompts), at_once):
            several = prompts[first : first + at_once]
            parts = [
                [prompt for prompt in several[start : start + PART_PROMPTS] if prompt.row_id not in before]
                for start in range(0, len(several), PART_PROMPTS)
            ]
            paths = [context.work / f"part-{json_digest([one.row_id for one in part])[:16]}.jsonl" for part in parts]
            known = [
                _read_part(path, len(part) * request.n) if part else [] for path, part in zip(paths, parts, strict=True)
            ]
            missing = [place for place, answers in enumerate(known) if answers is None]
            if missing:
                if generator is None:
                    generator = stack.enter_context(served.by(request.generate, context.work / ANSWERS_FILE))
                made = _answers(generator, request, [parts[place] for place in missing])
                for place, of_part in zip(missing, made, strict=True):
                    _write_part(paths[place], of_part)
                    known[place] = of_part
            sampled: dict[str, list[Answer]] = {}
            for part, answers in zip(parts, known, strict=True):
                assert answers is not None
                for at, prompt in enumerate(part):
                    sampled[prompt.row_id] = answers[at * request.n : (at + 1) * request.n]
            for prompt in several:
                yield prompt, before.get(prompt.row_id) or sampled[prompt.row_id]
            progress.add(len(several))


def _before_withdrawal(request: CandidatesRequest, context: Context) -> dict[str, list[Answer]]:
    """The answers by prompt that were sampled before a prompt was withdrawn: nobody samples the other ones again."""
    fewer = [tuple(one for one in request.withdrawn if one != gone) for gone in request.withdrawn]
    for withdrawn in dict.fromkeys([*fewer, *([()] if request.withdrawn else [])]):
        key = STAGE.key(request.model_copy(update={"withdrawn": withdrawn}))
        commit = context.store.find(STAGE.kind, key)
        if commit is None or current_erasure(context.store, commit.artifact) is not None:
            continue
        known: dict[str, list[Answer]] = {}
        for row in read_candidates(context.fetch(commit.artifact)):
            known.setdefault(row["row_id"], []).append(Answer(row["text"], row["tokens"], None, (), row["ended"]))
        return {row_id: answers for row_id, answers in known.items() if len(answers) == request.n}
    return {}


def _answers(
    generator: AnyGenerator, request: CandidatesRequest, parts: Sequence[Sequence[Prompt]]
) -> list[list[Answer]]:
    """The answers to each part's prompts."""
    asked = [as_trained(prompt.content, request.tokens) for part in parts for prompt in part for _ in range(request.n)]
    samplings = [
        Sampling(request.temperature, request.top_p, f"{request.seed}/candidates/{prompt.row_id}/{k}")
        for part in parts
        for prompt in part
        for k in range(request.n)
    ]
    if not generator.is_chat and any(not isinstance(content, str) for content in asked):
        raise BadInput("prompts of messages need a chat template, and the checkpoint has none", field="chat_template")
    sizes = [len(part) * request.n for part in parts]
    if isinstance(generator, Generator):
        given = generator.answer(asked, request.max_new_tokens, (), samplings, sizes)
    else:
        given = generator.answer(asked, request.max_new_tokens, (), samplings)
    answers = iter([_with_end(answer, generator, request.max_new_tokens) for answer in given])
    return [list(islice(answers, size)) for size in sizes]


def _with_end(answer: Answer, generator: AnyGenerator, most: int) -> Answer:
    """The answer with whether it ended by itself; a server says only how many tokens it has."""
    ids = answer.ids
    ended = ids[-1] in generator.end_ids if isinstance(generator, Generator) and ids else answer.tokens < most
    return replace(answer, ids=(), ended=ended)


def _write_part(path: Path, answers: list[Answer]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps([a.text, a.tokens, a.ended, a.failed], ensure_ascii=False) + "\n" for a in answers)
    whole = path.with_name(f"{path.name}.partial")
    whole.write_text("".join(lines), encoding="utf-8", errors="surrogatepass")
    whole.replace(path)


def _read_part(path: Path, count: int) -> list[Answer] | None:
    """The answers of a part that was finished before an interruption."""
    if not path.is_file():
        return None
    values = [json.loads(line) for line in path.read_text(encoding="utf-8", errors="surrogatepass").split("\n") if line]
    if len(values) != count:
        return None
    return [Answer(text, tokens, failed, (), ended) for text, tokens, ended, failed in values]


def _cells(prompt: Prompt, k: int, answer: Answer, ended: bool) -> dict[str, Any]:
    return {
        "row_id": prompt.row_id,
        "form": form_of(prompt.content),
        "prompt": encode(prompt.content),
        "about": json.dumps(prompt.about, ensure_ascii=False, sort_keys=True),
        "source": prompt.source,
        "source_row": prompt.source_row,
        "k": k,
        "text": answer.text,
        "tokens": answer.tokens,
        "ended": ended,
    }


def read_candidates(folder: Path) -> Iterator[dict[str, Any]]:
    """The candidates of a folder in order, as `SCHEMA` has them."""
    return iter_records(folder / CANDIDATES_FILE)


STAGE: Stage[CandidatesRequest] = Stage(
    name="candidates", code_version=1, request=CandidatesRequest, run=run, device="gpu", elastic=True
)
