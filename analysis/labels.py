"""What cells are called: their setting, their series, and the order of policies."""

from __future__ import annotations

import json
import math

import pandas as pd

from analysis.unshown import distinguish
from lynx_exp.config import UNTOUCHED, Config, own_uses, policy_declaration

_USES = own_uses(Config)
SETTING = tuple(sorted((name for name, use in _USES.items() if use.setting), key=lambda name: _USES[name].setting))
"""Fields that must agree before cells are averaged or drawn together, besides the workload (a mix is one of its own);
the varying ones name the setting."""

POINT = ("setting", "subtask", "series", *(name for name, use in _USES.items() if use.point))
"""Columns of results that tell the points of a sweep apart."""


def of_purpose(policies: pd.Series, *purposes: str) -> pd.Series:
    """Which of these policies serve one of the purposes (`lynx_exp.routing.Policy.purpose`)."""
    return policies.isin([name for name in set(policies) if policy_declaration(name).purpose in purposes])


def settings_of(cells: pd.DataFrame, *, workload: bool = True) -> dict[str, str]:
    """Name of each cell's setting: what varies among them. `workload`: a mix is a setting of its own, named after its
    task and mixing where there are others."""
    shown = {name: cells[name].where(_has_effect(cells, name), _ANY) for name in SETTING}
    varying = [name for name, column in shown.items() if _varies(column)]
    asked = zip(cells["task"], cells["mixing"], strict=True)
    mixes = [f"{task} {mixing}" if isinstance(mixing, str) else "" for task, mixing in asked]
    several = workload and len(set(mixes)) > 1
    labels = {}
    for cell, mix, *values in zip(cells["cell_id"], mixes, *(shown[name] for name in varying), strict=True):
        parts = [f"{name} {_typed(value)}" for name, value in zip(varying, values, strict=True) if value != _ANY]
        labels[cell] = ", ".join(parts + ([mix] if several and mix else []))
    apart = distinguish(cells, labels)
    return {cell: ", ".join(filter(None, (label, apart.get(cell)))) for cell, label in labels.items()}


_ANY = "any"
"""Of a field that has no effect in a cell."""


def _has_effect(cells: pd.DataFrame, name: str) -> pd.Series:
    unless = _USES[name].unless
    return ~cells[unless[0]].isin(unless[1]) if unless is not None else pd.Series(True, index=cells.index)


def _typed(value: object) -> object:
    """As it is typed on the command line: a column of integers of which one is null holds floats."""
    if isinstance(value, float) and math.isnan(value) or value is None:
        return "null"
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _varies(column: pd.Series) -> bool:
    return len(set(column[column != _ANY].map(_typed))) > 1  # nunique would not count a null


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
            act = "" if policy in UNTOUCHED or phases == "decode" else f" [{phases}]"
            named[str(label), params, phases] = name + act
    return named


def policy_order(policy: str, params: str, phases: str) -> tuple[object, ...]:
    """Sort key: vanilla, noise_floor, other controls, then by name, numeric parameters by size; `params` is JSON."""
    values = json.loads(params)
    numbers = [(k, 0, v, "") if isinstance(v, int | float) else (k, 1, 0, str(v)) for k, v in sorted(values.items())]
    return policy_rank(policy), policy, phases, numbers


def policy_rank(policy: str) -> int:
    """The baseline first, then what is as untouched, then other controls, then the rest."""
    if policy in UNTOUCHED:
        return UNTOUCHED.index(policy)
    return len(UNTOUCHED) + (policy_declaration(policy).purpose != "control")
