"""Answers as a generator would have sampled them: an artifact of candidates without a model."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from alignment.data.rows import content_id, encode, write_records
from alignment.data.validate import QUARANTINE_FILE, write_quarantine
from alignment.stages import Context, Request, Result, Stage
from alignment.stages.candidates import CANDIDATES_FILE, SCHEMA, CandidatesSummary

CHECKS = [{"kind": "contains", "value": "good"}, {"kind": "contains", "value": "fine"}]
"""What a good answer to every prompt passes."""


def prompt_id(prompt: str) -> str:
    return content_id({"prompt": ({"role": "user", "content": prompt},)})


class SampledRequest(Request):
    """Answers by prompt; one that ends in | was cut at the limit of tokens."""

    answers: dict[str, list[str]]
    generator: str = "policy 0123"
    about: dict[str, Any] = Field(default_factory=lambda: {"rubric": CHECKS})
    """What verifies an answer, of every prompt."""


def _sample(request: SampledRequest, context: Context) -> Result:
    rows = []
    for prompt, texts in request.answers.items():
        content = ({"role": "user", "content": prompt},)
        cells = {"row_id": content_id({"prompt": content}), "form": "chat", "prompt": encode(content)}
        about = json.dumps(request.about)
        for k, text in enumerate(texts):
            rows.append(
                {**cells, "about": about, "source": "s", "source_row": 1, "k": k, "text": text.strip("|")}
                | {"tokens": len(text), "ended": not text.endswith("|")}
            )
    write_records(context.out / CANDIDATES_FILE, SCHEMA, rows)
    write_quarantine(context.out / QUARANTINE_FILE, [])
    counts = {"prompts": len(request.answers), "candidates": len(rows), "tokens": 9, "cut": 0, "quarantined": 0}
    return Result(json.dumps(request.answers), CandidatesSummary(**counts, generator=request.generator))


SAMPLE = Stage("candidates", 1, SampledRequest, _sample)
