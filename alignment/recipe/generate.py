"""Preferences that a model makes itself: prompts, the answers sampled to them, their scores, and the pairs."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from alignment.recipe.data import DataSource, ModelSource, Section
from alignment.recipe.evaluation import Generate
from alignment.recipe.training import Optimisation

Pairing = Literal["best_worst", "best_random", "margin", "top_k", "delta"]


class Prompts(DataSource):
    """The prompts that answers are sampled to: any data with prompts, conversations or preference pairs in it. Each
    file is a source of its own: one that changed makes only its own answers anew."""

    max_prompts: int | None = Field(default=None, ge=1)
    """Most prompts of each source, drawn by the recipe's seed; null takes all."""
    parts: int = Field(default=1, ge=1, le=1000)
    """Sources that `embedded` generates; a day more is a source more."""


class Score(Section):
    """One scorer of answers."""

    kind: Literal["rubric", "exact", "instructions", "judge", "judge_pairs", "reward_model"]
    """`rubric`: deterministic checks that come with a prompt, such as the embedded ones. `exact`: 1 where the answer's
    result is the prompt's `answer` or `solution`, else 0. `instructions`: share of a prompt's `instruction_id_list`
    that an answer follows, by IFEval's checkers. `judge`: the recipe's judge rates each answer from 1 to 10.
    `judge_pairs`: the judge compares each two answers of a prompt in both orders; the score is the share of points won,
    from 0 to 1. `reward_model`: the recipe's `reward_model`, in its own unit."""
    weight: float = Field(default=1.0, gt=0)
    """What the score is multiplied by before scores are added up."""


class Answered(Section):
    """Prompts that a model answers several times, and who scores the answers."""

    prompts: Prompts
    """Where the prompts are. Prompts that `held_out_fraction` holds out, and prompts that hold an item of a suite of
    the recipe, are left out by name."""
    n: int = Field(default=8, ge=1, le=1024)
    """Answers sampled to each prompt."""
    temperature: float = Field(default=0.8, ge=0, le=10)
    """Sampling temperature; several answers need one above 0."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Longest answer in tokens; an answer that is cut there is in no pair."""
    score: tuple[Score, ...] = ()
    """Who scores the answers; scores are multiplied by their weights and added up. `pairs: delta` needs none. One
    scorer may be written without the list."""
    length_penalty: float = Field(default=0.0, ge=0)
    """What is taken from an answer's score for each of its tokens, in units of the score."""

    @field_validator("score", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return (value,) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _kinds_once(self) -> Answered:
        if self.n > 1 and self.temperature == 0:
            raise ValueError("temperature: several answers to a prompt need one above 0, or all are the same")
        kinds = [score.kind for score in self.score]
        if len(set(kinds)) < len(kinds):
            raise ValueError("score: a kind stands there twice")
        return self

    @property
    def reward_modelled(self) -> bool:
        """Whether the reward model scores."""
        return any(score.kind == "reward_model" for score in self.score)

    @property
    def judged(self) -> bool:
        """Whether a judge scores."""
        return any(score.kind in ("judge", "judge_pairs") for score in self.score)


VERIFIERS = ("rubric", "exact", "instructions")
"""Scorers that need no model: they verify an answer by what its prompt says of right ones."""


class OnPolicy(Answered):
    """What `optimise.method: grpo` trains on: answers that the policy samples to prompts while it is trained. Each is
    scored, and becomes likelier by how far its score lies above the mean of the answers to its prompt.

    In `optimise`, `batch_size` counts prompts, each with its `n` answers, `epochs` passes over the prompts, and
    `micro_batch_size` answers that are put through the model at once.
    """

    n: int = Field(default=8, ge=2, le=1024)
    """Answers sampled to each prompt of a step: the group whose mean an answer is compared with."""
    temperature: float = Field(default=1.0, gt=0, le=10)
    """Sampling temperature; also that of the log-probs in the loss. 1 samples from the policy itself."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Longest answer in tokens; one that is cut there is scored as it is."""
    score: tuple[Score, ...] = Field(min_length=1)
    """Who scores the answers: `rubric`, `exact` and `instructions`, which verify an answer by what its prompt says; or
    a list of them, which are multiplied by their weights and added up. An answer without a score moves nothing."""
    kl_weight: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the start checkpoint beside the reward, in nats a token (β of the paper, which took
    0.04); above 0 the start checkpoint is in memory too."""

    @model_validator(mode="after")
    def _verified(self) -> OnPolicy:
        if other := next((score.kind for score in self.score if score.kind not in VERIFIERS), None):
            raise ValueError(f"score: {other} verifies nothing; on-policy training takes {', '.join(VERIFIERS)}")
        return self


class Sampled(Answered):
    """How preference pairs are made of sampled answers."""

    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus sampling: each token is drawn from the most likely tokens that together reach this probability."""
    pairs: Pairing = "best_worst"
    """Which answers to a prompt are paired. `best_worst`: the best scored with the worst. `best_random`: the best with
    one that scores less, drawn by the seed. `margin`: each two whose scores differ by `min_gap` or more. `top_k`: the
    best with the worst, the second best with the second worst, and so on, `top_k` pairs at most. `delta`: each answer
    of the generator with one of `weak`, whatever their scores (delta learning; Geng et al. 2025)."""
    min_gap: float = Field(default=0.0, ge=0)
    """Least difference of the scores of a pair, in units of the score; pairs with less are counted and left out. Equal
    scores are never a pair."""
    top_k: int = Field(default=2, ge=1)
    """Most pairs a prompt of `pairs: top_k`."""
    weak: ModelSource | Literal["base", "sft"] | None = None
    """The weaker generator of `pairs: delta`: `base` (the recipe's base model), `sft` (its SFT checkpoint), or a model
    from elsewhere."""
    engine: Generate = Generate()
    """Who computes the answers: Transformers in the step, an endpoint, or a server that is started. Precision and batch
    are those of `evals`."""

    @model_validator(mode="after")
    def _pairs_have_scores(self) -> Sampled:
        if self.pairs != "delta" and not self.score:
            raise ValueError(f"pairs: {self.pairs} needs score")
        if self.pairs != "delta" and self.n < 2:
            raise ValueError("n: a pair needs two answers to a prompt")
        if (self.pairs == "delta") != (self.weak is not None):
            raise ValueError("weak goes with pairs: delta, which needs it")
        if self.pairs == "margin" and not self.min_gap:
            raise ValueError("pairs: margin needs min_gap above 0")
        return self


class GeneratedPairs(Sampled):
    """Pairs that are made before training, beside those of `preferences`."""

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"reference"})

    generator: Literal["sft", "champion"] | ModelSource = "champion"
    """Who answers: the recipe's SFT checkpoint; its champion at the time when a source of prompts is first seen (before
    there is one, the SFT checkpoint); or a model from elsewhere. Answers that an earlier champion gave stay, so that a
    night samples answers to new prompts only."""
    reference: Literal["sft", "champion"] = "sft"
    """The reference of all rows, those of `preferences` too. `sft`: the SFT checkpoint, so each row is scored once.
    `champion`: the recipe's champion at the time when the set of rows is first trained on (before there is one, the SFT
    checkpoint). Each champion then scores all rows once, and the SFT checkpoint still scores each new one. Training
    starts from the SFT checkpoint either way. Not with rounds, a chain or a sweep."""


class Rounds(Sampled):
    """Rounds of preference training. Round 1 trains on `preferences`; each later round samples answers from the policy
    of the round before, pairs them, and trains on these pairs.

    After each later round its policy is compared with the one before by the same scorers on held-out prompts. `go_on`
    says with which result the rounds go on. Otherwise they end: later rounds are not trained, and the policy before the
    round that ended them is the recipe's.
    """

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"go_on"})

    count: int = Field(default=3, ge=2, le=20)
    """Rounds, the first included."""
    start: Literal["previous", "sft"] = "previous"
    """Where the training of a later round starts: the policy of the round before, or the SFT checkpoint."""
    reference: Literal["previous", "sft"] = "previous"
    """The reference of a later round: the policy of the round before, or the SFT checkpoint."""
    beta: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """β of each round, the first included; left out, all rounds have that of `optimise`."""
    fresh_prompts: bool = True
    """Whether each later round has prompts of its own: a share of all, by a hash. false gives all prompts to each."""
    compare_n: int = Field(default=1, ge=1, le=64)
    """Answers to each held-out prompt by which a round is compared with the one before."""
    go_on: Literal["improved", "not_worse", "always"] = "improved"
    """The result of a round with which the rounds go on, by the 95 % interval of the difference of the mean scores.
    `improved`: the interval lies above zero. `not_worse`: it does not lie below zero. `always`: any; all rounds are
    trained, and the last one's policy is the recipe's."""

    @model_validator(mode="after")
    def _beta_of_each(self) -> Rounds:
        if self.beta and len(self.beta) != self.count:
            raise ValueError(f"beta: {len(self.beta)} values for {self.count} rounds; give one for each")
        if not self.score:
            raise ValueError("rounds are compared by score: give at least one scorer")
        return self


class RewardTraining(Optimisation):
    """How a reward model is trained: TRL's reward trainer, the Bradley-Terry loss of each pair."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Highest learning rate of AdamW, reached after the warm-up. Usual values are 1e-6 to 5e-5, and ten times as much
    with LoRA."""

    @model_validator(mode="after")
    def _whole(self) -> RewardTraining:
        if self.sharded:
            raise ValueError("a reward model is trained whole on each device: leave out sharded")
        if self.gradient_checkpointing == "selective":
            raise ValueError("gradient_checkpointing of a reward model is true or false")
        ignored = {
            "tf32": self.tf32,
            "router_aux_loss_coef": self.router_aux_loss_coef,
            "lora.quantise": self.quantise,
            "lora.keep_adapter": self.lora is not None and self.lora.keep_adapter,
        }
        if name := next((name for name, value in ignored.items() if value), None):
            raise ValueError(f"{name} has no effect on a reward model: leave it out")
        return self


class RewardModel(RewardTraining):
    """The model of `score: reward_model`: trained from the checkpoint that preference training starts from, on the
    pairs of the first manifest, or adopted. Its accuracy on held-out pairs is recorded with its interval."""

    adopt: ModelSource | None = None
    """A reward model from elsewhere, with one output and a tokenizer of its own, in place of training one."""

    def training(self) -> RewardTraining:
        """Only what decides how it is trained."""
        return RewardTraining(**{name: getattr(self, name) for name in RewardTraining.model_fields})
