"""Accuracy and latency of vanilla and of every timed policy by task (Lynx table 2): LaTeX and CSV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from analysis import guards, latency
from analysis.figures import curves, style
from analysis.frame_rows import Row
from analysis.labels import of_purpose
from analysis.latex import booktabs, escape, number
from analysis.outputs import write_bytes, write_csv
from analysis.study import Study

_FLAG = r"$^{\dagger}$"
_COLUMNS = (
    *(("task", "l"), ("policy", "l"), ("score", "r"), ("difference", "r"), (r"p50 step (ms)", "r")),
    *((r"mean step (ms)", "r"), ("speed-up", "r"), ("active experts", "r")),
)


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """One file a batch size: rows of vanilla and of the settings timed in decode, by subtask. Steps: median and mean of
    those timed, means over windows; the speed-up is paired step by step."""
    rows = study.rows[study.rows["step_ms"].notna() & ~of_purpose(study.rows["policy"], "probe")]
    rows = rows[(rows["phases"] == "decode") | (rows["policy"] == "vanilla")]
    policies = rows.groupby("batch_size")["policy"].transform(lambda names: len(set(names) - {"vanilla"}))
    rows = rows[policies > 0] if len(rows) else rows
    if rows.empty:
        return style.absent(
            f"table2{suffix}", "was timed under vanilla and a policy (measure.latency=true; +paper=table2)"
        )
    written = []
    batches = sorted(rows["batch_size"].unique())
    for batch in batches:
        part = rows[rows["batch_size"] == batch]
        name = f"table2{suffix}" if len(batches) == 1 else f"table2_b{batch}{suffix}"
        part = part.assign(**_steps(part, study.records.timing))
        tex, csv = folder / f"{name}.tex", folder / f"{name}.csv"
        groups = [[_row(row) for row in group.to_dict("records")] for _, group in part.groupby("subtask", sort=False)]
        notes = [
            f"batch size {batch}; [low, high]: 95 % intervals; needs \\usepackage{{booktabs}}",
            *style.WARNINGS.get(),
        ]
        if not part["timing_final"].all():
            notes.append("~ behind a speed-up: not final, its precision was not reached or the machine was busy")
        if part["guard"].map(guards.is_flagged).any():
            notes.append("dagger: responses longer or shorter than vanilla's, or cut off more or less often")
        write_bytes(tex, booktabs(_COLUMNS, groups, notes).encode())
        columns = ("score", "difference", "step_p50_ms", "step_mean_ms", "speedup", "active_experts")
        write_csv(csv, curves.numbers(part, *columns))
        written += [tex, csv]
    return written


def _steps(part: pd.DataFrame, timing: pd.DataFrame) -> dict[str, list[float]]:
    """Median and mean of the cells' timed steps, intervals over windows."""
    found: dict[str, list[float]] = {}
    for cell, policy in part[["cell_id", "policy"]].itertuples(index=False):
        who = "vanilla" if policy == "vanilla" else "policy"
        own = timing[(timing["cell_id"] == cell) & (timing["name"] == who)].groupby("window")["ms"]
        for name, steps in (("step_p50_ms", own.median()), ("step_mean_ms", own.mean())):
            estimate = latency.mean_step(steps.to_numpy(dtype=float))
            for end, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
                found.setdefault(f"{name}{end}", []).append(np.nan if value is None else value)
    return found


def _speedup(row: Row) -> str:
    shown = number(row["speedup"], row["speedup_low"], row["speedup_high"], "{:.2f}")
    return shown if row["timing_final"] else rf"{shown}$^{{\sim}}$"


def _row(row: Row) -> list[str]:
    vanilla = row["policy"] == "vanilla"
    return [
        escape(row["subtask"]) if vanilla else "",
        escape(row["series"]) + (_FLAG if guards.is_flagged(row["guard"]) else ""),
        number(row["score"], form="{:.1f}"),
        "--" if vanilla else number(row["difference"], row["difference_low"], row["difference_high"], "{:+.1f}"),
        number(row["step_p50_ms"], form="{:.2f}"),
        number(row["step_mean_ms"], form="{:.2f}"),
        "--" if vanilla else _speedup(row),
        number(row["active_experts"], form="{:.1f}"),
    ]
