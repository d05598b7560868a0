"""How numbers, intervals and names look in tables for a terminal of 100 columns, in Markdown and on the page."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence

import pandas as pd
from rich.console import Console
from rich.text import Text

from analysis import guards
from analysis.frame_rows import Row

WIDTH = 100
"""Columns that a table fits into; also the width where output is not a terminal."""

HARD_SPACE = "\N{NO-BREAK SPACE}"


def print_warnings(warnings: Sequence[str], console: Console) -> None:
    """What holds for every table below, before them."""
    for line in warnings:
        console.print(wrapped(f"! {line}", "yellow"))
    if warnings:
        console.print()


def one_lane_legend(rows: pd.DataFrame) -> str:
    """What to do about differences that have no interval; empty if all have one."""
    alone = rows["difference"].notna() & rows["difference_low"].isna() & (rows["policy"] != "vanilla")
    return _ONE_LANE if alone.any() else ""


_ONE_LANE = (
    "One lane alone has no interval: a lane takes batch_size times waves requests, so raise limit=, or lower waves= or "
    "batch_size=."
)


def wrapped(line: str, style: str, indent: str = "  ") -> Text:
    """Of at most `WIDTH` columns, further lines indented; numbers stay with their percent signs."""
    text = "\n".join(textwrap.wrap(line.replace(" %", HARD_SPACE + "%"), WIDTH, subsequent_indent=indent))
    return Text(text.replace(HARD_SPACE, " "), style=style)


def print_legend(paragraphs: Iterable[str], console: Console) -> None:
    """What the columns above mean, dim; an empty paragraph is none."""
    for paragraph in filter(None, paragraphs):
        console.print(wrapped(paragraph, "dim", indent=""))


def title(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def label(row: Row) -> Text:
    """The policy of a row; `!` behind it if its responses leave vanilla's band."""
    text = Text(row["series"], style="bold" if row["policy"] == "vanilla" else "")
    return text.append(" !", style="bold red") if guards.is_flagged(row["guard"]) else text


def interval(row: Row, name: str, form: str, ends: str = "") -> Text | str:
    """`value [low,high]`, or the value alone where there is no interval."""
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if math.isnan(value) or math.isnan(low):
        return number(value, form)
    inside = f" [{number(low, ends or form)},{number(high, ends or form)}]"
    return Text.assemble(number(value, form), (inside, "dim"))


def number(value: float, form: str) -> str:
    """`-` for a missing number; 100.0 loses its zero, 123. its point and -0.0 its sign, to fit the columns."""
    if math.isnan(value):
        return "-"
    text = form.format(value + 0.0).removesuffix(".")
    return text.removesuffix(".0") if abs(value) > 99.9 else text


def count(value: float) -> str:
    """Of at most four characters."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 9999.5 and value >= size:
            return f"{math.ceil(value / size)}{unit}"
    return f"{math.ceil(value)}"
