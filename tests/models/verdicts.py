"""The tiny model of each family, built once, and steps to try policies on.

T token rows, G lanes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch

from lynx_exp.engine.abilities import Attempt, attempt
from lynx_exp.models import Attachment, Rows
from lynx_exp.models.families import Family, Verdict, examine
from lynx_exp.routing import ModelShape, Policy, RouterRule, Routing, StepContext

SEEN: dict[str, Verdict] = {}
"""Family: its verdict, for those that this run has looked at."""

TRIED: dict[str, Attempt] = {}

IDS = torch.arange(24).view(2, 12) + 3
LANES = 6


def verdict(family: Family) -> Verdict:
    if str(family) not in SEEN:
        SEEN[str(family)] = examine(family)
    return SEEN[str(family)]


def attempted(family: Family) -> Attempt:
    """What the engine does with it, tried once."""
    if str(family) not in TRIED:
        TRIED[str(family)] = attempt(verdict(family))
    return TRIED[str(family)]


def rows(count: int = IDS.numel(), lanes: int = LANES) -> Rows:
    """Decode rows, the last of each lane dead."""
    number = torch.arange(count)
    size = count // lanes
    return Rows(
        decode=torch.ones(count, dtype=torch.bool),
        lane=number // size,
        live=number % size < size - 1,
        num_lanes=lanes,
        key=torch.arange(lanes) << 32,
        row=number,
    )


@cache
def plain(model: torch.nn.Module) -> torch.Tensor:
    return logits(model)


@torch.inference_mode()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


@dataclass(frozen=True)
class Call:
    before: Routing
    step: StepContext
    rule: RouterRule
    after: Routing


@dataclass(frozen=True, kw_only=True)
class Spy(Policy):
    """A policy that remembers what it was asked and what it answered."""

    inner: Policy
    calls: list[Call] = field(default_factory=list)

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        raise AssertionError("the inner policy routes")

    def __call__(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        after = self.inner(routing, step, rule)
        self.calls.append(Call(routing, step, rule, after))
        return after

    def bind(self, shape: ModelShape) -> Policy:
        return replace(self, inner=self.inner.bind(shape))


def under(policy: Policy, model: Any, routers: Any) -> tuple[torch.Tensor, list[Call]]:
    """(the model's logits under the policy, what its routers did)."""
    spy = Spy(inner=policy)
    with Attachment(routers, spy) as attachment:
        attachment.rows = rows()
        return logits(model), spy.calls
