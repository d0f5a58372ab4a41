"""The judge that a recipe names, with the prompts and references that the suite's spec pins."""

from __future__ import annotations

from pathlib import Path

from alignment.errors import BadInput
from alignment.recipe import Judge
from eval.jsonl import read_pinned_rows
from eval.judge.openai import OpenAIJudge
from eval.judge.prompts import default_prompts, parse_prompts, reference_turns
from eval.judge.rubric import rubric_judge
from eval.scoring import Judge as Grader
from eval.suites.spec import SuiteSpec


def choose_judge(settings: Judge | None, spec: SuiteSpec, work: Path) -> Grader | None:
    """None when the recipe names no judge. `work` keeps judgments that cost money over interruptions."""
    if settings is None:
        return None
    if settings.kind == "rubric":
        if spec.embedded is None:
            raise BadInput("judge kind rubric grades embedded questions only", field="judge.kind")
        return rubric_judge
    prompts, references = default_prompts(), {}
    if spec.judge_prompts is not None:
        prompts = parse_prompts(read_pinned_rows(spec.judge_prompts), spec.judge_prompts.url)
    if spec.reference_answers is not None:
        references = reference_turns(read_pinned_rows(spec.reference_answers), spec.reference_answers.url)
    return OpenAIJudge(settings, prompts, references, work / "judgments.jsonl")
