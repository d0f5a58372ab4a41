"""The stage that loads a finished checkpoint back and lets it speak once, before anyone registers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from alignment.digest import json_digest
from alignment.generation.generator import Generator, Prompt
from alignment.logprobs.effort import Ranks
from alignment.models.checkpoint import load_model, load_tokenizer
from alignment.models.loading import load_sharded
from alignment.stages.stage import Context, Request, Result, Stage
from alignment.store import Artifact, Summary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEW_TOKENS = 32
ANSWER_FILE = "answer.txt"


class CheckRequest(Request):
    """A checkpoint and the prompt it answers. `sharded` cuts the model over the processes, where there are several."""

    speed_only: ClassVar[frozenset[str]] = frozenset({"sharded"})

    checkpoint: Artifact
    prompt: str
    precision: str
    sharded: bool = False


class CheckSummary(Summary):
    """The answer, and how many tokens it has."""

    answer: str
    tokens: int | None = None


class CheckFailed(RuntimeError):
    """The checkpoint loads but cannot answer."""


def run(request: CheckRequest, context: Context) -> Result:
    """Writes the answer; raises `CheckFailed` when there is no token of one."""
    sharded = request.sharded and context.world_size > 1
    if context.rank and not sharded:
        return Result("")
    with Ranks(context.rank, context.world_size if sharded else 1).together():
        return _check(request, context, load_sharded if sharded else load_model)


def _check(request: CheckRequest, context: Context, load: Callable[..., PreTrainedModel]) -> Result:
    folder = context.store.fetch(request.checkpoint, deep=True if context.world_size == 1 else "once")
    runs_code = context.runs_code(request.checkpoint)
    model = load(folder, request.precision, runs_code=runs_code)
    generator = Generator(model, load_tokenizer(folder, runs_code), batch_tokens=1)
    prompt: Prompt = [{"role": "user", "content": request.prompt}] if generator.is_chat else request.prompt
    (answer,) = generator.answer([prompt], NEW_TOKENS)
    if answer.failed is not None or answer.tokens == 0:
        raise CheckFailed(f"the checkpoint does not answer: {answer.failed or 'no token came'}")
    (context.out / ANSWER_FILE).write_text(answer.text, encoding="utf-8")
    return Result(json_digest(answer.text), CheckSummary(answer=answer.text, tokens=answer.tokens))


STAGE = Stage("checkpoint_check", 1, CheckRequest, run, device="gpu")
