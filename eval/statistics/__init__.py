"""Statistics of evaluations: means, paired differences, tests and power. Pure functions of plain numbers."""

from eval.statistics.means import Interval, Mean, Shares, clustered_mean, mean_interval, ratio_interval
from eval.statistics.paired import paired_interval, score_interval, win_rate
from eval.statistics.power import clusters_needed, minimum_detectable_effect, p_above
from eval.statistics.significance import ComparisonVerdict, bootstrap_interval, holm, mcnemar_exact, verdict

__all__ = [
    "ComparisonVerdict",
    "Interval",
    "Mean",
    "Shares",
    "bootstrap_interval",
    "clustered_mean",
    "clusters_needed",
    "holm",
    "mcnemar_exact",
    "mean_interval",
    "minimum_detectable_effect",
    "p_above",
    "paired_interval",
    "ratio_interval",
    "score_interval",
    "verdict",
    "win_rate",
]
