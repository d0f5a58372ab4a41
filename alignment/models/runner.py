"""How one model is run: which passes its sequences take, found out once a model and proven before it is relied on.

Sharing a prompt is right for attention that is causal, within a window or not, and for layers that treat tokens alone.
A state that runs over the sequence, a position bias, or anything else is refused by name or shows as a difference
between a packed pass and its sequences one at a time; such a model goes in padded batches, as the last resort.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, ref

from alignment.data.tokens import TokenSequence
from alignment.errors import BadInput, one_line
from alignment.models.attention import CannotShare
from alignment.models.forward import find_head, head_logps, own_logps, packed_states, padded_states, row_sums
from alignment.models.forward import vocabulary as vocabulary_of
from alignment.models.packing import Group, batches, by_prompt, forwarded, longest_first, pack, pack_rows, rounded
from alignment.models.rope import long_from
from alignment.models.sharding import sharding_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

T = TypeVar("T")

logger = logging.getLogger(__name__)

CPU_TOKENS = 2048
"""Tokens of a pass on a CPU at most: larger ones leave its caches and gain nothing."""

SAME = {"float64": 1e-5, "float32": 1e-5, "bfloat16": 2e-2, "float16": 5e-3}
"""Largest difference, relative to the larger of the log-probability and one nat a token."""


EXPERT_ROUNDING = 0.1
"""Nats a token; a state that runs on moves the token behind it by more."""


def has_experts(model: PreTrainedModel) -> bool:
    """Whether tokens are routed to experts."""
    config: Any = model.config.get_text_config()
    return any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))


class Runner:
    """One model with its passes. `Runner.of` gives the same one for the same model.

    `shared` is None until a pass has shown it, for sequences of `proven` tokens at most. `most` is the largest pass
    that fitted into memory after a larger one did not.
    """

    def __init__(self, model: PreTrainedModel, sequence: TokenSequence) -> None:
        import torch

        self._model = ref(model)  # the table of runners must not keep a model alive
        self.sharding = sharding_of(model)
        self.short = sequence
        """What an empty pass of a sharded model runs on."""
        with torch.no_grad():
            self.head = self._through(lambda: find_head(model, sequence))
        self.release()
        if self.sharding is not None and self.head is None:
            what = "no known head gives its own logits; leave out sharded"
            raise BadInput(f"{type(model).__name__} cannot be sharded: {what}", field="sharded")
        self.vocabulary = vocabulary_of(model)
        self.long_from = long_from(model)
        self.shared: bool | None = None if self.head is not None else False
        self.proven = 0
        self.most: int | None = None

    @property
    def model(self) -> PreTrainedModel:
        """The model, loaded when it is first asked for."""
        model = self._model()
        assert model is not None
        return model

    @staticmethod
    def of(model: PreTrainedModel, sequence: TokenSequence) -> Runner:
        """What is known of a model; at first only its head, found on `sequence`."""
        if model not in _runners:
            _runners[model] = Runner(model, sequence)
        return _runners[model]

    @staticmethod
    def known(model: PreTrainedModel) -> Runner:
        """That of a model that has run before."""
        return _runners[model]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of computation; a sharded model's weights are kept in a finer one."""
        dtype: torch.dtype = self.model.dtype if self.sharding is None else self.sharding.dtype
        return dtype

    def missing(self, passes: int) -> int:
        """Empty passes (`empty`) to make beside `passes`: none for a model that this process has whole."""
        return 0 if self.sharding is None else self.sharding.missing(passes)

    def empty(self) -> torch.Tensor:
        """The states of a pass that counts for nothing."""
        return self.states([[self.short]])

    def release(self) -> None:
        """After a pass without a gradient."""
        if self.sharding is not None:
            self.sharding.release()

    def _through(self, work: Callable[[], T]) -> T:
        return work() if self.sharding is None else self.sharding.through(work)

    def budget(self, tokens: int) -> int:
        """Tokens of one pass, where `tokens` are asked for."""
        tokens = min(tokens, CPU_TOKENS) if self.model.device.type == "cpu" else tokens
        return min(tokens, self.most or tokens)

    def fill(self, tokens: int) -> int:
        """What a pass of at most `tokens` tokens is filled up to.

        On a GPU in 16 bits or TF32 kernels are picked by the number of rows of a product, so that equal bits need
        passes of equal size; elsewhere nothing is gained by it.
        """
        coarse = self.dtype.itemsize == 2 or products_are_tf32()
        return tokens if self.model.device.type != "cpu" and coarse else 0

    def passes(self, sequences: Sequence[TokenSequence], order: list[int], budget: int) -> Iterator[list[Group]]:
        """Indices pass by pass, longest first: packed by prompt, or each its own group in a padded batch."""
        if self.shared is not False:
            yield from pack(sequences, order, budget, self.long_from)
            return
        for batch in batches([len(sequence) for sequence in sequences], order, budget):
            yield [[index] for index in batch]

    def passes_of_rows(self, rows: Sequence[Sequence[TokenSequence]], budget: int) -> list[list[int]]:
        """Indices of rows (each its sequences) pass by pass; every row in exactly one."""
        if self.shared is not False:
            return pack_rows(rows, budget, self.long_from)
        longest = [max(map(len, row)) * len(row) for row in rows]
        return [list(batch) for batch in batches(longest, longest_first(longest), budget)]

    def groups(self, rows: Sequence[TokenSequence]) -> list[Group]:
        """Indices of the sequences of one pass in groups that share their prompt."""
        return by_prompt(rows, range(len(rows)), self.long_from)

    def states(self, groups: Sequence[Sequence[TokenSequence]], fill: int = 0) -> torch.Tensor:
        """[completion tokens, hidden], group by group, before the head; with a gradient where one is kept."""
        if self.shared is False:
            return self._padded([row for group in groups for row in group])
        return self._packed(groups, fill)

    def _packed(self, groups: Sequence[Sequence[TokenSequence]], fill: int) -> torch.Tensor:
        return self._through(lambda: packed_states(self.model, groups, fill, self.long_from))

    def _padded(self, rows: Sequence[TokenSequence]) -> torch.Tensor:
        return self._through(lambda: padded_states(self.model, rows))

    def sums(self, groups: Sequence[Sequence[TokenSequence]], fill: int = 0) -> list[float] | None:
        """Completion log-probabilities (nat), group by group, without gradient; None as `token_logps` gives it."""
        logps = self.token_logps(groups, fill)
        return None if logps is None else row_sums(logps, [row for group in groups for row in group]).tolist()

    def token_logps(self, groups: Sequence[Sequence[TokenSequence]], fill: int = 0) -> torch.Tensor | None:
        """[completion tokens] log-probabilities (nat), group by group, without gradient.

        None when it has just turned out that this model takes other passes.
        """
        if self.unproven(groups):
            self._prove(groups, fill)
            if self.shared is False:
                return None
        rows = [row for group in groups for row in group]
        if self.head is None:
            return own_logps(self.model, rows)
        return head_logps(self.head, self.states(groups, fill), rows, self.vocabulary)

    def alone(self, sequence: TokenSequence) -> float:
        """A completion's log-probability (nat) by a pass of its own that shares nothing: what else it rounds to."""
        if self.head is None:
            return float(row_sums(own_logps(self.model, [sequence]), [sequence])[0])
        logps = head_logps(self.head, self._padded([sequence]), [sequence], self.vocabulary)
        return float(row_sums(logps, [sequence])[0])

    def size(self, sequences: Sequence[TokenSequence], groups: Sequence[Group]) -> tuple[int, int]:
        """Tokens of a pass, and the positions they were computed in (what fills a GPU's pass up not counted)."""
        if self.shared is not False:
            tokens = sum(forwarded(sequences, group) for group in groups)
            return tokens, rounded(tokens)
        lengths = [len(sequences[index]) for group in groups for index in group]
        return sum(lengths), sum(lengths) if self.head is None else len(lengths) * max(lengths)

    def unproven(self, groups: Sequence[Sequence[TokenSequence]]) -> bool:
        """Whether it has to be shown that these can share: what holds for short sequences need not for longer."""
        longest = max(len(row) for rows in groups for row in rows)
        return self.shared is None or (self.shared and longest > self.proven)

    def _prove(self, groups: Sequence[Sequence[TokenSequence]], fill: int) -> None:
        """Settles whether these may share: by a packed pass of the longest and the last, compared with each alone.

        A sequence that has nothing before it would look right on any model. So the longest stands behind another
        completion of its prompt, or its twin, and the last behind both, with a prompt of its own. Rounding hides small
        differences in 16 bits, so what stands before a sequence must not change a bit of it either.
        """
        import torch

        assert self.head is not None
        group = max(groups, key=lambda rows: max(map(len, rows)))
        longest, last = max(group, key=len), groups[-1][-1]
        other = next((row for row in group if row is not longest), longest)
        rows = [other, longest, last]
        try:
            states = self._packed([[other, longest], [last]], fill)
        except torch.OutOfMemoryError:
            raise
        except (CannotShare, TypeError, ValueError, RuntimeError) as error:  # takes no positions, no keyword, …
            self._go_padded(one_line(error))
            return
        sums = row_sums(head_logps(self.head, states, rows, self.vocabulary), rows).tolist()
        for packed, row in zip(sums[1:], rows[1:], strict=True):
            alone = self.alone(row)
            apart = abs(packed - alone) / max(abs(alone), float(len(row.completion_ids)))
            if not apart <= SAME[str(self.dtype).removeprefix("torch.")]:
                self._go_padded(f"log-probs differ by {apart:.1e}, relatively")
                return
        if self._leaks(longest, fill):
            self._go_padded("what stands before a sequence in its pass changes its log-probs")
            return
        if self.shared is None:
            logger.info("prompts are shared between their completions on %s", type(self.model).__name__)
        self.shared, self.proven = True, max(self.proven, len(longest))

    def _leaks(self, row: TokenSequence, fill: int) -> bool:
        """Whether another completion before a sequence's own, or before its prompt, changes its log-probs.

        Not by a bit, as the pass has the same shape; an expert's products have as many rows as tokens come to it.
        """
        assert self.head is not None
        found = []
        for token in (0, 1):
            other = TokenSequence(row.prompt_ids, (token,) * max(2, len(row.completion_ids)))
            states = self._packed([[other, row], [row]], fill)
            logps = head_logps(self.head, states, [other, row, row], self.vocabulary)
            found.append(logps[len(other.completion_ids) :])
        return float((found[0] - found[1]).abs().max()) > (EXPERT_ROUNDING if has_experts(self.model) else 0.0)

    def _go_padded(self, why: str) -> None:
        self.shared = False
        model = type(self.model).__name__
        logger.info("prompts are not shared on %s, sequences go in padded batches: %s", model, why)


# TF32: float32 products of rounded operands, on GPUs alone.


@contextmanager
def tf32_products(wanted: bool) -> Iterator[None]:
    """For the while, float32 matrix products on a GPU round their operands to TF32 where `wanted`; on a CPU nothing
    changes.

    Rotary angles stay float32: they are products of positions and frequencies, and TF32 has no odd number above 2,048.
    """
    import torch

    if not wanted or not torch.cuda.is_available():
        yield
        return
    modules = torch.nn.modules.module

    def turns(module: Any) -> bool:
        return any("inv_freq" in name for name in module._buffers)

    def exact(module: Any, *_: Any) -> None:
        if turns(module):
            torch.set_float32_matmul_precision("highest")

    def coarse(module: Any, *_: Any) -> None:
        if turns(module):
            torch.set_float32_matmul_precision("high")

    hooks = [modules.register_module_forward_pre_hook(exact), modules.register_module_forward_hook(coarse)]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for hook in hooks:
            hook.remove()


def products_are_tf32() -> bool:
    """Whether this process's float32 products are of TF32 operands now."""
    import torch

    return torch.cuda.is_available() and torch.get_float32_matmul_precision() != "highest"


_runners: WeakKeyDictionary[Any, Runner] = WeakKeyDictionary()
