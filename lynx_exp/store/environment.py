"""In what cells ran, as far as it can change their results or times, and in what their environments differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lynx_exp.store.identity import flatten
from lynx_exp.store.provenance import NUMERIC_VARIABLES

PACKAGES = ("torch", "transformers", "tokenizers", "lm_eval", "sacrebleu", "numpy", "triton", "numba", "vllm")
"""Whose versions can change a number."""
UNSET = "not set"


def numerics(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What of a cell's provenance can change its results or times: field -> value, as people read it. Fields that the
    cell does not record are absent."""
    recorded = provenance.get("numerics")
    if isinstance(recorded, Mapping):
        return {name: _shown(value) for name, value in flatten(recorded).items()}
    packages = provenance.get("packages")
    fields: dict[str, Any] = {}
    if isinstance(packages, Mapping):
        fields |= {f"packages.{name}": packages.get(name) for name in PACKAGES}
    fields |= flatten({name: provenance[name] for name in ("torch", "python") if provenance.get(name)})
    fields |= {name: provenance[name] for name in ("cpu", "cpus") if name in provenance}
    model = provenance.get("model")
    if isinstance(model, Mapping):
        names = ("dtype", "device", "experts_implementation")
        fields |= {f"model.{name}": model[name] for name in names if name in model}
    environment = provenance.get("environment")
    if isinstance(environment, Mapping):
        fields |= {f"environment.{name}": environment.get(name) for name in {*NUMERIC_VARIABLES, *environment}}
    return {name: _shown(value) for name, value in fields.items()}


def differences(provenances: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Of cells by name: field -> value -> the cells that have it, for each field of which there are several values.

    A field that a cell does not record says nothing about it.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for cell, provenance in provenances.items():
        for name, value in numerics(provenance).items():
            found.setdefault(name, {}).setdefault(value, []).append(cell)
    return {name: found[name] for name in sorted(found) if len(found[name]) > 1}


def _shown(value: Any) -> str:
    if value is None:
        return UNSET
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
