"""Bootstrap replicates of a study's points, drawn together: policies of one plan share documents and lanes, so that
what is luck for one is luck for all, and only what is left can change which of them is ahead."""

# R resamples, G lanes

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from functools import cached_property

import numpy as np
import pandas as pd

from analysis import bleu
from analysis.activity import STREAM, by_lane
from analysis.load import Records
from analysis.pairing import partners_of
from analysis.statistics import Array, cluster_sums, lane_draws
from lynx_exp.store.step_times import window_pairs

RESAMPLES = 1000


class Resampler:
    """Replicates [R] of single estimates of `compare.results`, by cell and subtask. Row r of all of them is one world:
    lanes of one plan are drawn alike for every cell, timed repeats for each cell on its own."""

    def __init__(self, records: Records, resamples: int = RESAMPLES) -> None:
        self.records, self.resamples = records, resamples
        cells = records.cells.set_index("cell_id")
        self._pair, self._policy = cells["pair_id"].to_dict(), cells["policy"].to_dict()
        self._vanilla = partners_of(records.cells)
        self._task, self._mixing = cells["task"].to_dict(), cells["mixing"].to_dict()
        self._draws: dict[tuple[str, str, int], Array] = {}
        self._known: dict[tuple[str, str, float, float], Array] = {}

    @cached_property
    def _samples(self) -> dict[Hashable, pd.DataFrame]:
        return dict(iter(self.records.samples.groupby(["cell_id", "subtask"], observed=True)))

    @cached_property
    def _timing(self) -> dict[Hashable, pd.DataFrame]:
        return dict(iter(self.records.timing.groupby("cell_id", observed=True)))

    @cached_property
    def _active(self) -> dict[Hashable, pd.DataFrame]:
        """Of each (cell, stream): the sums of `activity.by_lane`."""
        if self.records.steps.empty:
            return {}
        return dict(iter(by_lane(self.records).groupby(STREAM, observed=True)))

    def difference(self, cell: str, subtask: str, *, corpus: bool, value: float, se: float) -> Array:
        """In points, of the difference `value` with standard error `se`; `corpus`: it is one of BLEU.

        Spread as the estimate is: few lanes make a bootstrap too narrow, and where nothing changed it has no spread at
        all; what is missing up to `se` is added as independent noise.
        """
        key = cell, subtask, value, se
        if key not in self._known:
            self._known[key] = self._difference(*key, corpus)
        return self._known[key]

    def _difference(self, cell: str, subtask: str, value: float, se: float, corpus: bool) -> Array:
        if self._policy[cell] == "vanilla":
            return np.zeros(self.resamples)
        found = self._changes(cell, subtask, corpus=corpus)
        middle, spread = float(found.mean()), float(found.std())
        if spread > se > 0:
            return value + (found - middle) * (se / spread)
        rng = np.random.default_rng(_number(cell, subtask))
        return value + (found - middle) + rng.normal(0.0, np.sqrt(max(se**2 - spread**2, 0.0)), len(found))

    def active(self, cell: str, subtask: str) -> Array:
        """Active experts of the stream that the subtask belongs to."""
        lanes = self._active[cell, self._stream(cell, subtask)]
        draws = self._lanes(cell, subtask, int(lanes["lane"].max()) + 1)[:, lanes["lane"].to_numpy()]
        counts = draws @ lanes["tokens"].to_numpy(dtype=float)
        sums = draws @ lanes["weighted"].to_numpy(dtype=float)
        whole = lanes["weighted"].sum() / lanes["tokens"].sum()
        active_R: Array = np.divide(sums, counts, out=np.full(len(sums), whole), where=counts > 0)
        return active_R

    def speedup(self, cell: str) -> Array:
        """Of resampled windows; 1 for vanilla."""
        if self._policy[cell] == "vanilla":
            return np.ones(self.resamples)
        pairs = window_pairs(self._timing[cell])
        rng = np.random.default_rng(_number(cell, "speed-up"))
        sums_R2: Array = pairs[rng.integers(len(pairs), size=(self.resamples, len(pairs)))].sum(axis=1)
        return sums_R2[:, 0] / sums_R2[:, 1]

    def _changes(self, cell: str, subtask: str, *, corpus: bool) -> Array:
        own, other = self._samples[cell, subtask], self._samples[self._vanilla[cell], subtask]
        _, mine, theirs = np.intersect1d(own["doc_id"], other["doc_id"], return_indices=True)
        own, other = own.iloc[mine], other.iloc[theirs]
        lanes, index = np.unique(own["lane"], return_inverse=True)
        draws_RG = self._lanes(cell, subtask, int(lanes.max()) + 1)[:, lanes]
        if corpus:
            policy, vanilla = (
                bleu.lane_sums(bleu.sentence_counts(list(part["filtered"]), list(part["target"])), index)
                for part in (own, other)
            )
            return bleu.bleu_of_many(draws_RG @ policy) - bleu.bleu_of_many(draws_RG @ vanilla)
        changes = own["score"].to_numpy(dtype=float) - other["score"].to_numpy(dtype=float)
        sums_G, counts_G = cluster_sums(changes, index)
        counted = draws_RG @ counts_G
        return 100 * np.divide(draws_RG @ sums_G, counted, out=np.zeros(self.resamples), where=counted > 0)

    def _stream(self, cell: str, subtask: str) -> str:
        return subtask if pd.isna(self._mixing[cell]) else self._task[cell]

    def _lanes(self, cell: str, subtask: str, lanes: int) -> Array:
        """How often each lane of the stream is drawn, by its number in the plan."""
        key = self._pair[cell], self._stream(cell, subtask), lanes
        if key not in self._draws:
            self._draws[key] = lane_draws(lanes, self.resamples, _number(*key[:2]))
        return self._draws[key]


def _number(*parts: str) -> int:
    """A seed that follows from the parts."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8])
