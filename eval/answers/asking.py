"""Who answers the items of a suite, and how it is asked.

Best of n stands where a generator stands: suites ask it as they ask any model, and each answer is the one of several
that a reward model rates highest. A turn of a conversation is chosen before the next one is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignment.data.rows import Content
from alignment.generation.endpoint import EndpointGenerator
from alignment.generation.generator import Answer, Generator, Prompt, Sampling
from alignment.recipe.evaluation import BestOf
from eval.ranking.scorers import Scored, Scorer
from eval.suites.suite import Item, Suite, SuiteSpec


@dataclass
class BestOfGenerator:
    """Samples `settings.n` answers of `generator` to each prompt, each with a seed of its own, and returns the one with
    the highest score; of equal ones the first. `tokens` and `unscored` count all that were sampled."""

    generator: Generator | EndpointGenerator
    settings: BestOf
    score: Scorer
    tokens: int = 0
    unscored: int = 0

    @property
    def is_chat(self) -> bool:
        """Whether prompts go through the tokenizer's chat template."""
        return self.generator.is_chat

    def answer(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        until: Sequence[str] = (),
        samplings: Sequence[Sampling] | None = None,
    ) -> list[Answer]:
        """One answer per prompt, in order. Where no answer has a score the first is taken, and all are counted."""
        n, given = self.settings.n, samplings or [Sampling()] * len(prompts)
        drawn = [
            Sampling(self.settings.temperature, self.settings.top_p, f"{one.seed}/best/{k}")
            for one in given
            for k in range(n)
        ]
        every = [prompt for prompt in prompts for _ in range(n)]
        answers = self.generator.answer(every, max_new_tokens, until, drawn)
        self.tokens += sum(answer.tokens for answer in answers)
        scores = self._scores(every, answers)
        chosen = []
        for first in range(0, len(every), n):
            places = range(first, first + n)
            best = max(places, key=lambda place: (scores[place], -place))
            chosen.append(answers[best])
        return chosen

    def _scores(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[float]:
        """The score of each answer; minus infinity for one without."""
        there = [place for place, answer in enumerate(answers) if answer.failed is None]
        asked = [Scored(str(place), str(place), _content(prompts[place]), {}, answers[place].text) for place in there]
        found = [float("-inf")] * len(answers)
        for place, score in zip(there, self.score(asked) if asked else [], strict=True):
            if isinstance(score, str):
                self.unscored += 1
            else:
                found[place] = score
        return found


def _content(prompt: Prompt) -> Content:
    return prompt if isinstance(prompt, str) else tuple(dict(message) for message in prompt)


AnyGenerator = Generator | EndpointGenerator | BestOfGenerator


@dataclass(frozen=True)
class Asking:
    """A suite, its settings and the model. `chat` says whether questions go through the tokenizer's chat template."""

    suite: Suite
    spec: SuiteSpec
    seed: int
    generator: AnyGenerator
    chat: bool

    def sampling(self, item: Item, turn: int = 1) -> Sampling:
        """How an answer is sampled: at the recipe's temperature, or else at the suite's own for the item.

        Every turn of every item has a seed of its own, so answers do not depend on each other.
        """
        temperature = self.spec.temperature
        if temperature is None:
            temperature = 0.0 if self.suite.temperature_of is None else self.suite.temperature_of(item)
        return Sampling(temperature, self.spec.top_p, f"{self.seed}/{self.suite.name}/{item.id}/{turn}")
