"""One row a point: the same point of a sweep may lie in several cells, which record different things of it."""

from __future__ import annotations

import pandas as pd

from analysis.labels import POINT

_POINT = list(POINT)
_FILLED = ("kl", "agreement", "selection_us", "changed", "prompt_changed", "retained", "prompt_retained")
"""Columns that may come from another cell of the point."""


def merged(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` of `compare.results`, one a point, in their order.

    Cells that differ only in what they record (latency, fidelity, tokens) hold the same answers: the timed one stands
    for all, and takes distances from vanilla and changed assignments from the others. One timed at a context of its own
    (`measure.context`) gives way to those timed as their task is; where there are none such, each context is a point,
    named in `series`.
    """
    if rows.empty:
        return rows
    found = rows.assign(at=range(len(rows)), untimed=rows["step_ms"].isna(), own=rows["timed_context"].notna())
    found = found[~found["own"] | found.groupby(_POINT, dropna=False)["own"].transform("all")]
    context = found["timed_context"]
    named = found["series"] + context.map(lambda tokens: "" if pd.isna(tokens) else f" (context {tokens:.0f})")
    found = found.assign(series=named).sort_values(["untimed", "at"], kind="stable")
    columns = [c for name in _FILLED for c in found.columns if c == name or c.startswith(f"{name}_")]
    groups = found.groupby(_POINT, dropna=False, sort=False)
    found[columns] = found[columns].where(found[columns].notna(), groups[columns].transform("first"))
    return (
        found[~found.duplicated(_POINT)].sort_values("at").drop(columns=["at", "untimed", "own"]).reset_index(drop=True)
    )
