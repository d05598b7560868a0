"""Active experts, and assignments changed, of each stream of decode steps: a subtask, or the stream that the subtasks
of a mix share."""

from __future__ import annotations

import pandas as pd

from analysis import statistics
from analysis.load import Records
from analysis.statistics import Estimate

STREAM = ["cell_id", "subtask"]


def full_steps(records: Records) -> pd.DataFrame:
    """Rows of `records.steps` that count: steps with a full batch; all steps of a stream that has none such."""
    sizes = records.cells.set_index("cell_id")["batch_size"]
    full = records.steps["live_rows"] == records.steps["cell_id"].map(sizes).astype(int)
    any_full = full.groupby([records.steps[name] for name in STREAM], observed=True).transform("any")
    return records.steps[full | ~any_full]


def active_experts(records: Records) -> dict[tuple[str, str], Estimate]:
    """Of each (cell, stream): mean over layers and full decode steps, clustered by lane."""
    if records.steps.empty:
        return {}
    lanes = full_steps(records).groupby([*STREAM, "lane"], observed=True)["active_experts"].agg(["sum", "count"])
    streams = lanes.reset_index().groupby(STREAM, observed=True)
    return {key: statistics.ratio_of_sums(part["sum"], part["count"]) for key, part in streams}


def changed_share(records: Records) -> dict[tuple[str, str], Estimate]:
    """Of each (cell, stream): share (0..1) of the assignments of its decode steps that the policy changed, clustered by
    lane. Without those of a cell that did not count them, or whose top-k is not on record."""
    counted = records.steps[records.steps["changed"].notna()] if len(records.steps) else records.steps
    return _shares(records, counted, "live_rows")


def prompt_changed_share(records: Records) -> dict[tuple[str, str], Estimate]:
    """Likewise of the prompts of cells whose policy acts on them."""
    return _shares(records, records.prefill, "tokens")


def _shares(records: Records, rows: pd.DataFrame, tokens: str) -> dict[tuple[str, str], Estimate]:
    if rows.empty:
        return {}
    top_k = records.cells.set_index("cell_id")["top_k"]
    lanes = rows.groupby([*STREAM, "lane"], observed=True)[["changed", tokens]].sum().reset_index()
    lanes["assignments"] = lanes[tokens] * lanes["cell_id"].map(top_k).astype(float)
    known = lanes[lanes["assignments"].notna() & (lanes["assignments"] > 0)]
    streams = known.groupby(STREAM, observed=True)
    return {key: statistics.ratio_of_sums(part["changed"], part["assignments"]) for key, part in streams}
