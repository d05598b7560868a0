"""Estimates with 95 % intervals, tests and sample sizes, for scores that are clustered by lane.

Rows that share a lane share the policy's decisions, so they are not independent: the lane is the cluster.
"""

from analysis.statistics.bootstrap import Array, bca, lane_draws
from analysis.statistics.changes import gamma_limits, mean_change
from analysis.statistics.clustered import (
    FLAT,
    cluster_sums,
    mean,
    mean_of,
    paired_difference,
    per_document,
    ratio_of_sums,
    wilson,
)
from analysis.statistics.combined import dependent_mean, difference_of_means, macro_mean
from analysis.statistics.crossed import Spread, spread
from analysis.statistics.equivalence import POWER, documents_needed, lanes_needed, tost
from analysis.statistics.estimate import LEVEL, Estimate, t_interval
from analysis.statistics.pass_at_k import pass_values
from analysis.statistics.serial import serial_ratio
from analysis.statistics.significance import Discordance, discordance, holm, p_value

__all__ = [
    "FLAT",
    "LEVEL",
    "POWER",
    "Array",
    "Discordance",
    "Estimate",
    "Spread",
    "bca",
    "cluster_sums",
    "dependent_mean",
    "difference_of_means",
    "discordance",
    "documents_needed",
    "gamma_limits",
    "holm",
    "lane_draws",
    "lanes_needed",
    "macro_mean",
    "mean",
    "mean_change",
    "mean_of",
    "p_value",
    "paired_difference",
    "pass_values",
    "per_document",
    "ratio_of_sums",
    "serial_ratio",
    "spread",
    "t_interval",
    "tost",
    "wilson",
]
