"""Which way a model's sequences go, found by comparing both on a real pass, once a model.

Sharing a prompt is right for attention that is causal, within a window or not, and for layers that treat
tokens alone. Capped attention, a state that runs over the sequence, or anything else is refused by name or
shows as a difference between a packed pass and its sequences one at a time; such a model goes in padded batches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from alignment.logprobs.attention import CannotShare
from alignment.logprobs.forward import find_head, packed_logps, padded_logps
from alignment.logprobs.head import Head
from alignment.tokens import TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

FULL_PRECISION = 4  # bytes

SAME = {"float64": 1e-5, "float32": 1e-5, "bfloat16": 2e-2, "float16": 5e-3}
"""Largest difference, relative to the larger of the log-probability and one nat a token."""


@dataclass
class Way:
    """How one model is run. `shared` is None until a pass has shown it, for sequences of `shown` tokens at most.

    `most` is the largest pass that fitted into memory after a larger one did not.
    """

    head: Head | None
    shared: bool | None = None
    shown: int = 0
    most: int | None = None

    def unproven(self, groups: Sequence[Sequence[TokenSequence]]) -> bool:
        """Whether it has to be shown that these can share: what holds for short sequences need not for longer."""
        longest = max(len(row) for rows in groups for row in rows)
        return self.shared is None or (self.shared and longest > self.shown)


_ways: WeakKeyDictionary[Any, Way] = WeakKeyDictionary()


def way_of(model: PreTrainedModel, sequence: TokenSequence, share_in_half: bool = False) -> Way:
    """What is known of a model; at first only its head, found on `sequence`.

    In 16-bit precisions a packed pass rounds otherwise than the trainer's padded one, by more than the same
    pass batched against alone: enough for the check that reference and policy agree to stop a sound run. There
    sequences go padded, as in training, unless the caller asks to share.
    """
    if model not in _ways:
        way = _ways[model] = Way(find_head(model, sequence))
        if way.head is None:
            way.shared = False
        elif model.dtype.itemsize < FULL_PRECISION and not share_in_half:
            _go_padded(model, way, f"{str(model.dtype).removeprefix('torch.')} is scored as it is trained")
    return _ways[model]


def try_sharing(model: PreTrainedModel, groups: Sequence[Sequence[TokenSequence]], way: Way) -> list[float] | None:
    """A packed pass, its longest and last sequence compared with the same alone; None where the model cannot share.

    A sequence with a pass to itself would look right on any model, so its twin goes behind it. The question
    stays open when all that was read is the end of one prompt.
    """
    import torch

    assert way.head is not None
    rows = [row for group in groups for row in group]
    packed = [[rows[0], rows[0]]] if len(rows) == 1 else groups
    try:
        found = packed_logps(model, packed, way.head)
    except torch.OutOfMemoryError:
        raise
    except (CannotShare, TypeError, ValueError, RuntimeError) as error:  # takes no positions, hands on no keyword, …
        _go_padded(model, way, str(error) or type(error).__name__)
        return None
    tolerance = SAME[str(model.dtype).removeprefix("torch.")]
    longest = max(range(len(rows)), key=lambda place: len(rows[place]))
    for place, row in ((longest, rows[longest]), (-1, rows[-1])):
        alone = padded_logps(model, [row], way.head)[0]
        apart = abs(found[place] - alone) / max(abs(alone), float(len(row.completion_ids)))
        if not apart <= tolerance:
            _go_padded(model, way, f"log-probs differ by {apart:.1e}, relatively")
            return None
    if len(packed) > 1 or len(rows[-1].completion_ids) > 1:
        if way.shared is None:
            logger.info("prompts are shared between their completions on %s", type(model).__name__)
        way.shared, way.shown = True, max(way.shown, len(rows[longest]))
    return found[: len(rows)]


def _go_padded(model: PreTrainedModel, way: Way, why: str) -> None:
    way.shared = False
    logger.info("prompts are not shared on %s, sequences go in padded batches: %s", type(model).__name__, why)
