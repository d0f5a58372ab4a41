"""One optimiser step: every row's loss and gradient through the scorer's own packed forward pass.

The rows of a step are laid out in passes, each row whole in one of them. Of a pass the decoder keeps its activations;
the head does not: log-probabilities come first, then the loss and its gradient in them, then the head block by block
backwards, then the decoder. Each row weighs the same, whatever its pass or rank. Where
the rows of a step are coupled, what couples them is scored first, without a gradient. On a CPU the first step's
log-probabilities are the cached reference's, bit by bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from alignment.data.tokens import TokenSequence, first_lengths
from alignment.errors import BadInput
from alignment.methods import Method
from alignment.models.forward import first_sums, head_backward, head_logps, own_logps, row_sums
from alignment.models.packing import shares
from alignment.models.runner import Runner
from alignment.models.sharding import local
from alignment.training.router import RouterLoss, spans_of

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


Row = Any
"""A row of a step: it has the sequences that the method names (`Method.sequences`, `coupled`) as attributes, and what
the method's `logps` reads, such as reference log-probs in nats."""


@dataclass
class StepNumbers:
    """Sums over the rows of a step (or of one rank's share); `loss` includes every term that is trained on, and rewards
    are the method's. `chosen` and `rejected` are how many completions each side's sums are of."""

    rows: float = 0.0
    loss: float = 0.0
    chosen: float = 0.0
    rejected: float = 0.0
    chosen_reward: float = 0.0
    rejected_reward: float = 0.0
    accuracy: float = 0.0
    chosen_logp: float = 0.0
    rejected_logp: float = 0.0
    beside: float = 0.0
    """How many other rows the step has, and their losses, which are in `loss` too."""
    beside_loss: float = 0.0
    router_loss: float = 0.0
    """A mixture of experts' balancing term of all rows, without its coefficient; it is not in `loss`."""
    tokens: float = 0.0
    """Tokens of the rows' sequences, each with its prompt."""
    forwarded: float = 0.0
    """Tokens that went through the model: a shared prompt counts once."""
    positions: float = 0.0
    """Places they were computed in: the rest is padding."""

    def add(self, method: Method, logps: Any, losses: Tensor, constants: Any) -> None:
        """Counts the rows of one pass; `losses` is [rows]."""
        chosen, rejected = (reward.detach() for reward in method.rewards(logps))
        chosen_logps, rejected_logps = (side.detach() for side in logps.sides)
        self.rows += len(losses)
        self.loss += float(losses.detach().sum())
        self.chosen += len(chosen)
        self.rejected += len(rejected)
        self.chosen_reward += float(chosen.sum())
        self.rejected_reward += float(rejected.sum())
        self.accuracy += float(method.right(logps, constants).detach().sum())
        self.chosen_logp += float(chosen_logps.sum())
        self.rejected_logp += float(rejected_logps.sum())

    def add_beside(self, losses: Tensor) -> None:
        """Counts other rows of one pass, by their losses [rows]."""
        self.beside += len(losses)
        self.beside_loss += float(losses.detach().sum())
        self.loss += float(losses.detach().sum())

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
    runner: Runner,
    method: Method,
    rows: Sequence[Row],
    step_rows: int,
    pass_tokens: int,
    clear: Iterable[Tensor],
    constants: Any = None,
    beside: tuple[Method, Sequence[Row]] | None = None,
    router: RouterLoss | None = None,
) -> StepNumbers:
    """Adds to the weights' gradients those of Σ loss / `step_rows` over `rows`, this rank's share of a step.

    `beside` are other rows of the step, such as demonstrations, with a loss of their own; each weighs as much as a row.
    `constants` are the method's of this step (`Method.prepare`), where its rows are coupled. `router` adds its term for
    every row. `pass_tokens` is tokens of
    one pass. When memory runs out the budget is halved, the gradients of `clear` (all that this step has changed) are
    dropped and the share is done again; raises the device's own error for a single row.
    """
    import torch

    parameters = list(clear)
    while True:
        budget = runner.budget(pass_tokens)
        largest = 0
        try:
            numbers = StepNumbers()
            sequences = [trained(method, row) for row in rows]
            passes = runner.passes_of_rows(sequences, budget) if rows else []
            other, more = beside or (method, [])
            beside_sequences = [trained(other, row) for row in more]
            beside_passes = runner.passes_of_rows(beside_sequences, budget) if more else []
            missing = runner.missing(len(passes) + len(beside_passes))
            for indices in passes:
                largest, part = len(indices), [rows[index] for index in indices]
                fill = runner.fill(budget)
                logps, losses = _one_pass(runner, method, part, step_rows, fill, numbers, constants, router)
                numbers.add(method, logps, losses, constants)
            for indices in beside_passes:
                largest, part = len(indices), [more[index] for index in indices]
                fill = runner.fill(budget)
                _, losses = _one_pass(runner, other, part, step_rows, fill, numbers, None, router)
                numbers.add_beside(losses)
            for _ in range(missing):
                _empty_pass(runner)
            return numbers
        except torch.OutOfMemoryError as error:
            if runner.sharding is not None:  # the other ranks wait in the middle of this pass
                what = f"a pass of {budget} tokens does not fit into memory: say {budget // 2}"
                raise BadInput(what, field="reference.batch_tokens") from error
            if largest == 1:
                raise
            runner.most = budget // 2
        for parameter in parameters:  # outside of the handler, whose traceback keeps the failed pass in memory
            parameter.grad = None
        torch.cuda.empty_cache()
        logger.warning("out of memory with passes of %d tokens: the step goes on with %d", budget, runner.most)


def trained(method: Method, row: Row) -> list[TokenSequence]:
    """The sequences of a row that get a gradient."""
    return [getattr(row, name) for name in method.sequences]


def _one_pass(
    runner: Runner,
    method: Method,
    rows: Sequence[Row],
    step_rows: int,
    fill: int,
    numbers: StepNumbers,
    constants: Any,
    router: RouterLoss | None,
) -> tuple[Any, Tensor]:
    """Adds the gradients of one pass; returns what the loss took, and the losses [rows]."""
    import torch

    sequences = [sequence for row in rows for sequence in trained(method, row)]
    groups = runner.groups(sequences)
    if runner.shared is False:
        groups = [[index] for index in range(len(sequences))]
    order = [index for group in groups for index in group]
    flat = [sequences[index] for index in order]
    if runner.head is None:
        if router is not None:
            what = f"no known head gives the logits of {type(runner.model).__name__}; leave it out"
            raise BadInput(what, field="router_aux_loss_coef")
        policy = _policy(method, rows, order, own_logps(runner.model, flat), flat)
        logps = method.logps.of(rows, policy)
        losses = method.objective(logps, constants)
        (losses.sum() / step_rows).backward()  # type: ignore[no-untyped-call]
    else:
        grouped = [[sequences[index] for index in group] for group in groups]
        recording: AbstractContextManager[list[Tensor]] = nullcontext([]) if router is None else router.recorded()
        with recording as routed:
            states = runner.states(grouped, fill)
        tokens = head_logps(runner.head, states, flat, runner.vocabulary).requires_grad_()
        logps = method.logps.of(rows, _policy(method, rows, order, tokens, flat))
        losses = method.objective(logps, constants)
        (by_token,) = torch.autograd.grad(losses.sum() / step_rows, tokens)
        roots, gradients = [states], [head_backward(runner.head, states, flat, runner.vocabulary, by_token)]
        if router is not None:
            balance = router.of(routed, spans_of(runner, grouped)).sum() / len(method.sequences)
            numbers.router_loss += float(balance.detach())
            roots, gradients = [*roots, balance], [*gradients, balance.new_tensor(router.coefficient / step_rows)]
        torch.autograd.backward(roots, gradients)
    forwarded, positions = runner.size(sequences, groups)
    numbers.tokens += sum(map(len, sequences))
    numbers.forwarded += forwarded
    numbers.positions += positions
    return logps, losses


def _empty_pass(runner: Runner) -> None:
    """Takes part in another rank's pass, with a gradient of zero."""
    import torch

    assert runner.head is not None
    states = runner.empty()
    nothing = torch.zeros(len(states), dtype=torch.float64)
    states.backward(head_backward(runner.head, states, [runner.short], runner.vocabulary, nothing))  # type: ignore[no-untyped-call]


def _policy(
    method: Method, rows: Sequence[Row], order: Sequence[int], tokens: Tensor, flat: Sequence[TokenSequence]
) -> dict[str, Tensor]:
    """The policy's log-probs [rows] by the name of their sequence, those over first tokens as `NAME_first`.

    `tokens` are the log-probs of the completion tokens of `flat`, which stands in `order`; without an order the
    sequences of each row come in turn.
    """
    import torch

    place = torch.empty(len(order), dtype=torch.long)
    place[torch.tensor(order)] = torch.arange(len(order))
    names = method.sequences

    def by_name(sums: Tensor) -> list[Tensor]:
        return list(sums[place].view(-1, len(names)).unbind(1))

    policy = dict(zip(names, by_name(row_sums(tokens, flat)), strict=True))
    if method.first_tokens:
        lengths = [length for row in rows for length in first_lengths(trained(method, row))]
        firsts = first_sums(tokens, flat, [lengths[index] for index in order])
        policy |= {f"{name}_first": sums for name, sums in zip(names, by_name(firsts), strict=True)}
    return policy


# The ranks of one training run: each takes a share of every step's rows, and gradients are summed once a step.


def share_of(method: Method, rows: Sequence[Row], rank: int, ranks: int) -> list[int]:
    """The places of this rank's rows in a step, even in tokens; none where there are more ranks than rows."""
    if ranks == 1:
        return list(range(len(rows)))
    names = (*method.sequences, *method.coupled)
    parts = ([getattr(row, name) for name in names] for row in rows)
    # a row that is alone in its shard has no partner
    return shares([sum(len(one) for one in part if one is not None) for part in parts], ranks)[rank]


def constants_of(
    method: Method, rows: Sequence[Row], share: Sequence[int], score: Callable[[list[TokenSequence]], list[float]]
) -> Any:
    """What `method` prepares for a step of `rows`, the same on every rank; None where its rows are not coupled.

    Each rank scores the coupled sequences of its `share` of the rows by `score` (nats, without gradient). The ranks
    exchange the log-ratios themselves, not their sums, so that not a bit depends on how many they are.
    """
    import torch

    if not method.coupled:
        return None
    (name,) = method.coupled
    ratios = torch.zeros(len(rows), dtype=torch.float64)
    mine = [place for place in share if getattr(rows[place], name) is not None]
    scored = score([getattr(rows[place], name) for place in mine])
    for place, logp in zip(mine, scored, strict=True):
        ratios[place] = logp - getattr(rows[place], f"ref_{name}_logp")
    if _has_ranks():
        torch.distributed.all_reduce(ratios)
    return method.prepare(ratios[[getattr(row, name) is not None for row in rows]])


BUCKET = 1 << 24
"""Elements that are summed over ranks in one call."""


def sum_over_ranks(weights: Iterable[Tensor]) -> None:
    """Replaces every weight's gradient by the sum of all ranks'; one that a rank has not counts as zero there.

    A weight that no rank has a gradient of keeps none, as with a single rank: AdamW would move it by a zero. A sharded
    weight's is that of all ranks already.
    """
    import torch

    if not _has_ranks():
        return
    weights = [weight for weight in weights if local(weight) is weight]
    if not weights:
        return
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
