"""The results table for other programs: JSON, and Markdown for a README or an issue."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from analysis import columns
from analysis.conclusion import conclusions
from analysis.layout import title
from analysis.results_table import By, ordered
from analysis.study import Study


def as_json(study: Study, *, by: By = "all", sort: str = "policy") -> str:
    """`conclusions`, `warnings`, `margin`, and the rows of `means` and `subtasks`, with every column; what
    is missing is null."""
    whole: dict[str, object] = {
        "conclusions": conclusions(study),
        "warnings": list(study.warnings),
        "margin": study.margin,
    }
    if by != "task":
        whole["means"] = _records(ordered(study.summary, sort))
    if by != "mean" or study.summary.empty:
        whole["subtasks"] = _records(ordered(study.rows, sort))
    return json.dumps(whole, indent=1, allow_nan=False, ensure_ascii=False)


def as_markdown(study: Study, *, by: By = "mean", sort: str = "policy") -> str:
    """The blocks of the terminal's table as Markdown tables, the conclusions above them."""
    lines = [f"- {line}" for line in conclusions(study)] + [f"- ! {line}" for line in study.warnings]
    for heading, rows in _blocks(study, by):
        lines += ["", f"**{heading}**", "", *_table(ordered(rows, sort))]
    return "\n".join(lines).strip() + "\n"


def _blocks(study: Study, by: By) -> Iterator[tuple[str, pd.DataFrame]]:
    single = study.rows["subtask"].nunique() == 1 or study.summary.empty
    if by != "task" and not single:
        for (setting, batch), group in study.summary.groupby(["setting", "batch_size"], sort=True):
            yield title("mean over subtasks", f"batch size {batch}", str(setting)), group
    if by != "mean" or single:
        for (setting, subtask, batch), group in study.rows.groupby(["setting", "subtask", "batch_size"], sort=True):
            yield title(str(subtask), f"batch size {batch}", str(setting)), group


def _table(rows: pd.DataFrame) -> list[str]:
    shown = columns.shown(columns.RESULTS, rows)
    heads = ["policy", *(" ".join(column.heading.split()) for column in shown)]
    under = ["---", *("---:" if column.right else "---" for column in shown)]
    body = [[str(columns.policy(row)), *(str(column.cell(row)) for column in shown)] for row in rows.to_dict("records")]
    return [_line(cells) for cells in (heads, under, *body)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _records(rows: pd.DataFrame) -> list[dict[str, object]]:
    visible = [name for name in rows.columns if not str(name).startswith("_")]
    return [{name: _value(row[name]) for name in visible} for row in rows.to_dict("records")]


def _value(value: object) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
