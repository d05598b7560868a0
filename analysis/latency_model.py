"""From timed windows to the whole run: step times over live rows, active experts and context, fitted and integrated
over every decode step that the run did.

A step's time is taken as linear in the rows that are live, the experts that its layers run (summed over them: linear
per layer) and the positions that its rows attend to. What else a step costs, a policy's own selection included, is a
constant of each (cell, vanilla or policy): so the fit moves the measured mean of the windows to the run's mean and
leaves the rest to the measurement, as a regression estimator does with a sample and known totals of its population
(Cochran, Sampling Techniques, 1977, chapter 7).
"""

# W windows, F features (live rows, active experts, context), L lanes

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd

from analysis.load import Records
from analysis.pairing import partners_of
from analysis.run_steps import LaneSums, Run, Runs
from analysis.statistics import Array, Estimate, t_interval
from lynx_exp.store.step_times import pairs_of_cells, steps_of_cells

FEATURES = ("live", "active", "context")
POOLED = ("model", "device", "dtype", "backend", "batch_size")
"""Cells that share these share a fit."""
DRAWS = 400
HUBER = 1.345
"""Residuals beyond so many robust standard deviations weigh less (95 % efficiency under normal noise)."""
ROUNDS = 200


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Slopes of the cells that share model, device and batch size."""

    slopes_F: Array
    """Milliseconds of a step, on the clock of a typical cell, per row, per expert of a layer and per position."""
    covariance_FF: Array
    """Clustered by window."""
    clock: dict[str, float]
    """A cell -> how much slower than on that clock its steps were."""
    r_squared: float
    median_error: float
    """Of a timed step, relative."""
    p95_error: float
    steps: int
    """Timed steps behind it."""
    clusters: int
    """Windows that they are of."""

    @cached_property
    def draws(self) -> Array:
        """`[DRAWS, F]`: slopes, as sure as they are."""
        rng = np.random.default_rng(0)
        return rng.multivariate_normal(self.slopes_F, self.covariance_FF, size=DRAWS, check_valid="ignore")


@dataclass(frozen=True, kw_only=True)
class Integrated:
    """Of one cell, over every decode step of its run."""

    ms_per_token: Estimate
    speedup: Estimate | None
    """Vanilla's time per token in vanilla's own run over that of the policy in its; None: there is none to compare."""
    tokens_per_s: Estimate
    """That one lane gives, prefills apart."""
    tpot_ms: float
    """(E2E - TTFT) / (n - 1) of a request in its lane, prefills of others apart; median over requests."""
    residual: float
    """Median relative error of the cell's timed steps, in percent."""
    us_per_expert: Estimate
    """Microseconds for each further active expert of a layer; NaN where their number never varied."""
    fixed_ms: float
    """Of a step, besides rows, experts and positions."""


def integrate(records: Records) -> dict[str, Integrated]:
    """Each cell whose windows were timed and whose run is on record."""
    steps = _timed_steps(records)
    if steps.empty:
        return {}
    cells = records.cells.set_index("cell_id")
    steps = steps[steps["cell_id"].map(cells["timed_context"].isna())]  # at a context of its own: not its run's
    keys = cells.loc[steps["cell_id"].unique(), list(POOLED)]
    fitted: dict[str, Fit] = {}
    for _, part in keys.groupby(list(POOLED), dropna=False):
        fitted |= dict.fromkeys(part.index, fit(steps[steps["cell_id"].isin(part.index)]))
    policy, partners = cells["policy"].to_dict(), partners_of(records.cells)
    stored, runs = Runs(records), dict[str, Run | None]()
    subtask, found = steps["subtask"].astype(str).to_numpy(), {}
    timed = _timed_cells(records.timing, steps)
    for cell, at in steps.groupby("cell_id").indices.items():
        streams, partner = set(subtask[at]), partners[cell] or None
        for each in (cell, partner):
            if each is not None and each not in runs:
                runs[each] = stored.of(each, streams)
        run = runs[cell]
        if run is not None:
            theirs = runs.get(partner) if partner is not None else None
            found[cell] = _integrated(timed[cell], fitted[cell], run, theirs, policy[cell])
    return found


@dataclass(frozen=True, kw_only=True)
class _Timed:
    """What was timed of a cell."""

    cell: str
    own_ms: Array
    """`[W]`, of the policy; of vanilla where there is no other; likewise below."""
    own_x: Array
    """`[W, F]`: its steps' mean features."""
    base_ms: Array
    """`[W]`, of vanilla on the same steps."""
    base_x: Array
    ms: Array
    """Of each step of the policy."""
    x: Array


def _timed_cells(timing: pd.DataFrame, steps: pd.DataFrame) -> dict[str, _Timed]:
    """`steps` as in `_timed_steps`."""
    alone, pairs = steps_of_cells(timing, "vanilla"), pairs_of_cells(timing)
    means = steps.groupby(["cell_id", "name", "window"])[list(FEATURES)].mean()
    mean_x = {
        key: means.to_numpy(dtype=float)[at] for key, at in means.groupby(level=["cell_id", "name"]).indices.items()
    }
    x, ms = steps[list(FEATURES)].to_numpy(dtype=float), steps["ms"].to_numpy(dtype=float)
    found = {}
    for (cell, name), at in steps.groupby(["cell_id", "name"]).indices.items():
        if name == "vanilla" and (cell, "policy") in mean_x:
            continue
        base_ms, own_ms = (alone[cell], alone[cell]) if name == "vanilla" else pairs[cell].T
        base_x, own_x = mean_x[cell, "vanilla"], mean_x[cell, name]
        found[cell] = _Timed(cell=cell, own_ms=own_ms, own_x=own_x, base_ms=base_ms, base_x=base_x, ms=ms[at], x=x[at])
    return found


def fits(records: Records) -> pd.DataFrame:
    """One row per fit: what it shares, timed steps, R squared, relative errors, and milliseconds per row, expert and
    position of a typical vanilla step."""
    steps = _timed_steps(records)
    rows: list[dict[str, object]] = []
    if steps.empty:
        return pd.DataFrame(rows)
    shared = records.cells.set_index("cell_id")[list(POOLED)]
    steps = steps.join(shared, on="cell_id")
    for key, part in steps.groupby(list(POOLED), dropna=False):
        made = fit(part)
        row = dict(zip(POOLED, key, strict=True)) | {"steps": made.steps, "r_squared": made.r_squared}
        row |= {"median_error": made.median_error, "p95_error": made.p95_error}
        rows.append(row | {f"ms_per_{name}": slope for name, slope in zip(FEATURES, made.slopes_F, strict=True)})
    return pd.DataFrame(rows)


def _timed_steps(records: Records) -> pd.DataFrame:
    """A row a (cell, name, window, step): `ms`, median over repeats, and the features."""
    timing = records.timing
    if timing.empty or "window" not in timing:
        return pd.DataFrame()
    rows = timing[timing["name"].isin(["vanilla", "policy"]) & timing["window"].notna() & timing["ms"].notna()]
    if rows.empty:
        return pd.DataFrame()
    keys = ["cell_id", "subtask", "name", "window", "step"]
    steps = rows.groupby(keys, observed=True)[["ms", "live_rows", "active_experts", "context"]].median().reset_index()
    steps["cell_id"] = steps["cell_id"].astype(str)
    layers = records.cells.set_index("cell_id")["num_layers"].astype(float)
    return steps.assign(
        live=steps["live_rows"].astype(float),
        active=steps["active_experts"] * steps["cell_id"].map(layers),
        context=steps["context"] * steps["live_rows"],
    ).drop(columns=["live_rows", "active_experts"])


def fit(steps: pd.DataFrame) -> Fit:
    """Slopes within each (cell, name), of times put on one clock: a cell's is as much faster or slower as its vanilla
    steps are than the fit says. Huber's M estimate by reweighted least squares; what never varies has slope 0."""
    ms, x = steps["ms"].to_numpy(dtype=float), steps[list(FEATURES)].to_numpy(dtype=float)
    cells, cell = np.unique(steps["cell_id"].to_numpy(dtype=str), return_inverse=True)
    group = steps.groupby(["cell_id", "name"]).ngroup().to_numpy()
    cluster = steps.groupby(["cell_id", "window"]).ngroup().to_numpy()
    of_vanilla = (steps["name"] == "vanilla").to_numpy(dtype=float)
    counts = np.bincount(cell, of_vanilla)
    vanilla_ms = np.bincount(cell, of_vanilla * ms) / counts
    vanilla_x = np.stack([np.bincount(cell, of_vanilla * column) for column in x.T], axis=1) / counts[:, None]
    clock, weights = vanilla_ms / vanilla_ms.mean(), np.ones(len(ms))
    for _ in range(ROUNDS):
        y = ms / clock[cell]
        xc, yc = _centred(x, group, weights), _centred(y[:, None], group, weights)[:, 0]
        bread = np.linalg.pinv(xc.T @ (weights[:, None] * xc), rcond=1e-9, hermitian=True)
        slopes = bread @ (xc.T @ (weights * yc))
        residuals = yc - xc @ slopes
        scale = 1.4826 * float(np.median(np.abs(residuals)))
        weights = np.minimum(1.0, HUBER * scale / np.maximum(np.abs(residuals), 1e-300))
        constant = float(np.mean(vanilla_ms / clock - vanilla_x @ slopes))
        expected = constant + vanilla_x @ slopes
        before, clock = clock, vanilla_ms / expected if (expected > 0).all() else clock
        if np.allclose(clock, before, rtol=1e-10, atol=0):
            break
    clusters = int(cluster.max()) + 1
    scores = np.zeros((clusters, len(FEATURES)))
    np.add.at(scores, cluster, (weights * residuals)[:, None] * xc)
    more = clusters / max(clusters - 1, 1)
    spread = float(np.sum((y - y.mean()) ** 2))
    error = np.abs(residuals) / y
    return Fit(
        slopes_F=slopes,
        covariance_FF=more * bread @ (scores.T @ scores) @ bread,
        clock=dict(zip(cells.tolist(), clock.tolist(), strict=True)),
        r_squared=1 - float(residuals @ residuals) / spread if spread > 0 else math.nan,
        median_error=float(np.median(error)),
        p95_error=float(np.quantile(error, 0.95)),
        steps=len(y),
        clusters=clusters,
    )


def _centred(values: Array, group: np.ndarray, weights: Array) -> Array:
    """Less their weighted mean in each group."""
    total = np.bincount(group, weights)
    means = np.stack([np.bincount(group, weights * column) / total for column in values.T], axis=1)
    centred: Array = values - means[group]
    return centred


def _integrated(timed: _Timed, fitted: Fit, run: Run, vanilla: Run | None, policy: str) -> Integrated:
    """`vanilla`: the run of its partner."""
    unit = fitted.clock[timed.cell]
    slopes = unit * np.concatenate([fitted.slopes_F[None], fitted.draws])
    windows = len(timed.own_ms)

    def per_token(y: Array, x: Array, sums: LaneSums, lanes: np.ndarray) -> Array:
        """`[1 + DRAWS]`: the estimate, then its draws."""
        constant = y[draws].mean(1) - (slopes * x[draws].mean(1)).sum(1)
        count, total, tokens = sums.steps[lanes].sum(1), sums.features[lanes].sum(1), sums.tokens[lanes].sum(1)
        found: Array = (constant * count + (slopes * total).sum(1)) / tokens
        return found

    own_lanes = len(run.sums.steps)
    vanilla_lanes = own_lanes if vanilla is None else len(vanilla.sums.steps)
    draws, lanes, theirs = _draws(windows, own_lanes, vanilla_lanes)
    own = per_token(timed.own_ms, timed.own_x, run.sums, lanes)
    against = None
    if policy == "vanilla":
        against = Estimate(value=1.0)
    elif vanilla is not None:
        against = _estimate(per_token(timed.base_ms, timed.base_x, vanilla.sums, theirs) / own, windows)
    constant = float(timed.own_ms.mean() - unit * fitted.slopes_F @ timed.own_x.mean(0))
    times = constant + unit * run.features @ fitted.slopes_F
    predicted = constant + unit * timed.x @ fitted.slopes_F
    error = np.abs(timed.ms - predicted) / timed.ms
    return Integrated(
        ms_per_token=_estimate(own, windows),
        speedup=against,
        tokens_per_s=_estimate(1000 / own, windows),
        tpot_ms=run.time_per_token(times),
        residual=100 * float(np.median(error)),
        us_per_expert=_per_expert(fitted, unit),
        fixed_ms=constant,
    )


def _per_expert(fitted: Fit, unit: float) -> Estimate:
    """In microseconds, on a clock `unit` times as slow as the fit's."""
    at = FEATURES.index("active")
    slope, variance = float(fitted.slopes_F[at]), float(fitted.covariance_FF[at, at])
    if slope == 0:
        return Estimate(value=math.nan)
    if fitted.clusters < 2:
        return Estimate(value=1000 * unit * slope)
    return t_interval(1000 * unit * slope, 1000 * unit * math.sqrt(variance), fitted.clusters - 1)


@lru_cache(maxsize=64)  # cells of a study have few numbers of windows and lanes
def _draws(windows: int, lanes: int, vanilla_lanes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places `[1 + DRAWS, ...]` of windows, of lanes of a run and of its partner's: all of them once, then resampled.
    Runs of as many lanes share the plan and are drawn alike."""
    rng = np.random.default_rng(0)
    rng.standard_normal((DRAWS, len(FEATURES)))  # those of `Fit.draws`
    of_windows, of_lanes = _resampled(rng, windows), _resampled(rng, lanes)
    return of_windows, of_lanes, of_lanes if vanilla_lanes == lanes else _resampled(rng, vanilla_lanes)


def _resampled(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.concatenate([np.arange(count)[None], rng.integers(count, size=(DRAWS, count))])


def _estimate(draws: Array, windows: int) -> Estimate:
    """From the estimate and its draws: a t interval, windows being what there is fewest of."""
    value = float(draws[0])
    if windows < 2:
        return Estimate(value=value)
    se = float(draws[1:].std()) * math.sqrt(windows / (windows - 1))
    return t_interval(value, se, windows - 1)


def disagrees(measured: Estimate, integrated: Estimate | None) -> bool | None:
    """Whether the speed-up of the windows and that of the run differ beyond the errors of both; None: not known."""
    if integrated is None or measured.se is None or integrated.se is None or measured.df is None:
        return None
    apart = t_interval(measured.value - integrated.value, math.hypot(measured.se, integrated.se), measured.df)
    return apart.low is not None and apart.high is not None and not apart.low <= 0 <= apart.high


def columns(own: Integrated | None) -> dict[str, Estimate | float]:
    """By the names of `analysis.compare.results`; NaN where it is not known."""
    nothing = Estimate(value=math.nan)
    return {
        "run_ms_per_token": own.ms_per_token if own else nothing,
        "run_speedup": (own and own.speedup) or nothing,
        "tokens_per_s": own.tokens_per_s if own else nothing,
        "tpot_ms": own.tpot_ms if own else math.nan,
        "latency_residual": own.residual if own else math.nan,
        "us_per_expert": own.us_per_expert if own else nothing,
        "fixed_ms": own.fixed_ms if own else math.nan,
    }
