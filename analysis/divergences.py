"""KL divergences of several cells on the same responses, and what follows from their ratios: means over subtasks, with
intervals clustered by lane. Cells of one plan share lanes and vanilla's responses, so that most of what is luck for one
is luck for all and leaves a ratio."""

# C clusters (a lane of a subtask), V cells or what stands in for one

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.load import Records
from analysis.statistics import Array, Estimate, t_interval

_KEYS = ["subtask", "plan", "lane", "doc_id", "request"]


def aligned(records: Records, cells: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """One row per request that all of `cells` compared with vanilla: `subtask`, `plan`, `lane`, `doc_id`, `request`,
    `tokens`, and nats in a column for each name of `cells`, which says by what cells (of other tasks and plans) it was
    compared."""
    of_cell = {cell: name for name, several in cells.items() for cell in several}
    plans = dict(zip(records.cells["cell_id"], records.cells["pair_id"], strict=True))
    rows = records.fidelity[records.fidelity["cell_id"].isin(of_cell)]
    ids = rows["cell_id"].astype(str)
    rows = rows.assign(name=ids.map(of_cell), plan=ids.map(plans), subtask=rows["subtask"].astype(str))
    wide = rows.pivot_table(index=[*_KEYS, "tokens"], columns="name", values="kl", aggfunc="first", observed=True)
    return wide.reindex(columns=list(cells)).dropna().reset_index()


@dataclass(frozen=True, kw_only=True)
class Divergences:
    """Sums over the tokens of each cluster."""

    kl_CV: Array
    tokens_C: Array
    subtask_C: np.ndarray

    @classmethod
    def of(cls, rows: pd.DataFrame, names: Sequence[str]) -> Divergences:
        """Of rows of `aligned`."""
        lanes = rows.groupby(["subtask", "plan", "lane"])[["tokens", *names]].sum().reset_index()
        return cls(
            kl_CV=lanes[list(names)].to_numpy(dtype=float),
            tokens_C=lanes["tokens"].to_numpy(dtype=float),
            subtask_C=lanes["subtask"].to_numpy(),
        )

    def means(self) -> Array:
        """`[V]` nats a token, mean over subtasks."""
        shares_CV = self.kl_CV * self._per_token()[:, None]
        mean_V: Array = shares_CV.sum(0)
        return mean_V

    def log_combination(self, factors_V: Sequence[float]) -> Estimate:
        """The sum of `factors_V` times the logarithm of each mean, by the delta method: a factor of 1 and one of -1 are
        the logarithm of a ratio. NaN where a mean that counts is 0."""
        factors, means_V = np.asarray(factors_V, dtype=float), self.means()
        counted = factors != 0
        if not len(self.tokens_C) or not (means_V[counted] > 0).all():
            return Estimate(value=math.nan)
        value = float(factors[counted] @ np.log(means_V[counted]))
        pull_C = self._pulls()[:, counted] @ (factors[counted] / means_V[counted])
        variance, df = 0.0, 0
        for subtask in np.unique(self.subtask_C):
            own = pull_C[self.subtask_C == subtask]
            if len(own) < 2:
                return Estimate(value=value)
            variance += len(own) / (len(own) - 1) * float(own @ own)
            df += len(own) - 1
        return t_interval(value, math.sqrt(variance), df)

    def _per_token(self) -> Array:
        """`[C]`: what a nat of the cluster adds to the mean."""
        subtasks, index = np.unique(self.subtask_C, return_inverse=True)
        tokens = np.bincount(index, self.tokens_C)
        weights_C: Array = 1.0 / tokens[index] / len(subtasks)
        return weights_C

    def _pulls(self) -> Array:
        """`[C, V]`: how far each cluster pulls the means from where its subtask is."""
        _, index = np.unique(self.subtask_C, return_inverse=True)
        tokens = np.bincount(index, self.tokens_C)
        rates_CV = np.stack([np.bincount(index, kl_C) / tokens for kl_C in self.kl_CV.T], 1)[index]
        pulls_CV: Array = (self.kl_CV - rates_CV * self.tokens_C[:, None]) * self._per_token()[:, None]
        return pulls_CV


def ratio(logarithm: Estimate) -> Estimate:
    """What the logarithm of a ratio says of the ratio."""
    low, high = (None if end is None else math.exp(end) for end in (logarithm.low, logarithm.high))
    return Estimate(value=math.exp(logarithm.value), low=low, high=high)
