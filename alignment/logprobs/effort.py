"""What scoring took, as a person wants to see it: speed, waste, and how much of the device it used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import zip_longest
from typing import Any, TypeVar


@dataclass(frozen=True)
class Effort:
    """`tokens` are those of the scored sequences, each with its prompt.

    Of them `forwarded` went through the model, a shared prompt once, in `positions` places: the rest is padding.
    `flops` are the useful operations, `peak` what all devices could do in a second; None where it is not known.
    `seconds` are those of the slowest rank, without loading the model. `shares` are the forwarded tokens of each rank,
    where there are several.
    """

    tokens: int = 0
    forwarded: int = 0
    positions: int = 0
    seconds: float = 0.0
    flops: float | None = 0.0
    peak: float | None = None
    shares: tuple[int, ...] = ()

    def then(self, later: Effort) -> Effort:
        """Both, one after the other on the same devices."""
        return Effort(
            self.tokens + later.tokens,
            self.forwarded + later.forwarded,
            self.positions + later.positions,
            self.seconds + later.seconds,
            None if self.flops is None or later.flops is None else self.flops + later.flops,
            later.peak if later.tokens else self.peak,
            tuple(sum(both) for both in zip_longest(self.shares, later.shares, fillvalue=0)),
        )

    def numbers(self) -> dict[str, Any]:
        """For a summary; empty when nothing was scored. `mfu` is the model FLOP utilisation, a share of 1."""
        if not self.tokens or not self.seconds:
            return {}
        told: dict[str, Any] = {
            "forwarded_tokens": self.forwarded,
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "padding_waste": round(self.positions / self.forwarded - 1, 5),
        }
        if self.shares:
            told["forwarded_per_rank"] = list(self.shares)
        if self.flops is not None:
            told["useful_tflops_per_second"] = round(self.flops / self.seconds / 1e12, 4)
            if self.peak is not None:
                told["mfu"] = round(self.flops / self.seconds / self.peak, 4)
        return told


def side_by_side(ranks: Sequence[Effort]) -> Effort:
    """What ranks did at the same time, as one; a rank with nothing to do counts for its device."""
    flops = [rank.flops for rank in ranks]
    peaks = [rank.peak for rank in ranks if rank.peak is not None]
    return Effort(
        sum(rank.tokens for rank in ranks),
        sum(rank.forwarded for rank in ranks),
        sum(rank.positions for rank in ranks),
        max(rank.seconds for rank in ranks),
        None if None in flops else sum(each for each in flops if each is not None),
        len(ranks) * max(peaks) if peaks else None,
        tuple(rank.forwarded for rank in ranks) if len(ranks) > 1 else (),
    )


# One pass split over the ranks of a torchrun: rank 0 hands out shares, and all wait for the last.

PATIENCE = timedelta(days=7)
"""A launcher ends the other ranks when one dies; a slow one is waited for."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that work together; a single process has no others to talk to."""

    rank: int = 0
    world_size: int = 1

    @contextmanager
    def together(self) -> Iterator[None]:
        """A process group for the while, unless the caller has one: gloo for what is said, NCCL between GPUs.

        A rank that fails leaves it open until its process ends: the others fail where they wait for it, and the
        launcher would end this one before it has said why.
        """
        if self.world_size == 1:
            yield
            return
        import torch
        import torch.distributed as dist

        mine = not dist.is_initialized()
        if mine:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)
        yield
        if mine:
            dist.destroy_process_group()

    def share(self, shares: Sequence[T] | None) -> T:
        """This rank's of the shares that rank 0 gives, one a rank."""
        if self.world_size == 1:
            assert shares is not None
            return shares[0]
        import torch.distributed as dist

        mine: list[T | None] = [None]
        dist.scatter_object_list(mine, None if shares is None else list(shares), src=0)
        assert mine[0] is not None
        return mine[0]

    def gather(self, mine: T) -> list[T]:
        """Every rank's value, in the order of ranks, once every rank is here."""
        if self.world_size == 1:
            return [mine]
        import torch.distributed as dist

        everyones: list[T | None] = [None] * self.world_size
        dist.all_gather_object(everyones, mine)
        return [value for value in everyones if value is not None]


ALONE = Ranks()
