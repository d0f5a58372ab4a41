"""One suite as a request names it: its items pinned by content, and how they are asked."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from alignment.digest import json_digest
from alignment.stages import SourceFile


class SuiteSpec(BaseModel):
    """A suite's items and settings. Exactly one of `data` and `embedded` says where the items come from.

    `reference_answers`, `judge_prompts` and `baseline_answers` matter to scoring alone; `for_answering` leaves
    them out, so that a new judge prompt never makes a model answer again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: SourceFile | None = None
    embedded: str | None = None
    limit: int | None = None
    max_new_tokens: int
    num_fewshot: int = 0
    few_shot_data: SourceFile | None = None
    reference_answers: SourceFile | None = None
    judge_prompts: SourceFile | None = None
    baseline_answers: SourceFile | None = None

    def for_answering(self) -> SuiteSpec:
        """The same suite without what only scoring reads."""
        return self.model_copy(update={"reference_answers": None, "judge_prompts": None, "baseline_answers": None})

    def identity(self) -> dict[str, Any]:
        """The settings as a plain value in which files stand for their content."""
        return {
            name: value.identity() if isinstance(value, SourceFile) else value
            for name, value in ((field, getattr(self, field)) for field in type(self).model_fields)
        }

    def digest(self) -> str:
        """64 hex digits: two results may be compared only when these are the same."""
        return json_digest(self.identity())
