"""Does a disturbance do more in decode or in prefill, at equal strength? Between the settings of a phase, the logarithm
of the divergence is interpolated over the logarithm of the strength, which is measured in three units: the experts that
a lane may run, where experts are pruned; the share of assignments that changed; the share of the router's top-k mass
that is lost. At the middle of what both phases reached, prefill's divergence is held against decode's."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.compare import flat
from analysis.divergences import Divergences, aligned, ratio
from analysis.statistics import Estimate
from analysis.study import Study

PHASES = ("decode", "prefill")
UNITS = {"experts": "experts kept", "changed": "changed (%)", "lost": "mass lost (%)"}
"""Measures of strength, and what to call them; the latter two are percent, of what the phase has."""
_EXPERTS = ("keep_experts", "budget")
"""Parameters that say how many experts a lane may run."""


def disturbances(study: Study) -> pd.DataFrame:
    """The settings that one phase alone saw, of policies that were tried in both: the rows of the summary with
    `disturbance` (the policy, and by what it is told from others of its name) and a column for each of UNITS. Without
    settings that changed nothing or whose strength is not on record."""
    means = study.summary
    if means.empty:
        return means
    found = means[means["phases"].isin(PHASES) & means["kl"].notna() & (means["kl"] > 0)]
    found = found[found["subtasks"] == found["all_subtasks"]]
    decode = found["phases"] == "decode"
    mass = found["retained"].where(decode, found["prompt_retained"])
    found = found.assign(
        experts=[_experts(params) for params in found["policy_params"]],
        disturbance=[_name(*row) for row in found[["policy", "policy_params"]].itertuples(index=False)],
        changed=100 * found["changed"].where(decode, found["prompt_changed"]),
        lost=100 * (1 - mass),
    )
    found = found[(found["changed"] > 0) & (found["lost"] > 0)]
    both = found.groupby(["batch_size", "disturbance"])["phases"].transform("nunique") == len(PHASES)
    return found[both].sort_values(["batch_size", "disturbance", "phases", "changed"])


def _name(policy: str, params: str) -> str:
    utility = json.loads(params).get("utility")
    return f"{policy}({utility})" if utility not in (None, "mass") else policy


def _experts(params: str) -> float:
    given = json.loads(params)
    known = [float(given[name]) for name in _EXPERTS if given.get(name) is not None]
    return known[0] if known else math.nan


def asymmetries(study: Study) -> pd.DataFrame:
    """One row per batch size, disturbance and unit that the disturbance has: `at`, the strength at which phases are
    compared, and the estimate `ratio`, prefill's divergence over decode's there; NaN where they have no strength in
    common."""
    points = disturbances(study)
    found: list[dict[str, object]] = []
    for (batch, name), part in points.groupby(["batch_size", "disturbance"]) if len(points) else ():
        cells = {series: _cells(study, batch, series) for series in part["series"]}
        rows = aligned(study.records, cells)
        for unit in UNITS:
            row: dict[str, object] = {"batch_size": batch, "disturbance": name, "unit": unit}
            if part[unit].isna().any():
                continue
            sides = [_side(part[part["phases"] == phase], unit) for phase in PHASES]
            low, high = (pick(ends) for pick, ends in ((max, [s.x[0] for s in sides]), (min, [s.x[-1] for s in sides])))
            estimate = Estimate(value=math.nan)
            at = (low + high) / 2
            if low <= high and len(rows):
                series, factors = list(cells), dict.fromkeys(cells, 0.0)
                for side, sign in zip(sides, (-1.0, 1.0), strict=True):
                    for each, share in side.shares(at):
                        factors[each] += sign * share
                estimate = ratio(Divergences.of(rows, series).log_combination([factors[each] for each in series]))
            found.append(row | {"at": math.exp(at) if low <= high else math.nan} | flat("ratio", estimate))
    return pd.DataFrame(found)


@dataclass(frozen=True, kw_only=True)
class _Side:
    x: Sequence[float]
    """Logarithms of the strengths, ascending."""
    series: Sequence[str]

    def shares(self, at: float) -> list[tuple[str, float]]:
        """Of which settings, and with what shares, the interpolation at `at` is made."""
        right = min(max(int(np.searchsorted(self.x, at)), 1), len(self.x) - 1) if len(self.x) > 1 else 0
        if len(self.x) == 1 or self.x[right] == self.x[right - 1]:
            return [(self.series[right], 1.0)]
        share = (at - self.x[right - 1]) / (self.x[right] - self.x[right - 1])
        return [(self.series[right - 1], 1 - share), (self.series[right], share)]


def _side(points: pd.DataFrame, unit: str) -> _Side:
    ordered = points.sort_values(unit)
    return _Side(x=[math.log(x) for x in ordered[unit]], series=list(ordered["series"]))


def _cells(study: Study, batch: int, series: str) -> list[str]:
    rows = study.rows
    own = rows[(rows["series"] == series) & (rows["batch_size"] == batch)]
    return [cell for ids in dict.fromkeys(own["cell_ids"]) for cell in ids.split()]
