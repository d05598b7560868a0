"""`policy.per_layer=calibrated`: a policy's budget for each layer, the mean of which is the budget that is asked for.

What each layer costs at each budget is measured by `lynx-prepare calibrate policy=NAME policy.per_layer=calibrated`:
the mean KL divergence of the next token from vanilla's when that layer alone runs the policy. The budgets of least
summed divergence are then found exactly (`allocate`). So it is LExI's programme (`lexi`) for any policy whose knob is a
number of experts, by a measure of the whole model; layers allocated by dynamic programming over sensitivities are
Alloc-L of Alloc-MoE (arXiv 2604.08133; its abstract and summaries were read), which has a token's experts for budgets,
and perplexity with all later layers at one expert for their cost: here the other layers are vanilla. That divergences
of layers add up is what makes it exact, and an assumption.

L layers with a router, B budgets that were measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from math import floor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lynx_exp.routing.alignment import FOLDER, content_of
from lynx_exp.routing.calibration import COMMAND, NotMeasured, typed
from lynx_exp.routing.measured_file import corpus_tag, load_tables, save_tables, the_only_one
from lynx_exp.routing.per_layer import PerLayer
from lynx_exp.routing.policy import Policy
from lynx_exp.routing.types import ModelShape

MOST_BUDGETS = 17
"""Of a layer that are measured, spread evenly over the knob's range."""
_FORMAT = 1
_KIND, _TABLE = "budgets", "divergence"


@dataclass(frozen=True, kw_only=True, eq=False)
class Budgets:
    """Measured for one policy on one model."""

    policy: str
    """`budget_digest` of the policy."""
    fingerprint: str
    """Of the routers' weights."""
    budgets: tuple[int, ...]
    """Rising; B of them."""
    divergence: Tensor = field(repr=False)
    """`[L, B]` float64: mean KL divergence from vanilla, nats a token, where the layer alone runs at that budget."""
    provenance: dict[str, str]
    """What it was measured on."""

    def file(self, folder: Path = FOLDER) -> Path:
        tag = corpus_tag(self.provenance)
        return folder / f"{self.policy[:12]}-{self.fingerprint[:12]}-{tag}.budgets.safetensors"

    def save(self, path: Path) -> None:
        """Written in one step; the same table gives the same bytes."""
        about = {name: getattr(self, name) for name in ("policy", "fingerprint", "budgets", "provenance")}
        save_tables(path, _KIND, {_TABLE: self.divergence}, about, version=_FORMAT)

    @classmethod
    def load(cls, path: Path) -> Budgets:
        """ValueError, in one line, for a file that is something else or has been changed."""
        again = "make it again with `lynx-prepare calibrate policy=... policy.per_layer=calibrated`"
        tables, about = load_tables(path, _KIND, (_TABLE,), again, version=_FORMAT)
        divergence = tables[_TABLE]
        if not bool(torch.isfinite(divergence).all()):
            raise ValueError(f"{path}: holds a divergence that is no finite number; {again}")
        return cls(divergence=divergence, **about | {"budgets": tuple(about["budgets"])})


def measured_budgets(policy: Policy, shape: ModelShape) -> tuple[int, ...]:
    """At which budgets the policy is to be measured on a model of this shape."""
    assert policy.knob is not None
    low, high = policy.knob.bounds(shape)
    steps = min(MOST_BUDGETS, int(high - low) + 1)
    spread = [low + (high - low) * step / max(steps - 1, 1) for step in range(steps)]
    return tuple(sorted({round(value) for value in spread}))


def budget_digest(policy: Policy) -> str:
    """sha256 over a policy's name and parameters, its budget left out; in place of where a calibration is, what the
    file holds."""
    assert policy.knob is not None
    left_out = ("calibration", "per_layer", policy.knob.parameter)
    said = {f.name: getattr(policy, f.name) for f in fields(policy) if f.init and f.name not in left_out}
    said = {name: value for name, value in said.items() if value is not None} | {"name": policy.name}
    said |= content_of(getattr(policy, "calibration", "auto"))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def budget_files(policy: Policy, folder: Path = FOLDER) -> list[Path]:
    """The tables of this policy with these parameters, of whatever models. ValueError if there is none."""
    digest = budget_digest(policy)[:12]
    found = sorted(folder.glob(f"{digest}-*.budgets.safetensors"))
    if not found:
        raise NotMeasured(
            f"{policy.name}: per_layer=calibrated: {folder}/ has no table for this policy with these parameters (hash "
            f"{digest}); {COMMAND} {typed(policy)}` makes one"
        )
    return found


def check_budgets(policy: Policy, folder: Path = FOLDER) -> None:
    """ValueError for a policy whose budgets by layer cannot be, or have not been measured."""
    if any(part.per_layer is not None for part in getattr(policy, "policies", ())):
        raise ValueError(f"{policy.name}: per_layer=calibrated: not together with lists of one value a layer")
    if policy.per_layer is not None:
        budget_files(policy, folder)


def with_budgets(policy: Policy, shape: ModelShape, folder: Path = FOLDER) -> Policy:
    """The policy with a budget for each layer in place of `per_layer=calibrated`; itself, where it does not say that.

    Raises ValueError, naming the hashes, where there is no table of this policy, its parameters and this model, or the
    files, where there are several (of other texts) or they are of other batches than the policy is for.
    """
    check_budgets(policy, folder)
    if policy.per_layer is None:
        return policy
    policy.accept(shape)
    files = budget_files(policy, folder)
    here = "" if shape.fingerprint is None else shape.fingerprint()
    tables = [Budgets.load(path) for path in files]
    wanted = (budget_digest(policy), here)
    own = [(path, each) for path, each in zip(files, tables, strict=True) if (each.policy, each.fingerprint) == wanted]
    found = the_only_one(f"{policy.name}: per_layer=calibrated", own, policy.of_batch_size, typed(policy))
    if found is None:
        raise ValueError(
            f"{policy.name}: per_layer=calibrated: {', '.join(map(str, files))}: made for another model (its routers "
            f"hash to {tables[0].fingerprint[:12]}, this model's to {here[:12]}); {COMMAND} {typed(policy)}` "
            "for this one"
        )
    table = found[1]
    assert policy.knob is not None
    parameter, layers = policy.knob.parameter, len(table.divergence)
    mean = getattr(policy, parameter)
    if mean < table.budgets[0]:
        raise ValueError(f"{policy.name}: {parameter}={mean}: least budget that was measured: {table.budgets[0]}")
    each_layer = allocate(table.divergence, table.budgets, floor(mean * layers + 1e-9))
    values: list[dict[str, Any]] = [{"per_layer": None, parameter: budget} for budget in each_layer]
    policies = tuple(replace(policy, **each) for each in values)
    return PerLayer(policies=policies, made_of=policy)


def allocate(cost_LB: Tensor, budgets: Sequence[int], total: int) -> list[int]:
    """The budget of each layer: their sum at most `total`, the sum of their costs least; of equal ones that with the
    smallest sum. Exact, by dynamic programming over the sum that is spent. ValueError for a cost that is not finite."""
    if not bool(torch.isfinite(cost_LB).all()):
        raise ValueError("a cost of a layer's budget is not finite")
    cost, least = cost_LB.double().tolist(), min(budgets)
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for layer in range(len(cost)):
        room = total - least * (len(cost) - layer - 1)
        grown: dict[int, tuple[float, list[int]]] = {}
        for used, (loss, chosen) in best.items():
            for number, budget in enumerate(budgets):
                loss_then, spent = loss + cost[layer][number], used + budget
                if spent <= room and (spent not in grown or loss_then < grown[spent][0]):
                    grown[spent] = loss_then, [*chosen, budget]
        best = grown
    return min(best.values(), key=lambda found: (found[0], sum(found[1])))[1]
