"""Estimates with 95 % intervals, tests and sample sizes, for scores that are clustered by lane.

Rows that share a lane share the policy's decisions, so they are not independent: the lane is the cluster.
"""

from analysis.statistics.bootstrap import bca, lane_draws
from analysis.statistics.clustered import (
    FLAT,
    cluster_sums,
    floored,
    mean,
    paired_difference,
    ratio_of_sums,
    unchanged,
    wilson,
)
from analysis.statistics.combined import dependent_mean, difference_of_means, macro_mean
from analysis.statistics.equivalence import POWER, documents_needed, tost
from analysis.statistics.estimate import LEVEL, Estimate, t_interval
from analysis.statistics.significance import Discordance, discordance, holm, p_value

__all__ = [
    "FLAT",
    "LEVEL",
    "POWER",
    "Discordance",
    "Estimate",
    "bca",
    "cluster_sums",
    "dependent_mean",
    "difference_of_means",
    "discordance",
    "documents_needed",
    "floored",
    "holm",
    "lane_draws",
    "macro_mean",
    "mean",
    "p_value",
    "paired_difference",
    "ratio_of_sums",
    "t_interval",
    "tost",
    "unchanged",
    "wilson",
]
