"""The results table: rich text grouped by task and batch size, macro means last, and the same numbers as CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 100
"""Columns that the table fits into; also the width where output is not a terminal."""

_SCORE, _DIFFERENCE, _TPOT, _SPEEDUP, _ACTIVE = 16, 19, 5, 16, 6
_LABEL = WIDTH - (_SCORE + _DIFFERENCE + _TPOT + _SPEEDUP + _ACTIVE) - 5


def print_rows(rows: pd.DataFrame, summary: pd.DataFrame, console: Console) -> None:
    """One table per (setting, subtask, batch size), then the macro means per batch size."""
    for (setting, task, subtask, batch), group in rows.groupby(["setting", "task", "subtask", "batch_size"], sort=True):
        first = group.iloc[0]
        names = (task if task == subtask else f"{task}: {subtask}", f"batch size {batch}", setting)
        behind = first["metric"] if first["filter"] in (None, "none", "") else f"{first['metric']} ({first['filter']})"
        counted = f"{behind}, {first['documents']} documents in {first['lanes']} lanes"
        console.print(_table(group, title=_title(*names), about=counted, unit=first["unit"]))
        console.print()
    for (setting, batch), group in summary.groupby(["setting", "batch_size"], sort=True) if len(summary) else ():
        title = _title("mean over subtasks", f"batch size {batch}", setting)
        console.print(_table(group, title=title, about=f"{group['all_subtasks'].max()} subtasks", unit="points"))
        console.print()
    compared = summary[summary["kl"].notna()] if len(summary) else summary
    for (setting, batch), group in compared.groupby(["setting", "batch_size"], sort=True) if len(compared) else ():
        console.print(_fidelity_table(group, _title("distance from vanilla", f"batch size {batch}", setting)))
        console.print()
    console.print(Text(_LEGEND + (_FIDELITY_LEGEND if len(compared) else ""), style="dim"))


_FIDELITY_LEGEND = (
    "\nKL: divergence of next-token distributions from vanilla's on vanilla's responses, millinats per\n"
    "token. agree: tokens where the most likely one is vanilla's. select: the selection alone, per layer."
)

_LEGEND = (
    "[low,high]: 95 % interval, clustered by lane; a speed-up's over repeats. difference: to vanilla on\n"
    "the same documents, in points. TPOT: ms per decode step, median over repeats. speed-up: vanilla's\n"
    "time over the policy's, paired step by step. active: experts per layer and decode step of a full\n"
    "batch. Policies act in decode unless a phase is named. -: not measured."
)


def write_csv(rows: pd.DataFrame, summary: pd.DataFrame, file: str | Path) -> list[Path]:
    """Write the rows to `file` and the macro means beside it (`NAME_summary.csv`); returns both paths."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.stem}_summary{file.suffix or '.csv'}")
    rows.to_csv(file, index=False)
    summary.to_csv(beside, index=False)
    return [file, beside]


def _title(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def _table(group: pd.DataFrame, *, title: str, about: str, unit: str) -> Table:
    heading = Text.assemble((title, "bold"), (f"   {about}", "dim"))
    table = Table(title=heading, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0), width=WIDTH)
    table.add_column("policy", width=_LABEL, overflow="fold")
    table.add_column({"%": "accuracy %", "own": "score"}.get(unit, unit), width=_SCORE)
    table.add_column("difference", width=_DIFFERENCE)
    table.add_column("TPOT\nms", width=_TPOT, justify="right")
    table.add_column("speed-up", width=_SPEEDUP)
    table.add_column("active\nexp.", width=_ACTIVE, justify="right")
    for row in group.to_dict("records"):
        table.add_row(*_cells(row))
    return table


def _fidelity_table(group: pd.DataFrame, title: str) -> Table:
    """Sorted by what the policy keeps active, fewest first."""
    about = f"mean over {group['all_subtasks'].max()} subtasks"
    heading = Text.assemble((title, "bold"), (f"   {about}", "dim"))
    table = Table(title=heading, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0), width=WIDTH)
    table.add_column("policy", width=_LABEL + 1, overflow="fold")
    table.add_column("active\nexp.", width=_ACTIVE, justify="right")
    table.add_column("difference", width=_DIFFERENCE)
    table.add_column("KL, mnat/token", width=_DIFFERENCE)
    table.add_column("agree\n%", width=6, justify="right")
    table.add_column("select\nµs", width=6, justify="right")
    for row in group.sort_values("active_experts", kind="stable").to_dict("records"):
        table.add_row(
            Text(row["series"]),
            _number(row["active_experts"], "{:.2f}"),
            _interval(row, "difference", "{:+.1f}"),
            _interval(row, "kl", "{:.3g}"),
            _number(row["agreement"], "{:.2f}"),
            _number(row["selection_us"], "{:.0f}"),
        )
    return table


def _cells(row: Mapping[str, Any]) -> tuple[Text | str, ...]:
    reference = row["policy"] == "vanilla"
    label = Text(row["series"], style="bold" if reference else "")
    if row.get("subtasks", 0) < row.get("all_subtasks", 0):
        label.append(f" ({row['subtasks']} of {row['all_subtasks']} subtasks)", style="yellow")
    difference = "-" if reference else _interval(row, "difference", "{:+.1f}") if row["paired"] else "no vanilla"
    speedup = "1" if reference and not math.isnan(row["tpot_ms"]) else _interval(row, "speedup", "{:.2f}")
    tpot, active = _number(row["tpot_ms"], "{:#.3g}"), _number(row["active_experts"], "{:.2f}")
    return label, _interval(row, "score", "{:.1f}"), difference, tpot, speedup, active


def _interval(row: Mapping[str, Any], name: str, form: str) -> Text | str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if math.isnan(value) or math.isnan(low):
        return _number(value, form)
    inside = f" [{_number(low, form)},{_number(high, form)}]"
    return Text.assemble(_number(value, form), (inside, "dim"))


def _number(value: float, form: str) -> str:
    """`-` for a missing number; 100.0 loses its zero, and -0.0 its sign, to fit the columns."""
    if math.isnan(value):
        return "-"
    return form.format(value + 0.0).removesuffix(".0") if abs(value) > 99.9 else form.format(value + 0.0)
