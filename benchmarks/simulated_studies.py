"""Studies whose truth is known, and what a table's verdict and `lynx-results recommend` make of them."""

# G lanes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from analysis import statistics
from analysis.recommendation import RECOMMENDED, recommendations
from analysis.statistics import LEVEL, Estimate
from analysis.study import Study
from analysis.verdicts import FEW_LANES, WITHIN, judged
from benchmarks.simulated import MARGIN, Array, Random, covers


@dataclass(frozen=True, kw_only=True)
class RareLane:
    """One lane in fifty loses half its documents, the others lose none: the loss is one point."""

    lanes: int
    rows: int = 16

    def _estimate(self, rng: Random) -> Estimate:
        lane = np.repeat(np.arange(self.lanes), self.rows)
        lost = (rng.random(self.lanes) < 0.02)[lane] & (rng.random(len(lane)) < 0.5)
        return statistics.paired_difference(1.0 - lost, np.ones(len(lane)), lane).scaled(100)

    def _verdict(self, estimate: Estimate) -> str:
        return str(judged(table([estimate], self.lanes, self.rows), MARGIN)["verdict"].item())

    def covered(self, rng: Random) -> bool:
        return covers(self._estimate(rng), -1.0)

    def covered_or_said(self, rng: Random) -> bool:
        """Or the table says "few lanes" beside the interval."""
        estimate = self._estimate(rng)
        return covers(estimate, -1.0) or self._verdict(estimate) == FEW_LANES

    def within(self, rng: Random) -> bool:
        estimate = self._estimate(rng)
        return statistics.tost(estimate, MARGIN) < 1 - LEVEL and self._verdict(estimate) == WITHIN


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Settings of one study, the fastest first, each with what it truly loses in points, given to `recommend`.

    All answer the same documents in the same lanes. `alike` as in `Sweep`, and lanes are good or bad for all settings;
    `shared` is the share of documents whose chance is the same under every setting. `gains`: points that each setting
    mends, beside losing as many more.
    """

    losses: Sequence[float]
    lanes: int
    rows: int
    alike: float = 1e6
    shared: float = 0.0
    gains: float = 0.0

    def recommended(self, rng: Random) -> float | None:
        """What the recommended setting truly loses; None if there is none."""
        lane = np.repeat(np.arange(self.lanes), self.rows)
        bad_G = rng.random(self.lanes)
        together_N, of_all_N = rng.random(len(lane)), rng.random(len(lane)) < self.shared
        vanilla = (rng.random(len(lane)) < 0.9).astype(float)
        estimates = []
        for loss in self.losses:
            share = (loss + self.gains) / 100 / 0.9
            spoils_G = _beta_of(bad_G, share, self.alike)
            chance = np.where(of_all_N, together_N, rng.random(len(lane)))
            policy = np.where(vanilla > 0, chance >= spoils_G[lane], chance < self.gains / 100 / 0.1).astype(float)
            estimates.append(statistics.paired_difference(policy, vanilla, lane).scaled(100))
        if all(statistics.tost(estimate, MARGIN) >= 1 - LEVEL for estimate in estimates):
            return None  # saves the time of a table
        rows = judged(table(estimates, self.lanes, self.rows), MARGIN)
        found = Study(
            records=None,  # type: ignore[arg-type]  # a recommendation reads the rows alone
            rows=rows,
            summary=pd.DataFrame(),
            lanes=pd.DataFrame(),
            margin=MARGIN,
            warnings=(),
        )
        chosen = recommendations(found)
        taken = chosen.loc[chosen["why"] == RECOMMENDED, "policy_params"]
        return None if taken.empty else self.losses[int(taken.item())]

    def harmful(self, rng: Random) -> bool:
        loss = self.recommended(rng)
        return loss is not None and loss >= MARGIN

    def harmless(self, rng: Random) -> bool:
        loss = self.recommended(rng)
        return loss is not None and loss < MARGIN


def _beta_of(uniform_G: Array, share: float, alike: float) -> Array:
    if alike >= 1e6 or share <= 0:
        return np.full(len(uniform_G), max(share, 0.0))
    return np.asarray(special.betaincinv(share * alike, (1 - share) * alike, uniform_G), dtype=float)


def table(estimates: Sequence[Estimate], lanes: int, rows: int) -> pd.DataFrame:
    """Rows as `compare.results` makes them, as far as verdicts and recommendations read them; the first is fastest."""
    found: list[dict[str, Any]] = []
    for number, estimate in enumerate(estimates):
        speed = 2.0 - 0.05 * number
        row: dict[str, Any] = {"setting": "", "subtask": "simulated", "batch_size": rows, "policy": "lynx"}
        row |= {"series": f"lynx {number}", "policy_params": str(number), "phases": "decode", "unit": "%"}
        row |= {"paired": True, "guard": "", "timing_final": True, "documents": lanes * rows, "lanes": lanes}
        row |= {"difference": estimate.value, "difference_low": estimate.low, "difference_high": estimate.high}
        row |= {"difference_se": estimate.se, "difference_df": estimate.df, "difference_pad": estimate.pad}
        row |= {"active_experts": float("nan")}
        found.append(row | {"speedup": speed, "speedup_low": speed - 0.01, "speedup_high": speed + 0.01})
    return pd.DataFrame(found)
