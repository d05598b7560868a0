"""Every decode step of a cell's run: its live rows, active experts and context, and who was live in it."""

# N steps, L lanes, F features (live rows, active experts over layers, positions attended to)

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.latency import Array
from analysis.load import Records


@dataclass(frozen=True, kw_only=True)
class LaneSums:
    """Over the decode steps of each lane."""

    steps: Array
    """`[L]`"""
    features: Array
    """`[L, F]`"""
    tokens: Array
    """`[L]`"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The decode steps of a cell, those of a lane one after the other."""

    features: Array
    """`[N, F]`"""
    sums: LaneSums
    first: np.ndarray
    """Of each request that was live in any step and is scored: the place of its first among the N."""
    spans: np.ndarray
    """In how many steps each of these requests was live."""

    def time_per_token(self, ms_N: Array) -> float:
        """Median over requests of the mean time of the steps in which a request was live: (E2E - TTFT) / (n - 1)."""
        if not len(self.first):
            return float("nan")
        before = np.concatenate([[0.0], np.cumsum(ms_N)])
        return float(np.median((before[self.first + self.spans] - before[self.first]) / self.spans))


def run_of(records: Records, cell: str, streams: Collection[str]) -> Run | None:
    """The run of a cell in these streams (subtasks, or the stream of a mix); None if its record is not complete."""
    steps = records.steps[(records.steps["cell_id"] == cell) & records.steps["subtask"].isin(streams)]
    responses = records.responses[records.responses["cell_id"] == cell]
    needed = ["entered_step", "prompt_tokens", "new_tokens"]
    if steps.empty or responses.empty or responses[needed].isna().any(axis=None):
        return None
    lane = steps["subtask"].astype(str).astype("category").cat.codes.to_numpy().astype(np.int64) << 40
    lane += steps["lane"].to_numpy(dtype=np.int64) << 20
    keys, first, inverse = np.unique(
        lane + steps["step"].to_numpy(dtype=np.int64), return_index=True, return_inverse=True
    )
    live = steps["live_rows"].to_numpy(dtype=float)[first]
    active = np.bincount(inverse, steps["active_experts"].to_numpy(dtype=float))
    spans = _spans(records, cell, steps, responses, keys)
    if spans is None:
        return None
    start, length, prompt, scored = spans
    at = np.repeat(start, length) + _ranges(length)
    context = np.bincount(at, np.repeat(prompt + 1, length) + _ranges(length), minlength=len(keys))
    features = np.stack([live, active, context], axis=1)
    _, of_lane = np.unique(keys >> 20, return_inverse=True)
    sums = LaneSums(
        steps=np.bincount(of_lane).astype(float),
        features=np.stack([np.bincount(of_lane, column) for column in features.T], axis=1),
        tokens=np.bincount(of_lane, live).astype(float),
    )
    return Run(features=features, sums=sums, first=start[scored], spans=length[scored])


def _spans(
    records: Records, cell: str, steps: pd.DataFrame, responses: pd.DataFrame, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Of each request that was live: place of its first step among `keys`, steps in which it was live, tokens of its
    prompt, whether it is scored. None if responses and steps are not of one run."""
    names = list(steps["subtask"].astype(str).astype("category").cat.categories)
    info = records.cells[records.cells["cell_id"] == cell].iloc[0]
    of = responses["subtask"].astype(str) if pd.isna(info["mixing"]) else pd.Series(info["task"], responses.index)
    live = responses.assign(stream=of)[(responses["new_tokens"] > 1) & of.isin(names)]
    lane = live["stream"].map(names.index).to_numpy(dtype=np.int64) << 40
    lane += live["lane"].to_numpy(dtype=np.int64) << 20
    wanted = lane + live["entered_step"].to_numpy(dtype=np.int64)
    start, length = np.searchsorted(keys, wanted), live["new_tokens"].to_numpy(dtype=np.int64) - 1
    end = start + length
    if (end > len(keys)).any() or (keys[start] != wanted).any() or (keys[end - 1] != wanted + length - 1).any():
        return None
    filler = live["filler"].fillna(False).to_numpy(dtype=bool) if "filler" in live else np.zeros(len(live), bool)
    return start, length, live["prompt_tokens"].to_numpy(dtype=np.int64), ~filler


def _ranges(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... of each length, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
