"""From windows to the run: on records whose every step's time is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import latency_model
from analysis.load import Records
from analysis.run_steps import Runs
from analysis.statistics import Estimate

LAYERS, BATCH = 4, 4
COST = {"live": 0.05, "active": 0.03, "context": 0.001}
"""Milliseconds of a step for each row, expert and position, beside 1.0 (vanilla) or 1.2 (a policy's selection)."""


def _cell(cell: str, policy: str, keep: float, windows: int, noise: float, machine: float = 1.0) -> dict[str, list]:
    """Lanes of four slots with a queue of 12 requests each, whose rows enter and leave; every step, and `windows`
    places of two steps that were timed."""
    rng = np.random.default_rng(len(cell) + windows)
    tables: dict[str, list] = {"steps": [], "responses": [], "timing": [], "truth": []}
    for lane in range(6):
        free = [0] * BATCH
        live, context = np.zeros(400), np.zeros(400)
        for request in range(12):
            slot = int(np.argmin(free))
            entered, tokens, prompt = free[slot], int(rng.integers(1, 20)), int(rng.integers(5, 60))
            free[slot] += tokens - 1
            row = {"cell_id": cell, "subtask": "t", "request": 12 * lane + request, "lane": lane}
            tables["responses"].append(row | {"entered_step": entered, "new_tokens": tokens, "prompt_tokens": prompt})
            live[entered : free[slot]] += 1
            context[entered : free[slot]] += prompt + 1 + np.arange(tokens - 1)
        for step in range(max(free)):
            active = np.round(keep * 3.5 * live[step] + rng.normal(0, 0.6, LAYERS)).clip(2, 16)
            place = {"cell_id": cell, "subtask": "t", "lane": lane, "step": step, "live_rows": int(live[step])}
            tables["steps"] += [place | {"layer": n, "active_experts": int(a)} for n, a in enumerate(active)]
            x = {"live": live[step], "active": active.sum(), "context": context[step]}
            slopes = sum(COST[name] * value for name, value in x.items())
            tables["truth"].append({"lane": lane, "step": step, "slopes": slopes, **x})
    truth = pd.DataFrame(tables["truth"])
    for window, at in enumerate(rng.choice(len(truth) - 1, windows, replace=False)):
        for repeat in range(2):
            for step, (_, row) in enumerate(truth.iloc[at : at + 2].iterrows()):
                for name, fixed, share in (("vanilla", 1.0, 1 / keep), ("policy", 1.2, 1.0)):
                    if name == "policy" and policy == "vanilla":
                        continue
                    more = COST["active"] * (share - 1) * row["active"]
                    ms = machine * (fixed + row["slopes"] + more) * rng.lognormal(0, noise)
                    place = {"cell_id": cell, "name": name, "window": window, "subtask": "t", "lane": row["lane"]}
                    place |= {"start_step": at, "repeat": repeat, "step": step, "live_rows": row["live"], "ms": ms}
                    active = row["active"] * share / LAYERS
                    tables["timing"].append(place | {"active_experts": active, "context": row["context"] / row["live"]})
    return tables


def records_of(*cells: tuple[str, str, float], windows: int = 10, noise: float = 0.0) -> tuple[Records, dict]:
    made = {
        cell: _cell(cell, policy, keep, windows, noise, 1.0 + number)
        for number, (cell, policy, keep) in enumerate(cells)
    }
    shared = {"model": "m", "device": "cpu", "dtype": "float32", "backend": "b", "batch_size": BATCH, "mixing": None}
    shared |= {"num_layers": LAYERS, "pair_id": "p", "task": "t", "timed_context": None}
    frames = {
        name: pd.DataFrame([row for tables in made.values() for row in tables[name]])
        for name in ("steps", "responses", "timing")
    }
    frame = pd.DataFrame([{"cell_id": cell, "policy": policy, **shared} for cell, policy, _ in cells])
    empty = pd.DataFrame()
    records = Records(cells=frame, metrics=empty, samples=empty, fidelity=empty, **frames)
    return records, {cell: pd.DataFrame(tables["truth"]) for cell, tables in made.items()}


CELLS = (("vanilla", "vanilla", 1.0), ("half", "lynx", 0.5), ("most", "lynx", 0.8))


def test_every_step_of_a_run_is_found_again() -> None:
    records, truth = records_of(*CELLS)
    run = Runs(records).of("half", {"t"})
    assert run is not None
    assert run.features.tolist() == truth["half"][["live", "active", "context"]].to_numpy().tolist()
    assert run.sums.tokens.sum() == truth["half"]["live"].sum() and len(run.sums.steps) == 6
    spans = records.responses[(records.responses["cell_id"] == "half") & (records.responses["new_tokens"] > 1)]
    assert sorted(run.spans) == sorted(spans["new_tokens"] - 1)


def test_a_run_that_its_steps_do_not_hold_is_none() -> None:
    records, _ = records_of(*CELLS)
    late = records.responses.assign(entered_step=records.responses["entered_step"] + 5)
    assert Runs(replace(records, responses=late)).of("half", {"t"}) is None
    unknown = late.assign(entered_step=np.nan)
    assert Runs(replace(records, responses=unknown)).of("half", {"t"}) is None


def test_without_noise_the_run_is_known_exactly() -> None:
    """Although the windows hold two places in a hundred of it, and each cell was timed on a slower machine than the one
    before."""
    records, truth = records_of(*CELLS)
    found = latency_model.integrate(records)
    vanilla_ms = (1.0 + truth["vanilla"]["slopes"]).sum() / truth["vanilla"]["live"].sum()
    for number, (cell, policy, _) in enumerate(CELLS):
        fixed = 1.0 if policy == "vanilla" else 1.2
        per_token = (fixed + truth[cell]["slopes"]).sum() / truth[cell]["live"].sum()
        own = found[cell]
        assert own.ms_per_token.value == pytest.approx((1 + number) * per_token, rel=1e-6)
        assert own.tokens_per_s.value == pytest.approx(1000 / own.ms_per_token.value)
        assert own.speedup is not None  # medians of ratios stand for means of windows whose two steps differ
        assert own.speedup.value == pytest.approx(vanilla_ms / per_token, rel=1e-3)
        assert own.residual < 1e-6
        assert own.us_per_expert.value == pytest.approx((1 + number) * 1000 * COST["active"], rel=1e-6)
        assert own.fixed_ms == pytest.approx((1 + number) * fixed, rel=1e-6)
    fitted = latency_model.fits(records).iloc[0]
    assert fitted["r_squared"] == pytest.approx(1.0) and fitted["p95_error"] < 1e-6
    slopes = np.array([fitted[f"ms_per_{name}"] for name in COST])
    assert slopes / slopes[1] == pytest.approx(np.array(list(COST.values())) / COST["active"], rel=1e-6)


def test_tpot_is_the_time_between_the_tokens_of_a_request() -> None:
    records, truth = records_of(*CELLS)
    steps = truth["half"].set_index(["lane", "step"])["slopes"] + 1.2
    rows = records.responses[(records.responses["cell_id"] == "half") & (records.responses["new_tokens"] > 1)]
    means = [
        steps.loc[row["lane"]].loc[row["entered_step"] : row["entered_step"] + row["new_tokens"] - 2].mean()
        for row in rows.to_dict("records")
    ]
    assert latency_model.integrate(records)["half"].tpot_ms == pytest.approx(2 * np.median(means))


def test_with_noise_the_interval_holds_the_truth() -> None:
    held = []
    for windows in range(10, 40):
        records, truth = records_of(*CELLS[:2], windows=windows, noise=0.05)
        per_token = [(fixed + truth[c]["slopes"]).sum() / truth[c]["live"].sum() for c, fixed in
                     (("vanilla", 1.0), ("half", 1.2))]  # fmt: skip
        speedup = latency_model.integrate(records)["half"].speedup
        assert speedup is not None and speedup.low is not None and speedup.high is not None
        held.append(speedup.low <= per_token[0] / per_token[1] <= speedup.high)
    assert sum(held) >= 27


def test_a_feature_that_never_varies_has_no_slope() -> None:
    records, _ = records_of(*CELLS)
    steps = latency_model._timed_steps(records)
    fitted = latency_model.fit(steps.assign(live=4.0))
    assert fitted.slopes_F[0] == 0.0 and np.isfinite(fitted.covariance_FF).all()


def test_measured_and_integrated_are_compared_by_their_errors() -> None:
    of = Estimate
    assert latency_model.disagrees(of(value=1.2, se=0.01, df=9), of(value=1.3, se=0.01, df=9)) is True
    assert latency_model.disagrees(of(value=1.2, se=0.1, df=9), of(value=1.3, se=0.01, df=9)) is False
    assert latency_model.disagrees(of(value=1.2), of(value=1.3, se=0.01, df=9)) is None
