"""What a recipe measures, who judges, and what the gate asks."""

from __future__ import annotations

import re
from datetime import date
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from alignment.address import shown
from alignment.recipe.data import Section, VariableName


class Suite(Section):
    """Settings that every suite has."""

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"sample_seed"})

    data: str | None = None
    """Data file in the suite's published format: JSON lines, CSV or Parquet."""
    hub: str | None = None
    """Data set id on the Hugging Face Hub, in place of a file."""
    revision: str | None = None
    """Commit hash, tag or branch of the data set on the hub; its default branch if left out."""
    config: str | None = None
    """Configuration on the hub; null takes the configuration of lm-eval's task. In a group each task has its own."""
    split: str = "test"
    """Split on the hub that the items come from."""
    limit: int | None = Field(default=None, ge=1)
    """Number of items to ask, chosen by a seeded sample; null asks all."""
    sample_seed: int | None = None
    """Seed of the sample that `limit` takes; null takes the recipe's. With it, recipes of different seeds ask the same
    items."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Longest answer in tokens; a longer answer is cut there and scored as it is."""
    temperature: float | None = Field(default=None, ge=0, le=10)
    """Sampling temperature; 0 takes the most likely token each time. null takes the suite's own: 0, or for
    MT-Bench FastChat's temperature of the item's category. Each item's sampling is seeded by the item's id."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: each token is drawn from the most likely tokens that together reach this probability. It has an
    effect only if the temperature is above 0."""
    embedded: Literal["micro"] | None = None
    """The generated items of the quickstart, in place of a file."""

    @model_validator(mode="after")
    def _one_source(self) -> Suite:
        given = [name for name in ("data", "hub", "embedded") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give {' or '.join(given)}, not {'both' if len(given) == 2 else 'all'}")
        if self.hub is None and (self.revision or self.config or getattr(self, "few_shot_split", None)):
            raise ValueError("revision, config and few_shot_split go with hub")
        if self.sample_seed is not None and self.limit is None:
            raise ValueError("sample_seed goes with limit: without it all items are asked")
        return self


class Gsm8k(Suite):
    """Grade-school maths (Cobbe et al. 2021), lm-eval's prompt and scorer."""

    num_fewshot: int = Field(default=5, ge=0)
    """Worked examples before each question."""
    few_shot_data: str | None = None
    """Training file the worked examples are drawn from; needed when num_fewshot > 0 and data is a file."""
    few_shot_split: str | None = None
    """Split on the hub that the worked examples are drawn from."""


class IfEval(Suite):
    """Verifiable instructions (Zhou et al. 2023), lm-eval's scorer."""

    max_new_tokens: int = Field(default=1280, ge=1)
    """Longest answer in tokens; a longer answer is cut there and scored as it is."""


class MtBench(Suite):
    """Two-turn questions and a judge (Zheng et al. 2023), FastChat-compatible files."""

    max_new_tokens: int = Field(default=1024, ge=1)
    """Longest answer to a turn in tokens; a longer answer is cut there and scored as it is."""
    reference_answers: str | None = None
    """FastChat answer file with references for maths, reasoning and coding."""
    judge_prompts: str | None = None
    """FastChat judge prompt file; null takes the prompts that come with alignment-dags."""
    baseline_answers: str | None = None
    """FastChat answer file of a baseline. With it each answer is also judged against the baseline's answer, in both
    orders (`win_rate`)."""


class Published(Suite):
    """A suite that the quickstart has no items for."""

    embedded: None = None
    """Not for this suite."""

    @model_validator(mode="after")
    def _has_source(self) -> Published:
        if self.data is None and self.hub is None:
            raise ValueError("give either data (a file) or hub (a data set)")
        return self


class AlpacaEval(Published):
    """Instructions; a judge compares each answer with a baseline's (Dubois et al. 2024). AlpacaEval's files."""

    max_new_tokens: int = Field(default=2048, ge=1)
    """Longest answer in tokens; a longer answer is cut there and scored as it is."""
    baseline_answers: str | None = None
    """AlpacaEval outputs of the baseline; null takes the `output` that comes with each instruction in `data`."""
    judge_prompts: str | None = None
    """Judge prompt file in FastChat's form; null takes the prompts that come with alignment-dags."""


class ArenaHard(Published):
    """Hard user prompts; a judge compares each answer with a baseline's (Li et al. 2024). Arena-Hard's files."""

    max_new_tokens: int = Field(default=4096, ge=1)
    """Longest answer in tokens; a longer answer is cut there and scored as it is."""
    baseline_answers: str
    """Arena-Hard answer file of the baseline."""
    judge_prompts: str | None = None
    """Judge prompt file in FastChat's form; null takes the prompts that come with alignment-dags."""


class Harmless(Published):
    """Harmful prompts (BeaverTails' or HH-RLHF's files); a judge decides whether each answer is safe."""

    judge_prompts: str | None = None
    """Judge prompt file in FastChat's form; null takes the prompts that come with alignment-dags."""


class XsTest(Published):
    """Over-refusal (Röttger et al. 2024): safe prompts that seem unsafe, and unsafe prompts for comparison."""

    scored_by: Literal["rules", "judge"] = "rules"
    """Who decides whether an answer refuses: `rules` on its words, which cost nothing and are less exact, or the
    recipe's judge. Scores of the two are never compared."""
    judge_prompts: str | None = None
    """Judge prompt file in FastChat's form; null takes the prompts that come with alignment-dags."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer in tokens; a longer answer is cut there and scored as it is."""


class Math(Published):
    """MATH (Hendrycks et al. 2021), answered in a box: the data's own columns, or MATH-500's."""

    max_new_tokens: int = Field(default=2048, ge=1)
    """Longest answer in tokens; a longer answer is cut there and scored as it is."""


class IfBench(Published):
    """IFBench (Pyatkin et al. 2025): instructions unlike IFEval's. It needs the package if-verifiable."""

    max_new_tokens: int = Field(default=2048, ge=1)
    """Longest answer in tokens; a longer answer is cut there and scored as it is."""


class RewardBench2(Published):
    """RewardBench 2 (Malik et al. 2025): prompts with right and wrong completions. The model generates nothing: a
    completion's score is its mean log-likelihood a token, and temperature and lengths do not count."""

    chat_template: bool | None = None
    """Whether prompts go through the tokenizer's chat template. null does as training does: the template is used if the
    tokenizer has one."""


class LmEvalTask(Published):
    """A task or group of tasks of lm-eval, by its name: its prompts, its stop strings, its scorer.

    The data file has the columns of the task's own data set. For a group of tasks a column (subset, subject, type,
    config, category or task) names the task that an item belongs to.
    """

    absent_by_default: ClassVar[frozenset[str]] = Suite.absent_by_default | {"include_path"}

    include_path: str | None = None
    """Folder of your own tasks in lm-eval's YAML form, one of which has this suite's name; null takes lm-eval's own.
    Python functions that the tasks name (`!function`) run, so the folder must be one that you trust. A change of its
    YAML and Python files answers and scores the suite again."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Worked examples before each question; null is the task's own number."""
    few_shot_data: str | None = None
    """File that the worked examples are drawn from, for tasks that do not bring their own."""
    few_shot_split: str | None = None
    """Split on the hub that the worked examples are drawn from."""
    chat_template: bool | None = None
    """Whether questions go through the tokenizer's chat template. null does as training does: the template is used if
    the tokenizer has one. Published figures for multiple choice are usually made without it."""


def check_address(url: str | None) -> None:
    """Raises `ValueError` unless an endpoint's address has the form http(s)://host[:port][/path], without a query."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0  # reading it checks it
    except ValueError:
        port_is_fine = False
    blank = any(character.isspace() for character in url)
    if not port_is_fine or blank or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url must be as in http://host:8000/v1 or https://host/v1, not '{shown(url)}'")
    if parts.query or parts.fragment:  # requests would go to another address, and records would contain the query
        raise ValueError("base_url must hold no query: put the key into the variable that api_key_env names")


class Generate(Section):
    """How answers are made: Transformers loads the checkpoint, or a server with the OpenAI API has it."""

    speed_only: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "model", "api_key_env", "in_flight", "timeout_seconds", "retries", "command", "start_seconds"}
    )
    absent_by_default: ClassVar[frozenset[str]] = frozenset({"command", "start_seconds"})

    kind: Literal["transformers", "endpoint", "vllm"] = "transformers"
    """`transformers` loads the checkpoint in the step; `endpoint` asks a server that has it; `vllm` starts such a
    server with `command` as a process of its own, in its own environment, and ends it afterwards."""
    command: str | None = Field(default=None, min_length=1)
    """What starts the server of `kind: vllm`, as in `/opt/vllm/bin/vllm serve {folder} --port {port}
    --served-model-name {name}`: these three words stand for the checkpoint's folder, a free port, and the name that the
    server must list. No shell reads it."""
    start_seconds: float = Field(default=900.0, gt=0)
    """Seconds that the server of `kind: vllm` may take until it lists its model."""
    base_url: str | None = None
    """Address of the endpoint's API, as in http://host:8000/v1."""
    model: str = "{digest}"
    """Name under which the endpoint serves the checkpoint. {digest} stands for the first 12 digits of the checkpoint's
    data version, so that no other checkpoint can answer in its place."""
    api_key_env: VariableName = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; the key itself is never written anywhere."""
    in_flight: int = Field(default=32, ge=1)
    """Most calls that wait for an answer at the same time."""
    timeout_seconds: float = Field(default=600.0, gt=0)
    """Seconds that a call may take before it is tried again."""
    retries: int = Field(default=5, ge=0)
    """How often a call is tried again after 408, 409, 429, 5xx, a timeout or an answer that is none."""

    @model_validator(mode="after")
    def _endpoint(self) -> Generate:
        if (self.kind == "endpoint") != (self.base_url is not None):
            raise ValueError("base_url goes with kind: endpoint, which needs it")
        if (self.kind == "vllm") != (self.command is not None):
            raise ValueError("command goes with kind: vllm, which needs it")
        if lacking := [word for word in ("{folder}", "{port}", "{name}") if word not in (self.command or word)]:
            raise ValueError(f"command must hold {', '.join(lacking)}")
        if "@" in (self.base_url or ""):
            raise ValueError("base_url must hold no user or password: put the key into the variable of api_key_env")
        if "{digest}" not in self.model:
            raise ValueError("model must hold {digest}: the name tells which checkpoint the endpoint serves")
        check_address(self.base_url)
        return self


class NewRows(Section):
    """Tomorrow's data as a test: before rows of a new manifest train anything, the champion is measured on those that
    it never saw. It costs the scoring of these rows under the champion, each once."""

    max_rows: int = Field(default=2000, ge=1)
    """Most new rows that are measured, the lowest row ids first, which is a sample by hash: 2,000 tell an accuracy to
    within two points."""


class BestOf(Section):
    """Answers are chosen: of several that the model gives to a question, the one that the recipe's `reward_model` rates
    highest. Policy, baseline and champion are all measured so, at `n` times the cost of answering."""

    n: int = Field(default=8, ge=2, le=256)
    """Answers sampled to each question, and to each turn of a conversation."""
    temperature: float = Field(default=1.0, gt=0, le=10)
    """Sampling temperature, in place of that of the suites."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling, in place of that of the suites."""


class Evals(Section):
    """The suites to run; a suite left out is not run."""

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"new_rows", "best_of"})

    gsm8k: Gsm8k | None = None
    """GSM8K: grade-school maths."""
    ifeval: IfEval | None = None
    """IFEval: instructions that a program can verify."""
    ifbench: IfBench | None = None
    """IFBench: verifiable instructions unlike IFEval's."""
    mt_bench: MtBench | None = None
    """MT-Bench: two-turn questions, graded 1 to 10 by a judge."""
    alpaca_eval: AlpacaEval | None = None
    """AlpacaEval: a judge compares each answer with a baseline's."""
    arena_hard: ArenaHard | None = None
    """Arena-Hard: hard prompts; a judge compares each answer with a baseline's."""
    harmless: Harmless | None = None
    """Harmful prompts; a judge decides whether each answer is safe."""
    xstest: XsTest | None = None
    """XSTest: safe prompts that seem unsafe, and unsafe prompts for comparison."""
    math: Math | None = None
    """MATH: competition problems, right if the last box holds the answer."""
    reward_bench_2: RewardBench2 | None = None
    """RewardBench 2: whether the model prefers the right completion to the wrong ones."""
    lm_eval: dict[str, LmEvalTask] = Field(default_factory=dict)
    """Any of lm-eval's tasks by name (mmlu, arc_challenge, truthfulqa_mc2, hendrycks_math, …); each is a suite."""
    baselines: str | None = None
    """CSV file of published figures (columns model, metric, value, source) that the report shows beside ours. A metric
    is `suite/metric`, or a suite's name alone for its main metric; values are on the metric's scale, fractions from 0
    to 1."""
    new_rows: NewRows | None = None
    """Measures the champion on preference pairs that it never saw. Without this section it is not measured so."""
    generate: Generate = Generate()
    """Who answers the suites."""
    best_of: BestOf | None = None
    """Measures the best of several answers by the recipe's `reward_model`; null measures the one answer that a suite
    asks for. Suites of log-likelihoods have nothing to choose and stay as they are."""
    batch_tokens: int = Field(default=16_384, ge=1)
    """Tokens held at once while answering: longest prompt + `max_new_tokens`, times the answers of a batch."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of weights and computation while answering."""
    sharded: bool = False
    """Cuts the model's weights over the GPUs of a slot while it answers, while the KL divergence is measured and at the
    last check before a registration, for a model that one GPU cannot hold. It counts where the pool's launcher starts
    more than one process; without it each of them answers a share of the items with a whole model."""

    def selected(self) -> dict[str, Suite]:
        """Suite name to settings, in the order of this class."""
        suites = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: suite for name, suite in suites.items() if isinstance(suite, Suite)} | self.lm_eval

    @model_validator(mode="after")
    def _names(self) -> Evals:
        for name in self.lm_eval:
            if name in type(self).model_fields:
                raise ValueError(f"{name} has a section of its own: put it beside lm_eval, not under it")
            if not re.fullmatch(r"[A-Za-z0-9_]+", name):
                raise ValueError(f"'{name}' cannot name a suite: letters, digits and _ only")
        return self


def section_of(name: str, suite: Suite) -> str:
    """The section of a recipe that has the settings of a suite."""
    return f"evals.lm_eval.{name}" if isinstance(suite, LmEvalTask) else f"evals.{name}"


class JudgePrice(Section):
    """What a judge costs, in USD per million tokens."""

    input_usd: float = Field(ge=0)
    """USD per million tokens that are sent."""
    output_usd: float = Field(ge=0)
    """USD per million tokens that come back."""


class Judge(Section):
    """Who grades open answers: `rubric` (deterministic, embedded questions only) or an OpenAI-compatible endpoint."""

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"snapshot"})

    kind: Literal["rubric", "openai"]
    """`rubric` are the deterministic checks of the quickstart's own questions; `openai` is any endpoint that speaks the
    OpenAI API."""
    model: str | None = None
    """Name the endpoint knows the judge by; `openai` needs it."""
    base_url: str | None = None
    """Address of the endpoint's API, as in http://host:8000/v1; null is OpenAI's own."""
    snapshot: str | None = Field(default=None, min_length=1)
    """Exact model that the endpoint must name in its answers, such as gpt-4o-2024-11-20 behind gpt-4o, or the name with
    a commit that an own server serves. Another answer ends the judging. Scores of different snapshots are never
    compared. null accepts whatever the endpoint names."""
    api_key_env: VariableName = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; the key itself is never written anywhere."""
    temperature: float | None = Field(default=0.0, ge=0)
    """Sampling temperature of the judge; null sends none, for models that accept no temperature."""
    max_tokens: int = Field(default=2048, ge=1)
    """Longest judgment in tokens."""
    retires: date | None = None
    """First day (YYYY-MM-DD) on which the endpoint no longer serves the model: plans, checks and nights warn before it.
    It changes no score and no key."""
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The endpoint's name for `max_tokens`; OpenAI's reasoning models accept only `max_completion_tokens`."""
    in_flight: int = Field(default=16, ge=1)
    """Most calls that wait for a judgment at the same time."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Seconds that a call may take before it is tried again."""
    retries: int = Field(default=6, ge=0)
    """How often a call is tried again after 408, 409, 429, 5xx, a timeout or an answer without a text."""
    price: JudgePrice | None = None
    """What the endpoint charges; costs are shown where it is given."""
    budget_usd: float | None = Field(default=None, ge=0)
    """USD that judging one suite of one checkpoint may cost at most, resumptions included; needs `price`. null sets no
    limit."""
    budget_tokens: int | None = Field(default=None, ge=0)
    """Tokens, of questions and judgments together, that judging one suite of one checkpoint may take at most; null
    sets no limit."""

    @model_validator(mode="after")
    def _endpoint(self) -> Judge:
        if self.kind == "openai" and self.model is None:
            raise ValueError("kind: openai needs model")
        if self.budget_usd is not None and self.price is None:
            raise ValueError("budget_usd needs price")
        if self.base_url is not None and "@" in self.base_url:
            raise ValueError("base_url must hold no user or password: put the key into the variable of api_key_env")
        check_address(self.base_url)
        return self


class Requirement(Section):
    """What the gate asks of one metric; give exactly one of `no_regression`, `improve`, `at_least`, `at_most` and
    `max_ratio`."""

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"at_most", "max_ratio"})

    no_regression: float | None = Field(default=None, ge=0)
    """Margin m, on the metric's scale: the lower end of the 95 % interval of the difference must be above −m, against
    the SFT baseline and against the champion."""
    improve: float | None = Field(default=None, ge=0)
    """On the metric's scale: against the SFT baseline the lower end of the 95 % interval of the difference must be
    above this. The champion has already made that improvement, so against the champion the lower end must only be above
    −`champion_margin`."""
    at_least: float | None = None
    """On the metric's scale: the candidate's own mean over all items that it was asked must be at least this."""
    at_most: float | None = None
    """On the metric's scale: the candidate's own mean over all items that it was asked must be at most this, such as 10
    nats a response of policy_divergence/kl."""
    max_ratio: float | None = Field(default=None, gt=0)
    """The candidate's mean over the SFT baseline's on the same items: the upper end of the ratio's 95 % interval must
    be at most this, such as 1.5 for answers/length. The champion is not compared, so that a growth over many nights
    counts as a whole."""
    champion_margin: float | None = Field(default=None, ge=0)
    """Margin against the champion, on the metric's scale. By default that of `no_regression`; for `improve` a
    twentieth of the scale: 0.05 of a fraction, 0.45 of a rating from 1 to 10."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Requirement:
        bounds = [v for v in (self.at_least, self.at_most, self.max_ratio) if v is not None]
        given = bounds + [v for v in (self.no_regression, self.improve) if v is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of no_regression, improve, at_least, at_most, max_ratio")
        if bounds and self.champion_margin is not None:
            raise ValueError("champion_margin goes with no_regression or improve")
        return self


class Gate(Section):
    """Requirements by `suite/metric`; a metric that was not measured cannot pass."""

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"seeds"})

    metrics: dict[str, Requirement] = Field(min_length=1)
    """What is asked of each metric; a metric is written suite/metric, such as mt_bench/average or
    gsm8k/exact_match,strict-match. All must hold. `answers/length` (tokens of an answer), `answers/ended` (share of the
    answers that end before the limit), `answers/distinct_2` and `answers/distinct_4` (distinct n-grams of an answer,
    which fall when it repeats itself) are over the texts of all suites; `policy_divergence/kl` is KL(policy ‖ SFT) in
    nats a response."""
    any_improves: bool = False
    """At least one of the metrics must be better than the SFT baseline's, after Holm's correction over them."""
    max_missing: float = Field(default=0.02, ge=0, lt=1)
    """Largest fraction of values that one side of a comparison may lack (no whole answer, no judgment), of those that
    the other side has; for `at_least` and `at_most`, of all items that the candidate was asked. Above it a metric
    cannot pass, because the items that a model fails on would not count. Items that both sides lack do not count."""
    seeds: int = Field(default=1, ge=1, le=10)
    """Trainings of the policy, each with a seed of its own and evaluated alike. The first is the candidate; what the
    others say of the spread from run to run stands with the verdict in words, beside published spreads, and decides
    nothing. Each costs a training and an evaluation; 1 shows no spread."""
