"""Where prompts and evaluation items are: a file, the hub, or what an installed package generates.

They are apart from the code that reads them, so that who reads a request that names some needs none of it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from alignment.recipe.data import DataSource
from alignment.stages.stage import SourceFile


class PromptSource(BaseModel):
    """Where some prompts are: one `file`, a split on the `hub`, or part `part` of those that the `embedded` package
    generates from `seed`. `generation.prompts` reads them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: SourceFile | None = None
    hub: DataSource | None = None
    embedded: str | None = None
    part: int = Field(default=0, ge=0)
    seed: int = 0

    @model_validator(mode="after")
    def _one_source(self) -> PromptSource:
        if sum(source is not None for source in (self.file, self.hub, self.embedded)) != 1:
            raise ValueError("give exactly one of file, hub, embedded")
        return self


class SuiteItems(BaseModel):
    """Where a suite's items are: a `file`, splits on the `hub`, or generated from `seed` by the `embedded` package.
    `data.overlap` reads them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: SourceFile | None = None
    hub: tuple[DataSource, ...] = ()
    embedded: str | None = None
    seed: int = 0
