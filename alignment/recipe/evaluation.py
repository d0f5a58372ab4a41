"""What a recipe measures, who judges, and what the gate asks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from alignment.recipe.sources import Section


class Suite(Section):
    """What every suite has. Items beyond `limit` are left out by a seeded sample."""

    data: str | None = None
    """Data file in the suite's published format; None takes the embedded items (or the hub, where named)."""
    limit: int | None = Field(default=None, ge=1)
    max_new_tokens: int = Field(default=512, ge=1)
    embedded: Literal["micro"] | None = None
    """The generated items of the quickstart."""

    @model_validator(mode="after")
    def _one_source(self) -> Suite:
        if self.data is not None and self.embedded is not None:
            raise ValueError("give data or embedded, not both")
        return self


class Gsm8k(Suite):
    """Grade-school maths (Cobbe et al. 2021), lm-eval's prompt and scorer."""

    num_fewshot: int = Field(default=5, ge=0)
    few_shot_data: str | None = None
    """Training file the worked examples are drawn from; needed when num_fewshot > 0 and data is a file."""


class IfEval(Suite):
    """Verifiable instructions (Zhou et al. 2023), lm-eval's scorer."""

    max_new_tokens: int = Field(default=1280, ge=1)


class MtBench(Suite):
    """Two-turn questions and a judge (Zheng et al. 2023), FastChat-compatible files."""

    max_new_tokens: int = Field(default=1024, ge=1)
    reference_answers: str | None = None
    """FastChat answer file with references for maths, reasoning and coding."""
    judge_prompts: str | None = None
    """FastChat judge prompt file; None takes the prompts that come with alignment-dags."""


class Evals(Section):
    """The suites to run; a suite left out is not run."""

    gsm8k: Gsm8k | None = None
    ifeval: IfEval | None = None
    mt_bench: MtBench | None = None
    baselines: str | None = None
    """CSV file of published figures (columns model, metric, value, source) that the report lays beside ours. A metric
    is `suite/metric`, or a suite's name for its main one; values are on the metric's scale, fractions from 0 to 1."""
    batch_tokens: int = Field(default=16_384, ge=1)
    """Prompt + answer tokens generated at once."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"

    def selected(self) -> dict[str, Suite]:
        """Suite name to settings, in the order of this class."""
        suites = {"gsm8k": self.gsm8k, "ifeval": self.ifeval, "mt_bench": self.mt_bench}
        return {name: suite for name, suite in suites.items() if suite is not None}


class Judge(Section):
    """Who grades open answers: `rubric` (deterministic, embedded questions only) or an OpenAI-compatible endpoint."""

    kind: Literal["rubric", "openai"]
    model: str | None = None
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; the key itself is never written anywhere."""
    in_flight: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _endpoint(self) -> Judge:
        if self.kind == "openai" and self.model is None:
            raise ValueError("kind: openai needs model")
        return self


class Requirement(Section):
    """What the gate asks of one metric; give exactly one of `no_regression`, `improve` and `at_least`."""

    no_regression: float | None = Field(default=None, ge=0)
    """Margin: the interval's lower end must be above minus this, against the SFT baseline and the champion."""
    improve: float | None = Field(default=None, ge=0)
    """Against the SFT baseline the interval's lower end must be above this. The champion has made that improvement
    already: against it the lower end must be above minus `champion_margin`."""
    at_least: float | None = None
    """The candidate's own value must be at least this."""
    champion_margin: float | None = Field(default=None, ge=0)
    """Margin against the champion. By default that of `no_regression`; for `improve` a twentieth of the metric's
    scale: 0.05 of a fraction, 0.45 of a rating from 1 to 10."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Requirement:
        given = [v for v in (self.no_regression, self.improve, self.at_least) if v is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of no_regression, improve, at_least")
        if self.at_least is not None and self.champion_margin is not None:
            raise ValueError("champion_margin goes with no_regression or improve")
        return self


class Gate(Section):
    """Requirements by `suite/metric`; a metric that was not measured cannot pass."""

    metrics: dict[str, Requirement] = Field(min_length=1)
    any_improves: bool = False
    """At least one of the metrics must be better than the SFT baseline's, after Holm's correction over them."""
