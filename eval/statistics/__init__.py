"""Statistics of evaluations: means, paired differences, tests and power. Pure functions of plain numbers."""

from eval.statistics.means import (
    Interval,
    Mean,
    Repeats,
    Shares,
    clustered_mean,
    mean_interval,
    ratio_interval,
    repeats,
    share_difference,
    two_way_mean,
    weighted_difference,
)
from eval.statistics.paired import paired_interval, score_interval, win_rate
from eval.statistics.power import (
    Spread,
    clusters_needed,
    clusters_to_prove,
    minimum_detectable_effect,
    p_above,
    pooled_spread,
    smallest_provable,
)
from eval.statistics.significance import ComparisonVerdict, bootstrap_interval, holm, mcnemar_exact, verdict

__all__ = [
    "ComparisonVerdict",
    "Interval",
    "Mean",
    "Repeats",
    "Shares",
    "Spread",
    "bootstrap_interval",
    "clustered_mean",
    "clusters_needed",
    "clusters_to_prove",
    "holm",
    "mcnemar_exact",
    "mean_interval",
    "minimum_detectable_effect",
    "p_above",
    "paired_interval",
    "pooled_spread",
    "ratio_interval",
    "repeats",
    "score_interval",
    "share_difference",
    "smallest_provable",
    "two_way_mean",
    "verdict",
    "weighted_difference",
    "win_rate",
]
