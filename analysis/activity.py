"""Active experts, and assignments changed, of each stream of decode steps: a subtask, or the stream that the subtasks
of a mix share."""

from __future__ import annotations

import pandas as pd

from analysis import statistics
from analysis.load import Records
from analysis.statistics import Estimate

STREAM = ["cell_id", "subtask"]

FULL = 0.8
"""Share of a cell's decode steps that have every slot taken, below which its lanes drained."""


def by_lane(records: Records) -> pd.DataFrame:
    """One row per (cell, stream, lane): `weighted`, active experts of each step and layer times the scored rows of the
    step, and `tokens`, the latter alone: their ratio is the mean over scored tokens of the experts that ran in the step
    that made the token."""
    steps = records.steps
    scored = steps["scored_rows"].astype(float)
    weighed = steps.assign(weighted=steps["active_experts"] * scored, tokens=scored)
    return weighed.groupby([*STREAM, "lane"], observed=True)[["weighted", "tokens"]].sum().reset_index()


def active_experts(records: Records) -> dict[tuple[str, str], Estimate]:
    """Of each (cell, stream): mean over scored tokens and layers, clustered by lane."""
    if records.steps.empty:
        return {}
    lanes = by_lane(records)
    return ratios(lanes[lanes["tokens"] > 0], "weighted", "tokens")


def ratios(lanes: pd.DataFrame, top: str, bottom: str) -> dict[tuple[str, str], Estimate]:
    """Of each (cell, stream): the sum of one column over that of another; `lanes` has a row a (cell, stream, lane)."""
    tops, bottoms = lanes[top].to_numpy(dtype=float), lanes[bottom].to_numpy(dtype=float)
    places = lanes.groupby(STREAM, observed=True).indices
    return {key: statistics.ratio_of_sums(tops[at], bottoms[at]) for key, at in places.items()}


def occupancy(records: Records) -> dict[tuple[str, str], dict[str, float]]:
    """Of each (cell, stream): `live_rows`, mean over scored tokens of the rows of their step, and `full_steps`, the
    share (0..1) of decode steps in which every slot was taken."""
    if records.steps.empty:
        return {}
    steps = records.steps.drop_duplicates([*STREAM, "lane", "step"])
    sizes = records.cells.set_index("cell_id")["batch_size"]
    scored = steps["scored_rows"].astype(float)
    marked = steps.assign(
        weighted=steps["live_rows"] * scored,
        tokens=scored,
        full=steps["live_rows"] == steps["cell_id"].map(sizes).astype(int),
    )
    streams = marked.groupby(STREAM, observed=True).agg(
        weighted=("weighted", "sum"), tokens=("tokens", "sum"), full_steps=("full", "mean")
    )
    found = streams.assign(live_rows=streams["weighted"] / streams["tokens"])[["live_rows", "full_steps"]]
    return dict(zip(found.index, found.to_dict("records"), strict=True))


def changed_share(records: Records) -> dict[tuple[str, str], Estimate]:
    """Of each (cell, stream): share (0..1) of the assignments of its decode steps that the policy changed, clustered by
    lane. Without those of a cell that did not count them, or whose top-k is not on record."""
    counted = records.steps[records.steps["changed"].notna()] if len(records.steps) else records.steps
    return _shares(records, counted, "live_rows")


def prompt_changed_share(records: Records) -> dict[tuple[str, str], Estimate]:
    """Likewise of the prompts of cells whose policy acts on them."""
    return _shares(records, records.prefill, "tokens")


def retained_share(records: Records) -> dict[tuple[str, str], Estimate]:
    """Of each (cell, subtask) that was compared with vanilla: share (0..1) of the router's top-k mass that ran for the
    tokens of vanilla's responses that decode steps are fed, clustered by lane."""
    fed = records.fidelity.assign(fed=records.fidelity["tokens"] - 1)
    return _of_mass(fed, "retained", "fed")


def prompt_retained_share(records: Records) -> dict[tuple[str, str], Estimate]:
    """Likewise of their prompts, where the policy acts on them."""
    return _of_mass(records.fidelity, "prompt_retained", "prompt_tokens")


def _of_mass(rows: pd.DataFrame, mass: str, tokens: str) -> dict[tuple[str, str], Estimate]:
    if mass not in rows:  # no cell has it on record
        return {}
    known = rows[rows[mass].notna() & (rows[tokens] > 0)]
    return ratios(known.groupby([*STREAM, "lane"], observed=True)[[mass, tokens]].sum().reset_index(), mass, tokens)


def _shares(records: Records, rows: pd.DataFrame, tokens: str) -> dict[tuple[str, str], Estimate]:
    if rows.empty:
        return {}
    top_k = records.cells.set_index("cell_id")["top_k"]
    lanes = rows.groupby([*STREAM, "lane"], observed=True)[["changed", tokens]].sum().reset_index()
    lanes["assignments"] = lanes[tokens] * lanes["cell_id"].map(top_k).astype(float)
    known = lanes[lanes["assignments"].notna() & (lanes["assignments"] > 0)]
    return ratios(known, "changed", "assignments")
