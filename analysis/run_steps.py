"""Every decode step of a cell's run: its live rows, active experts and context, and who was live in it."""

# N steps, L lanes, F features (live rows, active experts over layers, positions attended to)

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.load import Records
from analysis.statistics import Array


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


class Runs:
    """The runs of a study's cells. Columns are taken out of their frames once, for all of them."""

    def __init__(self, records: Records) -> None:
        steps, responses = records.steps, records.responses
        self._task = dict(zip(records.cells["cell_id"], records.cells["task"], strict=True))
        self._is_mix = dict(zip(records.cells["cell_id"], records.cells["mixing"].notna(), strict=True))
        self._steps_of = steps.groupby("cell_id", observed=True).indices
        self._responses_of = responses.groupby("cell_id", observed=True).indices
        category = steps["subtask"].astype("category").cat
        names = [str(name) for name in category.categories]
        self._code = {name: code for code, name in enumerate(sorted(names))}
        self._stream = _taken(category.codes, [self._code[name] for name in names])
        self._steps = {name: steps[name].to_numpy() for name in ("lane", "step", "live_rows", "active_experts")}
        asked = responses["subtask"].astype("category").cat
        self._asked = _taken(asked.codes, [self._code.get(str(name), -1) for name in asked.categories])
        columns = ("lane", "entered_step", "prompt_tokens", "new_tokens")
        self._responses = {name: responses[name].to_numpy(dtype=float) for name in columns}
        unscored = responses["filler"].fillna(False) if "filler" in responses else np.zeros(len(responses))
        self._filler = np.asarray(unscored, dtype=bool)

    def of(self, cell: str, streams: Collection[str]) -> Run | None:
        """The run of a cell in these streams (subtasks, or the stream of a mix); None if its record is not complete."""
        steps, responses = self._steps_of.get(cell, _NONE), self._responses_of.get(cell, _NONE)
        steps = steps[np.isin(self._stream[steps], [self._code.get(name, -1) for name in streams])]
        needed = [self._responses[name][responses] for name in ("entered_step", "prompt_tokens", "new_tokens")]
        if not len(steps) or not len(responses) or np.isnan(needed).any():
            return None
        held = {name: column[steps] for name, column in self._steps.items()}
        stream = self._stream[steps]
        keys, first, inverse = np.unique(
            _key(stream, held["lane"], held["step"]), return_index=True, return_inverse=True
        )
        live = held["live_rows"].astype(float)[first]
        active = np.bincount(inverse, held["active_experts"].astype(float))
        spans = self._spans(cell, np.unique(stream), responses, keys)
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
        self, cell: str, streams: np.ndarray, responses: np.ndarray, keys: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
        """Of each request that was live: place of its first step among `keys`, steps in which it was live, tokens of
        its prompt, whether it is scored. None if responses and steps are not of one run."""
        of = self._asked[responses]
        if self._is_mix[cell]:
            of = np.full(len(of), self._code.get(self._task[cell], -1))
        alive = (self._responses["new_tokens"][responses] > 1) & np.isin(of, streams)
        rows = responses[alive]
        lane, entered, prompt, tokens = (column[rows].astype(np.int64) for column in self._responses.values())
        wanted = _key(of[alive], lane, entered)
        start, length = np.searchsorted(keys, wanted), tokens - 1
        end = start + length
        if (end > len(keys)).any() or (keys[start] != wanted).any() or (keys[end - 1] != wanted + length - 1).any():
            return None
        return start, length, prompt, ~self._filler[rows]


_NONE = np.empty(0, dtype=np.int64)


def _key(stream: np.ndarray, lane: np.ndarray, step: np.ndarray) -> np.ndarray:
    """One number for a step of a lane of a stream, in their order."""
    return (stream.astype(np.int64) << 40) + (lane.astype(np.int64) << 20) + step.astype(np.int64)


def _taken(codes: pd.Series, values: Sequence[int]) -> np.ndarray:
    """The value of each code."""
    return np.asarray(values, dtype=np.int64)[codes.to_numpy()] if len(codes) else _NONE


def _ranges(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... of each length, one after the other."""
    within: np.ndarray = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return within
