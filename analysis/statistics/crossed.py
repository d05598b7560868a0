"""Variance of a mean whose observations share documents in one direction and lanes in the other."""

# M observations (a document under a plan), N documents, G lanes

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of the mean of M observations."""

    clustered: float
    """Its variance."""
    independent: float
    """What it would be if only the observations of one document were alike."""
    df: float
    rows: float
    """Documents of a lane, on average."""
    plans: int


def numbered(names_N: ArrayLike) -> NDArray[np.intp]:
    """`[N]` 0, 1, ... in the order of the names, as np.unique's inverse. (That sorts; whole numbers from 0 on, which
    lanes and documents are, need no sorting, and tables of thousands of cells ask a hundred thousand times.)"""
    names = np.asarray(names_N)
    if not len(names) or names.dtype.kind not in "iu" or names.max() > 4 * len(names) or names.min() < 0:
        return np.unique(names, return_inverse=True)[1]
    there = np.bincount(names) > 0
    return names.astype(np.intp, copy=False) if there.all() else (np.cumsum(there) - 1)[names]


def spread(residuals_M: ArrayLike, documents_M: ArrayLike, lanes_M: ArrayLike, plans_M: ArrayLike) -> Spread | None:
    """Cluster-robust in both directions (Cameron, Gelbach and Miller 2011): variance by lanes, plus variance by
    documents, minus that of single observations, which both hold; lanes are numbered through all plans.

    `residuals_M`: observations less their mean, or influence values. Degrees of freedom are Satterthwaite's (1946) of
    lanes and documents. Plans are shuffles of the same documents, so what differs between them is what differs between
    lanes. If that does not explain how far the plans' means lie apart (F test at 5 %), plans take the place of lanes.
    With one plan, documents are observations and it is the usual variance by lanes, G - 1 degrees of freedom.
    None with fewer than two lanes.
    """
    residuals = np.asarray(residuals_M, dtype=float)
    lane = numbered(lanes_M)
    document = numbered(documents_M)
    plan = numbered(plans_M)
    lanes, documents, plans, total = lane.max() + 1, document.max() + 1, plan.max() + 1, len(residuals)
    if lanes < 2:
        return None
    sums_G, sums_N = np.bincount(lane, weights=residuals), np.bincount(document, weights=residuals)
    single = float(residuals @ residuals) / total**2
    by_document = documents / max(documents - 1, 1) * float(sums_N @ sums_N) / total**2
    by_lane, df = lanes / (lanes - 1) * float(sums_G @ sums_G) / total**2, float(lanes - 1)
    if plans > 1 and lanes > plans:
        sums_P = np.bincount(plan, weights=residuals)
        by_plan = plans / (plans - 1) * float(((sums_P - sums_P.mean()) ** 2).sum()) / total**2
        if by_lane > 0 and special.fdtrc(plans - 1, lanes - plans, by_plan / by_lane) < 0.05:
            by_lane, df = by_plan, float(plans - 1)
    if documents == total:
        return Spread(clustered=by_lane, independent=by_document, df=df, rows=total / lanes, plans=int(plans))
    own = max(by_document - single, 0.0)
    clustered = by_lane + own
    if clustered > 0 and documents > 1:
        df = clustered**2 / (by_lane**2 / df + own**2 / (documents - 1))
    return Spread(clustered=clustered, independent=by_document, df=df, rows=total / lanes, plans=int(plans))
