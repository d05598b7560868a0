"""Policies of many lanes in rows that keep their seats: each is called once a layer over all of them, and sees as live
the rows of its own lanes alone. Which rows these are stands in buffers, so that a recorded step serves any of them.

S seats, K top-k, G lane places, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import torch
from torch import Tensor

from lynx_exp.engine.decoding.sections import Act, more_slots, more_weights
from lynx_exp.engine.kv_cache.seats import ACT, LIVE, NUMBER, PLACE, Seats
from lynx_exp.models import Record, Router, count_active, count_changed
from lynx_exp.models.align_outputs import AlignOutputs
from lynx_exp.routing import Policy, Routing, StepContext, layer_range
from lynx_exp.routing.types import StepRows


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """One act that decides in decode steps."""

    policy: Policy
    layers: frozenset[int] | None
    """Where it decides; None: in all."""
    acting_S: Tensor
    """Bool: the live rows of its lanes."""
    step: StepRows


class MaskedSections:
    """`begin` a step, then run the model inside a `with` block; `counts` is what it ran. All of it is recorded."""

    def __init__(self, routers: Sequence[Router], acts: dict[int, Act], seats: Seats) -> None:
        """`acts`: those whose lanes may be in the seats, by their numbers in the seats' table."""
        self._routers, self._acts, self._seats = routers, acts, seats
        self._record: Record = []
        self._aligned = AlignOutputs(routers, [act.policy for act in acts.values()])
        self._removers: list[Callable[[], None]] = []
        self._ones_S = torch.ones_like(seats.every_S, dtype=torch.bool)

    def begin(self) -> None:
        seats, self._record = self._seats, []
        self._live_S, self._lane_S = seats.table[LIVE] > 0, seats.table[PLACE]
        self._dead_S1 = ~self._live_S[:, None]
        self._parts: list[_Part] = []
        for number, act in self._acts.items():
            if not act.decodes:
                continue
            assert act.policy is not None
            acting_S = self._live_S if len(self._acts) == 1 else self._live_S & (seats.table[ACT] == number)
            step: StepRows = {
                "decode": self._ones_S,
                "live": acting_S,
                "lane": self._lane_S,
                "num_lanes": seats.key_G.shape[0],
                "key": seats.key_G,
                "row": seats.table[NUMBER],
                "shared": {},
            }
            layers = None if act.layers is None else layer_range(act.layers, len(self._routers))
            self._parts.append(_Part(policy=act.policy, layers=layers, acting_S=acting_S, step=step))

    def counts(self) -> Tensor:
        """`[2, G, L]` int32 of the step: distinct experts that the live rows of each lane place ran, and assignments
        of theirs that policies changed."""
        rows = self._lane_S, self._live_S, self._seats.key_G.shape[0]
        active_GL = count_active(self._record, *rows, self._routers[0].num_experts)
        return torch.stack([active_GL, count_changed(self._record, *rows)]).int()

    def _route(self, router: Router, routing: Routing) -> Routing:
        experts, weights = routing.experts, routing.weights
        for part in self._parts:
            if part.layers is not None and router.layer not in part.layers:
                continue
            new = part.policy(routing, StepContext(layer=router.layer, **part.step), router.rule)
            if new is routing:
                continue
            self._aligned.note(router.layer, part.policy, routing, new)
            if len(self._acts) == 1:  # rows that are not live come back as they were
                experts, weights = new.experts, new.weights.to(routing.weights.dtype)
                continue
            width, mine_S1 = max(experts.shape[1], new.experts.shape[1]), part.acting_S[:, None]
            experts = torch.where(mine_S1, more_slots(new.experts, width), more_slots(experts, width))
            weights = torch.where(
                mine_S1, more_weights(new.weights.to(weights.dtype), width), more_weights(weights, width)
            )
        weights = weights.masked_fill(self._dead_S1, 0)  # dead rows run no expert
        self._record.append((experts, weights, routing.experts))
        return Routing(logits=routing.logits, experts=experts, weights=weights)

    def __enter__(self) -> MaskedSections:
        self._removers = [router.intercept(partial(self._route, router)) for router in self._routers]
        self._removers += self._aligned.hook()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for remove in self._removers:
            remove()
        self._removers = []
