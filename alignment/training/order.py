"""The order rows are trained in: decided by the data's digest and the seed, by nothing that is named or placed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def training_order(
    row_ids: Sequence[str], lengths: Sequence[int], digest: str, seed: int, epochs: float, batch_size: int
) -> list[int]:
    """Indices into `row_ids`, `round(epochs * rows)` of them (at least one).

    Each epoch is another permutation of the rows sorted by id. Within the rows of one optimiser step,
    which share one gradient, longer rows go first, so that a micro batch pads little.
    """
    by_id = sorted(range(len(row_ids)), key=lambda index: row_ids[index])
    wanted = max(1, round(epochs * len(by_id)))
    order: list[int] = []
    epoch = 0
    while len(order) < wanted:
        order += [by_id[place] for place in _permutation(len(by_id), digest, seed, epoch)]
        epoch += 1
    order = order[:wanted]
    for start in range(0, wanted, batch_size):
        order[start : start + batch_size] = sorted(order[start : start + batch_size], key=lambda index: -lengths[index])
    return order


def _permutation(count: int, digest: str, seed: int, epoch: int) -> list[int]:
    import numpy as np

    entropy = hashlib.sha256(f"{digest} {seed} {epoch}".encode()).digest()
    shuffled = np.random.Generator(np.random.PCG64(int.from_bytes(entropy, "big"))).permutation(count)
    return [int(place) for place in shuffled]
