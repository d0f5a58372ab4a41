"""One pass split over the ranks of a torchrun: rank 0 hands out shares, and all wait for the last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

PATIENCE = timedelta(days=7)
"""A launcher ends the other ranks when one dies; a slow one is waited for."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that score together; a single process has no others to talk to."""

    rank: int = 0
    world_size: int = 1

    @contextmanager
    def together(self) -> Iterator[None]:
        """A gloo process group for the while, unless the caller has one."""
        if self.world_size == 1:
            yield
            return
        import torch.distributed as dist

        mine = not dist.is_initialized()
        if mine:
            dist.init_process_group("gloo", timeout=PATIENCE)
        try:
            yield
        finally:
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
