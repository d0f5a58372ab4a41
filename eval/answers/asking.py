"""A suite, its settings, and the model that answers it."""

from __future__ import annotations

from dataclasses import dataclass

from alignment.generation.generator import Sampling
from eval.answers.best_of import AnyGenerator
from eval.suites.suite import Item, Suite, SuiteSpec


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
