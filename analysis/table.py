"""The results table: rich text grouped by task and batch size, macro means last, and the same numbers as CSV."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis import guards, verdicts

WIDTH = 100
"""Columns that the table fits into; also the width where output is not a terminal."""

_SCORE, _DIFFERENCE, _VERDICT, _STEP, _SPEEDUP, _ACTIVE = 13, 19, 6, 4, 16, 4
_LABEL = WIDTH - (_SCORE + _DIFFERENCE + _VERDICT + _STEP + _SPEEDUP + _ACTIVE) - 6


def print_warnings(warnings: Sequence[str], console: Console) -> None:
    """What holds for every table below, before them."""
    for line in warnings:
        console.print(Text("\n".join(textwrap.wrap(f"! {line}", WIDTH, subsequent_indent="  ")), style="yellow"))
    if warnings:
        console.print()


def print_rows(rows: pd.DataFrame, summary: pd.DataFrame, console: Console) -> None:
    """One table per (setting, subtask, batch size), then the macro means per batch size; both with the columns of
    `verdicts.judged`."""
    for (setting, task, subtask, batch), group in rows.groupby(["setting", "task", "subtask", "batch_size"], sort=True):
        first = group.iloc[0]
        names = (task if task == subtask else f"{task}: {subtask}", f"batch size {batch}", setting)
        behind = first["metric"] if first["filter"] in (None, "none", "") else f"{first['metric']} ({first['filter']})"
        counted = f"{behind}, {first['documents']} documents in {first['lanes']} lanes"
        console.print(_table(group, title=_title(*names), about=counted, unit=first["unit"]))
        _print_flagged(group, console)
    for (setting, batch), group in summary.groupby(["setting", "batch_size"], sort=True) if len(summary) else ():
        title = _title("mean over subtasks", f"batch size {batch}", setting)
        console.print(_table(group, title=title, about=f"{group['all_subtasks'].max()} subtasks", unit="points"))
        _print_flagged(group, console)
    compared = summary[summary["kl"].notna()] if len(summary) else summary
    for (setting, batch), group in compared.groupby(["setting", "batch_size"], sort=True) if len(compared) else ():
        console.print(_fidelity_table(group, _title("distance from vanilla", f"batch size {batch}", setting)))
        console.print()
    flagged = rows["guard"].map(guards.is_flagged).any()
    legend = (
        _LEGEND.format(margin=f"{rows['margin'].iloc[0]:g}")
        + (_FIDELITY_LEGEND if len(compared) else "")
        + (_GUARD_LEGEND if flagged else "")
    )
    console.print(Text(legend, style="dim"))


_FIDELITY_LEGEND = (
    "KL: divergence of next-token distributions from vanilla's on vanilla's responses, millinats per\n"
    "token. agree: tokens where the most likely one is vanilla's. select: the selection alone, per layer."
)

_LEGEND = (
    "[low,high]: 95 % interval, clustered by lane; a speed-up's by window. difference: to vanilla on\n"
    "the same documents, in points. step: ms per decode step, mean over windows. speed-up: vanilla's\n"
    "time over the policy's, paired step by step. active: experts per layer and decode step of a full\n"
    "batch. Policies act in decode unless a phase is named. -: not measured.\n"
    "test: ±{margin}, within {margin} of vanilla at 95 % (two one-sided tests); worse or gains, beyond chance (5 %,\n"
    "Holm over all rows), with ? as the only row, but not among so many; ≥N, undecided: with N documents\n"
    "±{margin} would show if nothing changed (power 80 %)."
)


_GUARD_LEGEND = (
    f"!: responses outside vanilla's band: on the same requests over {100 * guards.TOKENS_BAND:.0f} % more or fewer"
    f" tokens, or over\n{100 * guards.LENGTH_STOP_BAND:.0f} points more or fewer cut off by the length limit, and"
    f" beyond chance or over {guards.SIZE_ALONE:g} times that much."
)


def _print_flagged(group: pd.DataFrame, console: Console) -> None:
    """A line for each flagged row, then a blank one."""
    for row in group.to_dict("records"):
        if guards.is_flagged(row["guard"]):
            line = f"! {row['series']}: {_what_is_off(row)}".replace(" %", _HARD_SPACE + "%")
            text = "\n".join(textwrap.wrap(line, WIDTH, subsequent_indent="  ")).replace(_HARD_SPACE, " ")
            console.print(Text(text, style="red"), width=WIDTH)
    console.print()


_HARD_SPACE = "\N{NO-BREAK SPACE}"


def _what_is_off(row: Mapping[str, Any]) -> str:
    if "guarded" in row:
        return f"{row['guard']} in {row['guarded']}"
    tokens, stops = row["new_tokens"], 100 * row["length_stop_share"]
    before, stops_before = tokens - row["new_tokens_difference"], stops - 100 * row["length_stop_share_difference"]
    form = "{:.0f}" if min(tokens, before) >= 20 else "{:.1f}"
    length = f"{form.format(tokens)} tokens a response, vanilla {form.format(before)}"
    return f"{length}; {stops:.0f} % cut off, vanilla {abs(stops_before):.0f} %"


def write_csv(rows: pd.DataFrame, summary: pd.DataFrame, lanes: pd.DataFrame, file: str | Path) -> list[Path]:
    """Write the rows to `file`, the macro means beside it (`NAME_summary.csv`), and where a mix ran its lanes
    (`NAME_lanes.csv`); returns the paths."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = {name: file.with_name(f"{file.stem}_{name}{file.suffix or '.csv'}") for name in ("summary", "lanes")}
    rows.to_csv(file, index=False)
    summary.to_csv(beside["summary"], index=False)
    if len(lanes):
        lanes.to_csv(beside["lanes"], index=False)
    return [file, beside["summary"], *([beside["lanes"]] if len(lanes) else [])]


def _title(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def _table(group: pd.DataFrame, *, title: str, about: str, unit: str) -> Table:
    heading = Text.assemble((title, "bold"), (f"   {about}", "dim"))
    table = Table(title=heading, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0), width=WIDTH)
    table.add_column("policy", width=_LABEL, overflow="fold")
    table.add_column({"%": "accuracy %", "own": "score"}.get(unit, unit), width=_SCORE)
    table.add_column("difference", width=_DIFFERENCE)
    table.add_column("test", width=_VERDICT, justify="right")
    table.add_column("step\nms", width=_STEP, justify="right")
    table.add_column("speed-up", width=_SPEEDUP)
    table.add_column("act.\nexp.", width=_ACTIVE, justify="right")
    for row in group.to_dict("records"):
        table.add_row(*_cells(row))
    return table


def _fidelity_table(group: pd.DataFrame, title: str) -> Table:
    """Sorted by what the policy keeps active, fewest first."""
    about = f"mean over {group['all_subtasks'].max()} subtasks"
    heading = Text.assemble((title, "bold"), (f"   {about}", "dim"))
    table = Table(title=heading, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0), width=WIDTH)
    table.add_column("policy", width=_LABEL + 1, overflow="fold")
    table.add_column("act.\nexp.", width=_ACTIVE, justify="right")
    table.add_column("difference", width=_DIFFERENCE)
    table.add_column("KL, mnat/token", width=_DIFFERENCE)
    table.add_column("agree\n%", width=6, justify="right")
    table.add_column("select\nµs", width=6, justify="right")
    for row in group.sort_values("active_experts", kind="stable").to_dict("records"):
        table.add_row(
            _label(row),
            _number(row["active_experts"], "{:.2f}"),
            _interval(row, "difference", "{:+.1f}"),
            _interval(row, "kl", "{:.3g}"),
            _number(row["agreement"], "{:.2f}"),
            _number(row["selection_us"], "{:.0f}"),
        )
    return table


_MIX_LEGEND = (
    "Lanes count once each. difference: experts, shuffled lanes minus separate ones of the same requests.\n"
    "tasks: effective number of tasks in a lane, exp of the entropy of its requests' shares."
)


def print_mixes(summary: pd.DataFrame, console: Console) -> None:
    """For each mix and batch size, what sharing lanes does to active experts; `summary` of `composition`."""
    if summary.empty:
        return
    for (setting, task, batch), group in summary.groupby(["setting", "task", "batch_size"], sort=True):
        title = Text(_title(f"{task}: experts by what shares a lane", f"batch size {batch}", setting), style="bold")
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0), width=WIDTH)
        table.add_column("policy", width=WIDTH - 63, overflow="fold")
        table.add_column("lanes", width=8)
        table.add_column("number", width=6, justify="right")
        table.add_column("tasks", width=5, justify="right")
        table.add_column("active experts", width=20)
        table.add_column("difference", width=19)
        for row in group.to_dict("records"):
            active, difference = _interval(row, "active_experts", "{:.2f}"), _interval(row, "difference", "{:+.2f}")
            mean_tasks = _number(row["effective_tasks"], "{:.2f}")
            table.add_row(_label(row), row["mixing"], str(row["lanes"]), mean_tasks, active, difference)
        console.print(table)
        console.print()
    console.print(Text(_MIX_LEGEND, style="dim"))


def _cells(row: Mapping[str, Any]) -> tuple[Text | str, ...]:
    reference = row["policy"] == "vanilla"
    label = _label(row)
    if row.get("subtasks", 0) < row.get("all_subtasks", 0):
        label.append(f" ({row['subtasks']} of {row['all_subtasks']} subtasks)", style="yellow")
    difference = "-" if reference else _interval(row, "difference", "{:+.1f}") if row["paired"] else "no vanilla"
    speedup = "1" if reference and not math.isnan(row["step_ms"]) else _interval(row, "speedup", "{:.2f}")
    step, active = _number(row["step_ms"], "{:#.3g}"), _number(row["active_experts"], "{:#.3g}")
    return label, _interval(row, "score", "{:.1f}", ends="{:.0f}"), difference, _verdict(row), step, speedup, active


_WORDS = {
    verdicts.WORSE: ("worse", "red"),
    verdicts.BETTER: ("gains", "green"),
    verdicts.PERHAPS_WORSE: ("worse?", "red"),
    verdicts.PERHAPS_BETTER: ("gains?", "green"),
    verdicts.NONE: ("-", ""),
}


def _verdict(row: Mapping[str, Any]) -> Text:
    if row["verdict"] == verdicts.WITHIN:
        return Text(f"±{row['margin']:g}", style="green")
    if row["verdict"] == verdicts.OPEN:
        return Text(f"≥{_count(row['documents_needed'])}", style="yellow")
    word, style = _WORDS[row["verdict"]]
    return Text(word, style=style)


def _count(number: float) -> str:
    """Of at most four characters."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 9999.5 and number >= size:
            return f"{math.ceil(number / size)}{unit}"
    return f"{math.ceil(number)}"


def _label(row: Mapping[str, Any]) -> Text:
    label = Text(row["series"], style="bold" if row["policy"] == "vanilla" else "")
    return label.append(" !", style="bold red") if guards.is_flagged(row["guard"]) else label


def _interval(row: Mapping[str, Any], name: str, form: str, ends: str = "") -> Text | str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if math.isnan(value) or math.isnan(low):
        return _number(value, form)
    inside = f" [{_number(low, ends or form)},{_number(high, ends or form)}]"
    return Text.assemble(_number(value, form), (inside, "dim"))


def _number(value: float, form: str) -> str:
    """`-` for a missing number; 100.0 loses its zero, 123. its point and -0.0 its sign, to fit the columns."""
    if math.isnan(value):
        return "-"
    text = form.format(value + 0.0).removesuffix(".")
    return text.removesuffix(".0") if abs(value) > 99.9 else text
