"""What a difference to vanilla amounts to: within a margin, beyond chance, or open, and then how many documents would
tell."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.frame_rows import Row, rows_of
from analysis.statistics import LEVEL, Estimate

MARGIN = 1.0
"""Points: "less than 1 point lost" is what papers of this field claim (Lynx v3, abstract)."""

WITHIN, WORSE, BETTER, OPEN, NONE = "within", "worse", "better", "open", "-"
PERHAPS_WORSE, PERHAPS_BETTER = "worse?", "better?"
"""Beyond chance as the only row, not as one of so many."""
FEW_LANES = "few lanes"
"""Within the margin if lanes are alike; a rare kind of lane would not have been seen (`statistics.lanes_needed`)."""
UNDECIDED = (OPEN, PERHAPS_WORSE, PERHAPS_BETTER)

COLUMNS = ("margin", "p_difference", "p_holm", "p_within", "verdict", "documents_needed", "lanes_needed")


def judged(rows: pd.DataFrame, margin: float = MARGIN, *, beside: pd.DataFrame | None = None) -> pd.DataFrame:
    """`rows` of `compare.results` or `macro.summary` with the columns of COLUMNS.

    `p_difference` tests that there is no difference, by inverting the interval beside it (`Estimate.beyond`); `p_holm`
    is that after Holm's correction over all rows that have one, those of `beside` (what is looked at first) included.
    `p_within` tests that the difference is larger than `margin` points (`statistics.tost`). `verdict`: "within" if
    p_within < 5 % (also where a difference is certain, but small), or "few lanes" if there are fewer than
    `lanes_needed`; else "worse" or "better" if p_holm < 5 %, "worse?" or "better?" if only p_difference is, else
    "open"; "-" for vanilla and where nothing can be compared or scores are not in points. `documents_needed`: of an
    undecided row (one of UNDECIDED), with which equivalence would be shown (power 80 %) if the policy changed nothing;
    more than there are. `lanes_needed`: with which a kind of lane rare enough not to be seen could not cost the margin;
    a continuous lane counts as often as its rows are filled.
    """
    if rows.empty:
        return rows.assign(**{name: pd.Series(dtype=object) for name in COLUMNS})
    found = rows.assign(margin=margin)
    estimates = [_difference(row) for row in _records(found)]
    found["p_difference"] = [statistics.p_value(estimate) for estimate in estimates]
    others = [] if beside is None else [_difference(row) for row in _records(beside)]
    family = [*found["p_difference"], *map(statistics.p_value, others)]
    found["p_holm"] = statistics.holm(family)[: len(found)]
    found["p_within"] = [statistics.tost(estimate, margin) for estimate in estimates]
    compared = found["p_difference"].notna()
    found["lanes_needed"] = np.where(compared, float(statistics.lanes_needed(margin)), np.nan)
    found["verdict"] = [_verdict(row) for row in _records(found)]
    needed = [
        max(statistics.documents_needed(estimate, documents, margin), documents + 1.0)
        for estimate, documents in zip(estimates, found["documents"], strict=True)
    ]
    found["documents_needed"] = np.where(found["verdict"].isin(UNDECIDED), needed, np.nan)
    return found


_LOOKED_AT = (
    *("policy", "unit", "paired", "difference", "difference_low", "difference_high", "difference_se", "difference_df"),
    *("difference_pad", "plans", "lanes", "documents", "batch_size", "higher_is_better"),
    *("p_difference", "p_holm", "p_within", "lanes_needed"),
)


def _records(rows: pd.DataFrame) -> list[Row]:
    return rows_of(rows[[name for name in _LOOKED_AT if name in rows]])


def _difference(row: Row) -> Estimate:
    """Without an interval where there is nothing to test."""
    parts = {name: float(row[f"difference_{name}"]) for name in ("low", "high", "se", "df")}
    nothing = row["policy"] == "vanilla" or row.get("unit", "%") == "own" or not row["paired"]
    if nothing or np.isnan(list(parts.values())).any():
        return Estimate(value=float("nan"))
    return Estimate(value=row["difference"], **parts, pad=row.get("difference_pad", 0.0))


def _lanes(row: Row) -> float:
    """Lanes that were filled: of B documents each, or fewer."""
    documents = float(row.get("plans", 1.0)) * float(row["documents"])
    return max(float(row.get("lanes", 0.0)), documents / max(float(row.get("batch_size", 1.0)), 1.0))


def _verdict(row: Row) -> str:
    alpha = 1 - LEVEL
    if np.isnan(row["p_difference"]):
        return NONE
    if row["p_within"] < alpha:
        return WITHIN if _lanes(row) >= row["lanes_needed"] else FEW_LANES
    if row["p_difference"] >= alpha:
        return OPEN
    sure = row["p_holm"] < alpha
    if (row["difference"] > 0) == bool(row.get("higher_is_better", True)):
        return BETTER if sure else PERHAPS_BETTER
    return WORSE if sure else PERHAPS_WORSE
