"""One suite as a request names it: its items pinned by content, and how they are asked."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from alignment.digest import json_digest
from alignment.recipe import DataSource
from alignment.stages import SourceFile


class SuiteSpec(BaseModel):
    """A suite's items and settings. Exactly one of `data`, `hub` and `embedded` says where the items come from.

    `num_fewshot` None is the lm-eval task's own number; examples come from `few_shot_data` or `few_shot_hub`.
    `chat_template` None is as in training: used where the tokenizer has one. `temperature` None is the suite's own.
    `reference_answers`, `judge_prompts` and `baseline_answers` matter to scoring alone; `for_answering` leaves
    them out, so that a new judge prompt never makes a model answer again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: SourceFile | None = None
    hub: DataSource | None = None
    embedded: str | None = None
    limit: int | None = None
    max_new_tokens: int
    temperature: float | None = None
    top_p: float = 1.0
    num_fewshot: int | None = 0
    few_shot_data: SourceFile | None = None
    few_shot_hub: DataSource | None = None
    chat_template: bool | None = None
    reference_answers: SourceFile | None = None
    judge_prompts: SourceFile | None = None
    baseline_answers: SourceFile | None = None

    def for_answering(self) -> SuiteSpec:
        """The same suite without what only scoring reads."""
        return self.model_copy(update={"reference_answers": None, "judge_prompts": None, "baseline_answers": None})

    def identity(self) -> dict[str, Any]:
        """The settings as a plain value in which files stand for their content."""
        return {
            name: _plain(value) for name, value in ((field, getattr(self, field)) for field in type(self).model_fields)
        }

    def digest(self) -> str:
        """64 hex digits: two results may be compared only when these are the same."""
        return json_digest(self.identity())


def _plain(value: Any) -> Any:
    if isinstance(value, SourceFile):
        return value.identity()
    return value.model_dump(mode="json") if isinstance(value, DataSource) else value
