"""Runs of a load generator, with the accuracy of a study's cells beside them: a table, and the figure `serving`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.frame_rows import Row
from analysis.labels import policy_rank
from lynx_exp.store.read_serving import STOCK, read_serving
from lynx_exp.terminal import Terminal

LOAD = ("model", "request_rate", "max_concurrency", "num_prompts")
"""What two runs must have in common to be compared."""
SHOWN = (
    ("requests/s", "request_throughput", "{:.2f}"),
    ("tokens/s", "output_throughput", "{:.0f}"),
    ("goodput/s", "request_goodput", "{:.2f}"),
    ("TTFT ms", "ttft", "{:.1f} / {:.1f}"),
    ("TPOT ms", "tpot", "{:.2f} / {:.2f}"),
    ("ITL ms", "itl", "{:.2f} / {:.2f}"),
)


RANGED = ("tpot_median_ms", "tpot_p99_ms", "output_throughput")


def frame(study: Path, quality: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a policy and load, means over its runs, with the range over them of what is drawn (RANGED).

    `speedup`: of the median TPOT over the stock server's (or, without one, over vanilla's) under the same load, with
    the range over runs; `points`: of accuracy to vanilla, from `quality`, rows of `compare.results` (None: the
    study's are read).

    ValueError if the study keeps no run.
    """
    records = read_serving(study)
    if not records:
        raise ValueError(f"{study}: keeps no run of a load generator; give FILES")
    runs = pd.DataFrame(records)
    # all requests at once where nothing bounds them: their number is what the server was asked to do at once
    runs["at_once"] = [_concurrency(record) for record in records]
    runs["load"] = [_load(record) for record in records]
    for side in ("before", "after"):
        runs[f"experts_{side}"] = [(record["experts"] or {}).get(side, np.nan) for record in records]
    numbers = runs.select_dtypes("number").columns.difference([*LOAD, "at_once", "run_number"])
    rows = []
    for (model, load, label), part in runs.groupby(["model", "load", "policy_label"], sort=False):
        first = part.iloc[0]
        row = {"model": model, "load": load, "policy_label": label, "runs": len(part)}
        row |= {name: first[name] for name in (*LOAD[1:], "at_once", "policy", "phases")}
        row |= part[numbers].mean().to_dict()
        for name in RANGED:
            ends = (part[name].min(), part[name].max()) if len(part) > 1 else (np.nan, np.nan)
            row |= {f"{name}_low": ends[0], f"{name}_high": ends[1]}
        rows.append(row | _speedup(runs[(runs["model"] == model) & (runs["load"] == load)], part))
    made = pd.DataFrame(rows)
    quality = _quality(study) if quality is None else quality
    made["points"] = [_points(quality, *each) for each in zip(made.policy_label, made.at_once, strict=True)]
    made["order"] = [-1 if name == STOCK else policy_rank(name) for name in made["policy"]]
    made = made.sort_values(["model", "at_once", "request_rate", "order", "policy_label"], na_position="last")
    return made.drop(columns="order").reset_index(drop=True)


def _concurrency(record: Row) -> float:
    """NaN where arrivals have a rate and nothing bounds them."""
    bound = record["max_concurrency"]
    if bound is None and record["request_rate"] is None:
        bound = record["num_prompts"]
    return float("nan") if bound is None else float(bound)


def _load(record: Row) -> str:
    rate, concurrency = record["request_rate"], record["max_concurrency"]
    at_once = "no limit" if concurrency is None else f"{concurrency} at once"
    if rate is None and concurrency is None:
        return f"all {record['num_prompts']} at once" if record["num_prompts"] is not None else "all at once"
    return at_once if rate is None else f"{rate:g} requests/s, {at_once}"


def _speedup(same_load: pd.DataFrame, part: pd.DataFrame) -> dict[str, float]:
    """Runs of one number are pairs; where there are several, their range is given, which is no interval."""
    base = same_load[same_load["policy"] == STOCK]
    if base.empty:
        base = same_load[same_load["policy"] == "vanilla"]
    if base.empty:
        return {"speedup": np.nan, "speedup_low": np.nan, "speedup_high": np.nan}
    pairs = part.merge(base, on="run_number", suffixes=("", "_base"))
    ratios = (pairs["tpot_median_ms_base"] / pairs["tpot_median_ms"]).to_numpy()
    if not len(ratios):
        ratios = np.array([base["tpot_median_ms"].mean() / part["tpot_median_ms"].mean()])
    alone = len(ratios) < 2
    return {
        "speedup": float(np.median(ratios)),
        "speedup_low": np.nan if alone else float(ratios.min()),
        "speedup_high": np.nan if alone else float(ratios.max()),
    }


def _quality(study: Path) -> pd.DataFrame:
    """Points to vanilla of the study's cells, by policy and batch size; empty if no cell is finished."""
    from analysis.compare import results
    from analysis.load import load

    try:
        rows = results(load(study, warn=False))
    except ValueError:
        return pd.DataFrame(columns=["policy_label", "batch_size", "difference"])
    return rows[["policy_label", "batch_size", "difference"]]


def _points(quality: pd.DataFrame, label: str, batch: float | None) -> float:
    """Mean over tasks, at the batch size of the load where there is one, else over all."""
    own = quality[quality["policy_label"] == label]
    if own.empty:
        return 0.0 if label in (STOCK, "vanilla") and len(quality) else np.nan
    at_load = own[own["batch_size"] == batch]
    return float((at_load if len(at_load) else own)["difference"].mean())


def show(study: Path, console: Console | None = None) -> Sequence[Path]:
    """Print the table; draw the figure into the study. The files written."""
    from analysis.figures import serving

    made = frame(study)
    console = console or Terminal(emoji=False, width=None if Terminal().is_terminal else 200)
    for model, part in made.groupby("model", sort=False):
        console.print(table_of(str(model), part))
    return serving.draw(made, study / "figures")


def table_of(model: str, part: pd.DataFrame) -> Table:
    """Of one model's rows of `frame`."""
    table = Table(title=Text(f"{model}: served by vLLM, median / p99", style="italic"), title_justify="left")
    for name in ("load", "policy", "runs"):
        table.add_column(name, no_wrap=True)
    shown = [column for column in SHOWN if part.get(_of(column[1]), pd.Series(dtype=float)).notna().any()]
    for name, *_ in shown:
        table.add_column(name, justify="right")
    for name in ("speed-up", "experts", "points"):
        table.add_column(name, justify="right")
    for row in part.to_dict("records"):
        cells = [row["load"], row["policy_label"], str(row["runs"])]
        for _, metric, form in shown:
            values = [row[metric]] if metric in row else [row[f"{metric}_median_ms"], row[f"{metric}_p99_ms"]]
            cells.append("" if pd.isna(values[0]) else form.format(*values))
        spread = "" if pd.isna(row["speedup_low"]) else f" ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"
        cells.append("" if pd.isna(row["speedup"]) else f"{row['speedup']:.2f}{spread}")
        experts = (row["experts_before"], row["experts_after"])
        cells.append("" if pd.isna(experts[0]) else "{:.1f} -> {:.1f}".format(*experts))
        cells.append("" if pd.isna(row["points"]) else f"{row['points']:+.1f}")
        table.add_row(*map(Text, cells))
    return table


def _of(metric: str) -> str:
    return metric if metric.startswith(("request", "output")) else f"{metric}_median_ms"
