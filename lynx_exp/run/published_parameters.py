"""What a plan says of where policies' parameters come from: published for the model, or this package's default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lynx_exp.config import default_parameters

if TYPE_CHECKING:
    from lynx_exp.run.planned_cell import Cell

_GENERAL = ("min_batch", "seed", "calibration", "weights", "protect", "per_layer")
"""Parameters that hold for any model."""


def published_lines(cells: Sequence[Cell]) -> Iterator[str]:
    """One line a policy, of the cells of one model that is not this package's own."""
    model = cells[0].config.model
    policies: dict[str, list[Mapping[str, Any]]] = {}
    tunable = {cell.config.policy_name for cell in cells if "match_active" in cell.config.policy}
    for cell in cells:
        if not cell.config.is_untouched and cell.config.match_active is None:
            policies.setdefault(cell.config.policy_name, []).append(cell.config.policy_params)
    for name, found in policies.items() if model.kind == "hub" else ():
        published = model.published.get(name)
        known = default_parameters(name) or {}
        default = {key: value for key, value in known.items() if key not in _GENERAL and value is not None}
        if published is not None:
            there = any(_holds(published, parameters) for parameters in found)
            words = "as published for it" if there else "is published for it, and not among these cells"
            yield f"policy {name} on {cells[0].model.name}: {_shown(published)} {words}"
        elif default and name in tunable and any(_holds(default, parameters) for parameters in found):
            words = "the package's default; nothing is published for this model"
            yield f"policy {name} on {cells[0].model.name}: {_shown(default)}, {words}"


def _holds(some: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    return all(parameters.get(key) == value for key, value in some.items())


def _shown(parameters: Mapping[str, Any]) -> str:
    """`alpha=0.7, beta=1`, without what is null."""
    values = ((key, f"{value:g}" if isinstance(value, float) else value) for key, value in parameters.items())
    return ", ".join(f"{key}={value}" for key, value in values if value is not None)
