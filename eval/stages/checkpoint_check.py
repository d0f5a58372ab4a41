"""The stage that loads a finished checkpoint back and lets it speak once, before anyone registers it."""

from __future__ import annotations

from alignment.digest import json_digest
from alignment.generation.generator import Generator, Prompt
from alignment.models.checkpoint import load_model, load_tokenizer
from alignment.stages import Context, Request, Result, Stage
from alignment.store import Artifact, Summary

NEW_TOKENS = 32
ANSWER_FILE = "answer.txt"


class CheckRequest(Request):
    """A checkpoint and the prompt it answers."""

    checkpoint: Artifact
    prompt: str
    precision: str


class CheckSummary(Summary):
    """The answer, and how many tokens it has."""

    answer: str
    tokens: int | None = None


class CheckFailed(RuntimeError):
    """The checkpoint loads but cannot answer."""


def run(request: CheckRequest, context: Context) -> Result:
    """Writes the answer; raises `CheckFailed` when there is no token of one."""
    if context.rank:
        return Result("")
    folder = context.store.fetch(request.checkpoint, deep=True)
    runs_code = context.runs_code(request.checkpoint)
    model = load_model(folder, request.precision, runs_code=runs_code)
    generator = Generator(model, load_tokenizer(folder, runs_code), batch_tokens=1)
    prompt: Prompt = [{"role": "user", "content": request.prompt}] if generator.is_chat else request.prompt
    (answer,) = generator.answer([prompt], NEW_TOKENS)
    if answer.failed is not None or answer.tokens == 0:
        raise CheckFailed(f"the checkpoint does not answer: {answer.failed or 'no token came'}")
    (context.out / ANSWER_FILE).write_text(answer.text, encoding="utf-8")
    return Result(json_digest(answer.text), CheckSummary(answer=answer.text, tokens=answer.tokens))


STAGE = Stage("checkpoint_check", 1, CheckRequest, run, device="gpu")
