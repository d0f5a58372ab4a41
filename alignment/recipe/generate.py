"""Preferences that a model makes itself: prompts, the answers sampled to them, their scores, and the pairs."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from alignment.recipe.data import DataSource, Section

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


class Sampled(Section):
    """How preference pairs are made of sampled answers."""

    absent_by_default: ClassVar[frozenset[str]] = frozenset()

    prompts: Prompts
    """Where the prompts are. Prompts that `held_out_fraction` holds out, and prompts that hold an item of a suite of
    the recipe, are left out by name."""
    n: int = Field(default=8, ge=1, le=1024)
    """Answers sampled to each prompt."""
    temperature: float = Field(default=0.8, ge=0, le=10)
    """Sampling temperature; several answers need one above 0."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus sampling: each token is drawn from the most likely tokens that together reach this probability."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Longest answer in tokens; an answer that is cut there is in no pair."""
    score: tuple[Score, ...] = ()
    """Who scores the answers; scores are multiplied by their weights and added up. `pairs: delta` needs none. One
    scorer may be written without the list."""
    length_penalty: float = Field(default=0.0, ge=0)
    """What is taken from an answer's score for each of its tokens, in units of the score."""
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

    @field_validator("score", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return (value,) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _pairs_have_scores(self) -> Sampled:
        if self.pairs != "delta" and not self.score:
            raise ValueError(f"pairs: {self.pairs} needs score")
        if self.pairs != "delta" and self.n < 2:
            raise ValueError("n: a pair needs two answers to a prompt")
        if self.n > 1 and self.temperature == 0:
            raise ValueError("temperature: several answers to a prompt need one above 0, or all are the same")
        if self.pairs == "margin" and not self.min_gap:
            raise ValueError("pairs: margin needs min_gap above 0")
        kinds = [score.kind for score in self.score]
        if len(set(kinds)) < len(kinds):
            raise ValueError("score: a kind stands there twice")
        return self

    @property
    def judged(self) -> bool:
        """Whether a judge scores."""
        return any(score.kind in ("judge", "judge_pairs") for score in self.score)
