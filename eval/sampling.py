"""Sampling that is each row's own: what a prompt is answered does not depend on what else is in its batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn; temperature 0 is greedy. `seed` is any text: the same one draws the same numbers."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: str = ""


GREEDY = Sampling()


class RowSampler:
    """A logits processor that leaves each sampled row one token, drawn by inverting its distribution.

    A token takes one uniform number of the row's own generator, so that rounding in a batch can change a draw only
    where the number falls on the edge between two tokens.
    """

    def __init__(self, samplings: Sequence[Sampling]) -> None:
        self.rows = [row for row, one in enumerate(samplings) if one.temperature > 0]
        self.samplings = [samplings[row] for row in self.rows]
        self.generators = [random.Random(one.seed) for one in self.samplings]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores`: logits [rows, vocabulary]."""
        import torch

        if not self.rows:
            return scores
        temperatures = scores.new_tensor([[one.temperature] for one in self.samplings], dtype=torch.float64)
        limits = scores.new_tensor([[one.top_p] for one in self.samplings], dtype=torch.float64)
        numbers = scores.new_tensor([[one.random()] for one in self.generators], dtype=torch.float64)
        tokens = draw(scores[self.rows].double() / temperatures, limits, numbers)
        scores = scores.clone()
        scores[self.rows] = float("-inf")
        scores[self.rows, tokens] = 0.0
        return scores


def draw(logits: torch.Tensor, top_p: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Token ids [rows] from logits [rows, vocabulary] at uniform numbers in [0, 1) [rows, 1].

    Only the most likely tokens that together reach `top_p` [rows, 1] are drawn (Holtzman et al. 2020).
    """
    import torch

    chances, ids = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True, stable=True)
    reached = chances.cumsum(dim=-1)
    chances = chances.masked_fill(reached - chances >= top_p, 0.0)  # the first always stays
    reached = chances.cumsum(dim=-1)
    places = torch.searchsorted(reached, numbers * reached[:, -1:], right=True)
    return ids.gather(1, places.clamp(max=ids.shape[1] - 1)).squeeze(1)
