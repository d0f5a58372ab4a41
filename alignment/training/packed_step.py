"""One optimiser step: every row's loss and gradient through the scorer's own packed forward pass.

The rows of a step are laid out in passes, each row whole in one of them. Of a pass the decoder keeps its activations;
the head does not: log-probabilities come first, then the loss and its gradient in them, then the head block by block
backwards, then the decoder. Each row weighs the same, whatever its pass or rank. On a CPU the first step's
log-probabilities are the cached reference's, bit by bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

from alignment.data.tokens import TokenSequence
from alignment.methods import Method, PairLogps
from alignment.models.forward import head_backward, head_logps, own_logps, row_sums
from alignment.models.packing import shares
from alignment.models.runner import Runner

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


class PairRow(Protocol):
    """What a step reads of a pair; reference log-probs in nats, summed over each completion, or NaN."""

    @property
    def chosen(self) -> TokenSequence: ...
    @property
    def rejected(self) -> TokenSequence: ...
    @property
    def ref_chosen_logp(self) -> float: ...
    @property
    def ref_rejected_logp(self) -> float: ...


@dataclass
class StepNumbers:
    """Sums over the rows of a step (or of one rank's share); `loss` includes every term that is trained on, and rewards
    are the method's."""

    rows: float = 0.0
    loss: float = 0.0
    chosen_reward: float = 0.0
    rejected_reward: float = 0.0
    accuracy: float = 0.0
    chosen_logp: float = 0.0
    rejected_logp: float = 0.0
    tokens: float = 0.0
    """Tokens of the rows' sequences, each with its prompt."""
    forwarded: float = 0.0
    """Tokens that went through the model: a shared prompt counts once."""
    positions: float = 0.0
    """Places they were computed in: the rest is padding."""

    def add(self, method: Method, logps: PairLogps, losses: Tensor) -> None:
        """Counts the rows of one pass; `losses` is [rows]."""
        chosen, rejected = (reward.detach() for reward in method.rewards(logps))
        self.rows += len(losses)
        self.loss += float(losses.detach().sum())
        self.chosen_reward += float(chosen.sum())
        self.rejected_reward += float(rejected.sum())
        self.accuracy += float((chosen > rejected).sum()) + 0.5 * float((chosen == rejected).sum())
        self.chosen_logp += float(logps.policy_chosen.detach().sum())
        self.rejected_logp += float(logps.policy_rejected.detach().sum())

    def over_ranks(self) -> StepNumbers:
        """The same of all ranks together."""
        import torch

        if not _has_ranks():
            return self
        names = [field.name for field in fields(self)]
        sums = torch.tensor([getattr(self, name) for name in names], dtype=torch.float64)
        torch.distributed.all_reduce(sums)
        return StepNumbers(**dict(zip(names, sums.tolist(), strict=True)))


def backward(
    runner: Runner, method: Method, rows: Sequence[PairRow], step_rows: int, pass_tokens: int, clear: Iterable[Tensor]
) -> StepNumbers:
    """Adds to the weights' gradients those of Σ loss / `step_rows` over `rows`, this rank's share of a step.

    `pass_tokens` is tokens of one pass. When memory runs out the budget is halved, the gradients of `clear` (all that
    this step has changed) are dropped and the share is done again; raises the device's own error for a single row.
    """
    import torch

    parameters = list(clear)
    while True:
        budget = runner.budget(pass_tokens)
        largest = 0
        try:
            numbers = StepNumbers()
            sequences = [[row.chosen, row.rejected] for row in rows]
            for indices in runner.passes_of_rows(sequences, budget) if rows else []:
                largest = len(indices)
                _one_pass(runner, method, [rows[index] for index in indices], step_rows, runner.fill(budget), numbers)
            return numbers
        except torch.OutOfMemoryError:
            if largest == 1:
                raise
            runner.most = budget // 2
        for parameter in parameters:  # outside of the handler, whose traceback keeps the failed pass in memory
            parameter.grad = None
        torch.cuda.empty_cache()
        logger.warning("out of memory with passes of %d tokens: the step goes on with %d", budget, runner.most)


def _one_pass(
    runner: Runner, method: Method, rows: Sequence[PairRow], step_rows: int, fill: int, numbers: StepNumbers
) -> None:
    import torch

    sequences = [sequence for row in rows for sequence in (row.chosen, row.rejected)]
    groups = runner.groups(sequences)
    if runner.shared is False:
        groups = [[index] for index in range(len(sequences))]
    order = [index for group in groups for index in group]
    flat = [sequences[index] for index in order]
    if runner.head is None:
        logps = own_logps(runner.model, flat)
        sums, losses, pairs = _losses(method, rows, order, row_sums(logps, flat))
        (losses.sum() / step_rows).backward()  # type: ignore[no-untyped-call]
    else:
        states = runner.states([[sequences[index] for index in group] for group in groups], fill)
        sums = row_sums(head_logps(runner.head, states, flat, runner.vocabulary), flat).requires_grad_()
        sums, losses, pairs = _losses(method, rows, order, sums)
        (by_sequence,) = torch.autograd.grad(losses.sum() / step_rows, sums)
        by_token = torch.repeat_interleave(by_sequence, torch.tensor([len(row.completion_ids) for row in flat]))
        states.backward(head_backward(runner.head, states, flat, runner.vocabulary, by_token))  # type: ignore[no-untyped-call]
    numbers.add(method, pairs, losses)
    forwarded, positions = runner.size(sequences, groups)
    numbers.tokens += sum(map(len, sequences))
    numbers.forwarded += forwarded
    numbers.positions += positions


def _losses(
    method: Method, rows: Sequence[PairRow], order: Sequence[int], sums: Tensor
) -> tuple[Tensor, Tensor, PairLogps]:
    """(`sums`, the loss of each row, the pairs); `sums` stand in `order`, chosen and rejected of each row in turn."""
    import torch

    place = torch.empty(len(order), dtype=torch.long)
    place[torch.tensor(order)] = torch.arange(len(order))
    sides = sums[place].view(-1, 2)

    def column(values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64)

    pairs = PairLogps(
        policy_chosen=sides[:, 0],
        policy_rejected=sides[:, 1],
        ref_chosen=column(row.ref_chosen_logp for row in rows),
        ref_rejected=column(row.ref_rejected_logp for row in rows),
        chosen_tokens=column(len(row.chosen.completion_ids) for row in rows),
        rejected_tokens=column(len(row.rejected.completion_ids) for row in rows),
    )
    return sums, method.objective(pairs), pairs


# The ranks of one training run: each takes a share of every step's rows, and gradients are summed once a step.


def share_of(rows: Sequence[PairRow], rank: int, ranks: int) -> list[PairRow]:
    """This rank's rows of a step, even in tokens; none where there are more ranks than rows."""
    if ranks == 1:
        return list(rows)
    costs = [len(row.chosen) + len(row.rejected) for row in rows]
    return [rows[index] for index in shares(costs, ranks)[rank]]


BUCKET = 1 << 24
"""Elements that are summed over ranks in one call."""


def sum_over_ranks(weights: Iterable[Tensor]) -> None:
    """Replaces every weight's gradient by the sum of all ranks'; one that a rank has not counts as zero there.

    A weight that no rank has a gradient of keeps none, as with a single rank: AdamW would move it by a zero.
    """
    import torch

    if not _has_ranks():
        return
    weights = list(weights)
    reached = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.float32)
    torch.distributed.all_reduce(reached)
    bucket: list[Tensor] = []
    for weight, ranks in zip(weights, reached.tolist(), strict=True):
        if not ranks:
            continue
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        bucket.append(weight.grad)
        if sum(gradient.numel() for gradient in bucket) >= BUCKET:
            _reduce(bucket)
            bucket = []
    _reduce(bucket)


def _reduce(gradients: list[Tensor]) -> None:
    import torch

    if not gradients:
        return
    flat = torch.cat([gradient.flatten().float() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for gradient, summed in zip(gradients, torch.split(flat, [each.numel() for each in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def _has_ranks() -> bool:
    import torch

    initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
    return initialised and torch.distributed.get_world_size() > 1
