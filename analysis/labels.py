"""What cells are called: their setting, their series, and the order of policies."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

PROBES = ("reassign", "deny_rank", "keep_ranks")
"""Policies that ask what a model tolerates, and have figures of their own: no rivals of the others."""

SETTING = ("model", "backend", "dtype", "device", "batching", "scoring", "limit")
"""Fields that must agree before cells are averaged or drawn together, besides the workload (a mix is one of its own);
the varying ones name the setting."""


def settings_of(cells: pd.DataFrame, *, workload: bool = True) -> dict[str, str]:
    """Name of each cell's setting: what varies among them. `workload`: a mix is a setting of its own, named after its
    task and mixing where there are others."""
    varying = [name for name in SETTING if cells[name].astype(str).nunique() > 1]
    asked = zip(cells["task"], cells["mixing"], strict=True)
    mixes = [f"{task} {mixing}" if isinstance(mixing, str) else "" for task, mixing in asked]
    several = workload and len(set(mixes)) > 1
    labels = {}
    for cell, mix, *values in zip(cells["cell_id"], mixes, *(cells[name] for name in varying), strict=True):
        parts = [f"{name} {value}" for name, value in zip(varying, values, strict=True)]
        labels[cell] = ", ".join(parts + ([mix] if several and mix else []))
    return labels


def series_of(cells: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """Name of each (label, parameters, phases) in tables and legends.

    The label, with all parameters where it stands for several settings, and with the phases unless decode.
    """
    named = {}
    columns = ["policy", "policy_label", "policy_params", "phases"]
    for label, part in cells[columns].drop_duplicates().groupby("policy_label", sort=False):
        shared = part["policy_params"].nunique() > 1
        for policy, _, params, phases in part.itertuples(index=False):
            inside = ", ".join(f"{name}={value}" for name, value in json.loads(params).items())
            name = f"{policy}({inside})" if shared else str(label)
            act = "" if policy in ("vanilla", "noise_floor") or phases == "decode" else f" [{phases}]"
            named[str(label), params, phases] = name + act
    return named


def policy_order(policy: str, params: str, phases: str) -> tuple[Any, ...]:
    """Sort key: vanilla, noise_floor, no_drop, then by name, numeric parameters by size; `params` is JSON."""
    values = json.loads(params)
    first = {"vanilla": 0, "noise_floor": 1, "no_drop": 2}.get(policy, 3)
    numbers = [(k, 0, v, "") if isinstance(v, int | float) else (k, 1, 0, str(v)) for k, v in sorted(values.items())]
    return first, policy, phases, numbers
