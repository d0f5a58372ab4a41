"""The request that a policy is trained by, and the files of its artifact beside the checkpoint's.

They are here for the stages that train one (of preferences, or of answers that the policy samples itself) and for all
that read one, which need none of the training's code.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import ConfigDict, Field, model_validator

from alignment.data.sources import PromptSource, SuiteItems
from alignment.methods import method_of
from alignment.recipe.data import Keyed
from alignment.recipe.forward import TokenPolicy
from alignment.recipe.generate import Score as AnswerScore
from alignment.recipe.training import Dpo
from alignment.stages.stage import Request
from alignment.store import Artifact

ROWS_FILE = "training_rows.parquet"
ON_POLICY_FILE = "on_policy_prompts.parquet"
"""The prompts that an on-policy training sampled answers to, by id; other policies have no such file."""


class Rollouts(Keyed):
    """What an on-policy method trains on: `n` answers to each prompt of a step, sampled from the policy as it is then,
    and who scores them. Prompts are kept out as `CandidatesRequest` has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"suites", "withdrawn", "max_prompts", "kl_weight"})

    prompts: tuple[PromptSource, ...] = Field(min_length=1)
    n: int = Field(ge=2)
    temperature: float = Field(gt=0)
    max_new_tokens: int = Field(ge=1)
    scores: tuple[AnswerScore, ...] = Field(min_length=1)
    length_penalty: float = Field(default=0.0, ge=0)
    kl_weight: float = Field(default=0.0, ge=0)
    held_out_fraction: float = Field(default=0.0, ge=0, lt=1)
    suites: dict[str, SuiteItems] | None = None
    withdrawn: tuple[str, ...] = ()
    max_prompts: int | None = None


class DpoRequest(Request):
    """`checkpoint` is where the policy starts. `reference` is what the manifest's references, if it has any, were
    scored with, where that is another checkpoint.

    `pass_tokens` is tokens of one pass; where it changes values, the references' fingerprint names it. Neither it nor
    the number of processes changes what is trained, so a killed run goes on with another number of them. `sft_dataset`
    is given where `settings` mix SFT rows into each step, and `rollouts` where the method is on-policy.
    """

    speed_only: ClassVar[frozenset[str]] = frozenset({"world_size", "pass_tokens"})
    absent_by_default: ClassVar[frozenset[str]] = frozenset({"pass_tokens", "sft_dataset", "reference", "rollouts"})

    manifest: Artifact
    checkpoint: Artifact
    settings: Dpo
    tokens: TokenPolicy
    seed: int
    world_size: int = 1
    pass_tokens: int = 16_384
    sft_dataset: Artifact | None = None
    reference: Artifact | None = None
    rollouts: Rollouts | None = None

    @model_validator(mode="after")
    def _answers_of_an_on_policy_method(self) -> DpoRequest:
        if self.settings.method.on_policy != (self.rollouts is not None):
            raise ValueError("rollouts and an on-policy method go together")
        return self

    @model_validator(mode="after")
    def _sft_rows_of_a_dataset(self) -> DpoRequest:
        if bool(self.settings.sft_rows_fraction) != (self.sft_dataset is not None):
            raise ValueError("sft_dataset and settings.sft_rows_fraction go together")
        return self

    def identity(self) -> Any:
        """Without references, whose stage has a limit of its own, rows are first written out here."""
        identity = super().identity()
        return identity if method_of(self.settings).needs_reference else identity | self.tokens.drop_limit()
