"""Cells that tables would take for one point although they asked, or were run, differently: told apart by the fields
that differ, read from their config.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pandas as pd

from lynx_exp.config import Config, uses
from lynx_exp.store.question import computed_how, question, read_config_yaml

_ALIKE = ("task", "mixing", "policy", "policy_label", "policy_params", "phases", "batch_size", "seed", "plan_seed")
"""Columns of `Records.cells` that agree in what tables show as one point of a setting."""
_SEEN = {name for name, use in uses(Config).items() if use.setting or use.point or use.in_cell_json}
_MISSING = "default"


def distinguish(cells: pd.DataFrame, settings: Mapping[str, str]) -> dict[str, str]:
    """Cell -> the fields, with values, that tell it from others of its point; only cells of tasks where that is needed.

    A field such as `task.num_fewshot` or `truncate` is in no column of a table. Where it alone makes two cells of one
    point, all cells of the task name it. Cells that differ in what they record beside their answers stay one point.

    Args:
        cells: As in `Records.cells`; those without a readable config.yaml are not told apart.
        settings: Cell -> what is told of it otherwise (`labels.settings_of`).
    """
    if cells.empty or "path" not in cells:
        return {}
    keys = [cells["cell_id"].map(settings).rename("named"), *(cells[name] for name in _ALIKE)]
    # of a study of one point a cell nothing is read
    groups = [part for _, part in cells.groupby(keys, dropna=False, sort=False) if len(part) > 1]
    read = cache(_unseen)
    differing: dict[str, set[str]] = {}
    for part in groups:
        fields = [read(path) for path in part["path"]]
        names = {name for one in fields for name in one}
        found = {name for name in names if len({str(one.get(name, _MISSING)) for one in fields}) > 1}
        differing.setdefault(str(part["task"].iloc[0]), set()).update(found)
    named = {}
    for cell, task, path in zip(cells["cell_id"], cells["task"], cells["path"], strict=True):
        if differ := sorted(differing.get(str(task), ())):
            fields_here = read(path)
            named[cell] = ", ".join(f"{name} {fields_here.get(name, _MISSING)}" for name in differ)
    return named


def _unseen(path: str) -> dict[str, object]:
    """What the cell's config asks, and how it is computed, as far as no column shows it."""
    config = read_config_yaml(Path(path))
    fields = question(config) | computed_how(config)
    return {name: value for name, value in fields.items() if name not in _SEEN and not _in_label(name)}


def _in_label(name: str) -> bool:
    """A parameter of the policy, which its series shows."""
    return name.startswith("policy.") and name != "policy.calibration"
