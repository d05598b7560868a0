"""What a difference to vanilla amounts to: within a margin, beyond chance, or open, and then how many documents would
tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.statistics import LEVEL, Estimate

MARGIN = 1.0
"""Points: "less than 1 point lost" is what papers of this field claim (Lynx v3, abstract)."""

WITHIN, WORSE, BETTER, OPEN, NONE = "within", "worse", "better", "open", "-"
PERHAPS_WORSE, PERHAPS_BETTER = "worse?", "better?"
"""Beyond chance as the only row, not as one of so many."""
UNDECIDED = (OPEN, PERHAPS_WORSE, PERHAPS_BETTER)

COLUMNS = ("margin", "p_difference", "p_holm", "p_within", "verdict", "documents_needed")


def judged(rows: pd.DataFrame, margin: float = MARGIN) -> pd.DataFrame:
    """`rows` of `compare.results` or `macro.summary` with the columns of COLUMNS.

    `p_difference` tests that there is no difference (t test on the clustered standard error), `p_holm` is that after
    Holm's correction over all rows of the setting that have one; `p_within` tests that the difference is larger than
    `margin` points (`statistics.tost`). `verdict`: "within" if p_within < 5 % (also where a difference is certain, but
    small), else "worse" or "better" if p_holm < 5 %, "worse?" or "better?" if only p_difference is, else "open"; "-"
    for vanilla and where nothing can be compared or scores are not in points. `documents_needed`: of an undecided row
    (one of UNDECIDED), with which equivalence would be shown (power 80 %) if the policy changed nothing; more than
    there are.
    """
    if rows.empty:
        return rows.assign(**{name: pd.Series(dtype=object) for name in COLUMNS})
    found = rows.assign(margin=margin)
    estimates = [_difference(row) for row in found.to_dict("records")]
    found["p_difference"] = [statistics.p_value(estimate) for estimate in estimates]
    found["p_holm"] = found.groupby("setting")["p_difference"].transform(statistics.holm)
    found["p_within"] = [statistics.tost(estimate, margin) for estimate in estimates]
    found["verdict"] = [_verdict(row) for row in found.to_dict("records")]
    needed = [
        max(statistics.documents_needed(estimate, documents, margin), documents + 1.0)
        for estimate, documents in zip(estimates, found["documents"], strict=True)
    ]
    found["documents_needed"] = np.where(found["verdict"].isin(UNDECIDED), needed, np.nan)
    return found


def _difference(row: dict[str, Any]) -> Estimate:
    """NaN without a standard error where there is nothing to test."""
    se, df = row["difference_se"], row["difference_df"]
    if row["policy"] == "vanilla" or row.get("unit", "%") == "own" or not row["paired"] or np.isnan(se) or np.isnan(df):
        return Estimate(value=float("nan"))
    return Estimate(value=row["difference"], se=se, df=df)


def _verdict(row: dict[str, Any]) -> str:
    alpha = 1 - LEVEL
    if np.isnan(row["p_difference"]):
        return NONE
    if row["p_within"] < alpha:
        return WITHIN
    if row["p_difference"] >= alpha:
        return OPEN
    sure = row["p_holm"] < alpha
    if (row["difference"] > 0) == bool(row.get("higher_is_better", True)):
        return BETTER if sure else PERHAPS_BETTER
    return WORSE if sure else PERHAPS_WORSE
