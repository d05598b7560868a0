"""What a cell asks, apart from the code and the machine that answer it: by this, cells of different versions are known
to be the same question."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lynx_exp.store.identity import COSMETIC, UNTOUCHED, flatten
from lynx_exp.store.reading import value_or_empty

HOW = (
    *("backend", "dtype", "device", "kernel", "steps", "threads", "fidelity"),
    *("model.experts_implementation", "model.device_map", "model.parallel"),
    *("measure.latency", "measure.windows", "measure.max_windows", "measure.new_tokens", "measure.repeats"),
    "measure.precision",
)
"""Fields that say how an answer is computed, and what is measured beside it."""

PLACES = ("model.id", "task.data", "policy.calibration")
"""Fields that hold a path: its last part counts."""

SHOWN = (
    *("model", "task", "mixing", "policy", "policy_label", "match_active", "layers", "phases"),
    *("batch_size", "batching", "limit", "seed", "plan_seed"),
)
"""Fields of cell.json by which people know a cell."""


def read_config_yaml(folder: Path) -> dict[str, Any]:
    """config.yaml of a cell of any version; empty if it cannot be read."""
    return value_or_empty(folder / "config.yaml")


def question(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the cell of this config asks, as flat fields; those that are null, or have no effect, are left out."""
    fields = {name: value for name, value in _flat(config).items() if name not in (*COSMETIC, *HOW)}
    if fields.get("policy.name") in UNTOUCHED:
        without = ("phases", "layers")
        fields = {
            n: v for n, v in fields.items() if n not in without and not (n.startswith("policy.") and n[7:] != "name")
        }
    if fields.get("task.weights") is None:
        fields.pop("task.mixing", None)
    if fields.get("batching") == "static":
        fields.pop("waves", None)
        fields.pop("tail", None)
    if fields.get("plan_seed") is None or fields.get("batch_size") == 1:
        fields["plan_seed"] = fields.get("seed")
    return {name: value for name, value in fields.items() if value is not None}


def means(config: Mapping[str, Any]) -> dict[str, Any]:
    """How it is to be answered: the fields of `HOW` that are there and have an effect."""
    flat = _flat(config)
    measured = bool(flat.get("measure.latency"))
    names = [name for name in HOW if measured or not name.startswith("measure.") or name == "measure.latency"]
    if flat.get("policy.name") in UNTOUCHED:
        names.remove("fidelity")
    return {name: flat[name] for name in names if flat.get(name) is not None}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = flatten(config)
    policy = flat.pop("policy", None)
    if isinstance(policy, Mapping):
        flat |= {f"policy.{name}": value for name, value in policy.items()}
    for name in PLACES:
        if isinstance(flat.get(name), str):
            flat[name] = Path(flat[name]).name
    return flat
