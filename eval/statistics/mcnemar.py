"""McNemar's exact test for two models on the same right-or-wrong items."""

from __future__ import annotations


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided p-value that items are gained and lost alike, by the binomial distribution (McNemar 1947).

    Only the items on which the models differ count; with none of them it is 1.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"{gained} gained and {lost} lost are no counts")
    from scipy.special import bdtr

    return min(1.0, 2.0 * float(bdtr(min(gained, lost), gained + lost, 0.5)))
