"""What a cell asks, apart from the code and the machine that answer it: by this, cells of different versions are known
to be the same question."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from lynx_exp.config import Role, Use
from lynx_exp.store.identity import UNTOUCHED, USES, USUAL, flatten
from lynx_exp.store.reading import value_or_empty

ASKED = (Role.QUESTION, Role.CONTENT)
HOW = (Role.MEANS, Role.RECORD)
"""How an answer is computed, and what is measured beside it."""

PATHS = (*(name for name, use in USES.items() if use.path), "policy.calibration")
"""Fields that may hold a path: its last part counts."""

SHOWN = (
    *("model", "task", "mixing", "policy", "policy_label", "match_active", "layers", "phases"),
    *("batch_size", "batching", "limit", "seed", "plan_seed"),
)
"""Fields of cell.json by which people know a cell."""


def read_config_yaml(folder: Path) -> dict[str, object]:
    """config.yaml of a cell of any version; empty if it cannot be read."""
    return value_or_empty(folder / "config.yaml")


def question(config: Mapping[str, object]) -> dict[str, object]:
    """What the cell of this config asks, as flat fields; those that are null, or have no effect, are left out."""
    fields = _fields(config, ASKED)
    if fields.get("plan_seed") is None or fields.get("batch_size") == 1:
        fields["plan_seed"] = fields.get("seed")
    return {name: value for name, value in fields.items() if value is not None}


def means(config: Mapping[str, object]) -> dict[str, object]:
    """How it is to be answered: the fields of these roles that are there and have an effect."""
    return {name: value for name, value in _fields(config, HOW).items() if value is not None}


def computed_how(config: Mapping[str, object]) -> dict[str, object]:
    """`means` without what is measured beside the answers."""
    return {name: value for name, value in _fields(config, (Role.MEANS,)).items() if value is not None}


def _fields(config: Mapping[str, object], roles: Collection[Role]) -> dict[str, object]:
    """Those of these roles that have an effect. What `Config` does not have (any more) was asked."""
    flat = _flat(config)
    untouched = flat.get("policy.name") in UNTOUCHED
    found = {}
    for name, value in flat.items():
        use = USES.get(name, _ASKED)
        counts = use.has_effect(flat) and not (untouched and name.startswith("policy.") and name != "policy.name")
        if isinstance(value, list | dict):
            counts &= bool(value)  # empty is as absent, as cells have it that were made before the field was
        elif name.startswith("policy."):
            counts &= (name.removeprefix("policy."), value) not in USUAL
        if counts and use.role in roles:
            found[name] = value
    return found


_ASKED = Use(role=Role.QUESTION)
"""Of a policy's parameters, and of fields that `Config` does not have."""


def _flat(config: Mapping[str, object]) -> dict[str, object]:
    flat = flatten(config)
    policy = flat.pop("policy", None)
    if isinstance(policy, Mapping):
        flat |= {f"policy.{name}": value for name, value in policy.items()}
    for name in PATHS:
        if isinstance(flat.get(name), str):
            flat[name] = Path(flat[name]).name
    return flat
