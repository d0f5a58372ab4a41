"""What an evaluation may conclude from its items. Pure functions of plain numbers."""

from eval.statistics.bootstrap import bootstrap_interval
from eval.statistics.holm import holm
from eval.statistics.interval import Interval, Shares, mean_interval
from eval.statistics.mcnemar import mcnemar_exact
from eval.statistics.mean import Mean, clustered_mean
from eval.statistics.paired import paired_interval
from eval.statistics.power import clusters_needed, minimum_detectable_effect, p_above
from eval.statistics.ratio import ratio_interval
from eval.statistics.tango import score_interval
from eval.statistics.verdict import ComparisonVerdict, verdict
from eval.statistics.win_rate import win_rate

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
