"""One decode step in which lanes of different policies stand side by side: each policy is called once a layer, on the
rows of its own lanes.

R rows in use, T rows of the step (R, and dead ones after them), K top-k, G lane places, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from lynx_exp.engine.kv_cache.batch import POSITIONS
from lynx_exp.models import Record, Router, count_active, count_changed
from lynx_exp.models.align_outputs import AlignOutputs
from lynx_exp.models.rank_agreement import Agreement
from lynx_exp.routing import Phases, Policy, Routing, StepContext, layer_range
from lynx_exp.routing.types import LastingRows, StepRows


@dataclass(frozen=True, kw_only=True)
class Act:
    """Who decides in a lane."""

    policy: Policy | None
    """Bound; None for vanilla."""
    phases: Phases = "decode"
    layers: str | None = None

    @property
    def decodes(self) -> bool:
        """Whether it acts in decode steps."""
        return self.policy is not None and self.policy.name != "vanilla" and self.phases in ("decode", "both")

    @property
    def prefills(self) -> bool:
        return self.policy is not None and self.policy.name != "vanilla" and self.phases in ("prefill", "both")


@dataclass(kw_only=True)
class _Part:
    """The rows of one act."""

    act: Act
    start: int
    stop: int
    lane_places: np.ndarray
    """Lane places, one a lane of this part."""
    fixed: LastingRows
    step: StepRows | None = None
    """Of the step at hand, where the act decides."""


class Sections:
    """Tell it who the rows are (`arrange`, whenever that changes, and `begin` before each step), then run the model
    inside a `with` block; `counts` is what the step ran."""

    def __init__(self, routers: Sequence[Router], acts: Sequence[Act], device: torch.device) -> None:
        self._routers, self._acts, self._device = routers, acts, device
        self._layers = [None if act.layers is None else layer_range(act.layers, len(routers)) for act in acts]
        self._removers: list[Callable[[], None]] = []
        self._record: Record = []
        self._agreement = Agreement(routers)
        self._aligned = AlignOutputs(routers, [act.policy for act in acts])

    def arrange(self, act_R: Sequence[int], lane_R: Sequence[int], slot_R: Sequence[int], dead: int) -> None:
        """For each row in use the number of its act, the place of its lane, its slot in the lane; `dead` rows follow
        them."""
        acts, lanes, rows = np.asarray(act_R), np.asarray(lane_R), len(act_R)
        slots_R = np.asarray(slot_R, np.int64) * POSITIONS
        # rows of one policy are made contiguous; stable, so that a lane's rows keep their order
        order = np.argsort(acts, kind="stable")
        self._rows, self._dead = rows, dead
        self._order: Tensor | None = None
        # most often one policy runs alone, and nothing has to be permuted
        if not np.array_equal(order, np.arange(rows)):
            self._order = torch.from_numpy(order).to(self._device)
            self._back = torch.from_numpy(np.argsort(order)).to(self._device)
        self._parts: list[_Part] = []
        for number in np.unique(acts):
            mine = order[acts[order] == number]
            start = int(np.searchsorted(acts[order], number))
            # policies number their lanes from 0: what others are in the pack must not show
            places, local = np.unique(lanes[mine], return_inverse=True)
            ones = torch.ones(len(mine), dtype=torch.bool, device=self._device)
            fixed: LastingRows = {
                "decode": ones,
                "live": ones,
                "lane": torch.from_numpy(local.astype(np.int64)).to(self._device),
                "num_lanes": len(places),
                "row": torch.from_numpy(slots_R[mine]).to(self._device),
            }
            part = _Part(act=self._acts[number], start=start, stop=start + len(mine), lane_places=places, fixed=fixed)
            self._parts.append(part)
        # dead rows count for lane 0, where `_live_T` leaves them out again
        padded = np.concatenate([lanes, np.zeros(dead, lanes.dtype)]) if dead else lanes
        self._lane_T = torch.from_numpy(padded.astype(np.int64)).to(self._device)
        self._live_T = torch.arange(rows + dead, device=self._device) < rows
        self._places = int(lanes.max()) + 1
        self._plain = not any(part.act.decodes for part in self._parts)

    def begin(self, key_G: np.ndarray) -> None:
        """`key_G`: for each lane place the number of its (lane, step)."""
        self._record = []
        for part in self._parts:
            if part.act.decodes:
                key = torch.from_numpy(key_G[part.lane_places]).to(self._device)
                part.step = {**part.fixed, "key": key, "shared": {}}

    def counts(self) -> Tensor:
        """`[2, G, L]` of the last step: distinct experts that the live rows of each lane place ran, and assignments of
        theirs that policies changed."""
        num_experts = self._routers[0].num_experts
        active_GL = count_active(self._record, self._lane_T, self._live_T, self._places, num_experts)
        return torch.stack([active_GL, count_changed(self._record, self._lane_T, self._live_T, self._places)])

    def _route(self, router: Router, routing: Routing) -> Routing | None:
        new = None if self._plain else self._decide(router, routing)
        if self._dead:  # they run no expert
            used = new or routing
            weights = used.weights.clone()
            weights[self._rows :] = 0
            new = Routing(logits=routing.logits, experts=used.experts, weights=weights)
        used = new or routing
        self._record.append((used.experts, used.weights, routing.experts))
        # ranks that share the model must have chosen the same experts
        if self._agreement.required:
            self._agreement.check(router.layer, used.experts, self._live_T)
        return new

    def _decide(self, router: Router, routing: Routing) -> Routing:
        rows, order = self._rows, self._order
        given = (routing.logits, routing.experts, routing.weights)
        logits, experts, weights = (t[:rows] if order is None else t[order] for t in given)
        made = []
        for part in self._parts:
            own = slice(part.start, part.stop)
            mine = Routing(logits=logits[own], experts=experts[own], weights=weights[own])
            layers = self._layers[self._acts.index(part.act)]
            if part.act.decodes and (layers is None or router.layer in layers):
                assert part.act.policy is not None and part.step is not None
                before = mine
                mine = part.act.policy(before, StepContext(layer=router.layer, **part.step), router.rule)
                if self._aligned.active:
                    place = self._places_of(part), len(routing.experts)
                    self._aligned.note(router.layer, part.act.policy, before, mine, place)
            made.append((mine.experts, mine.weights.to(weights.dtype)))
        # policies may keep other numbers of slots: all are widened by empty ones to be joined again
        width = max(e.shape[1] for e, _ in made)
        experts = torch.cat([more_slots(e, width) for e, _ in made])
        weights = torch.cat([more_weights(w, width) for _, w in made])
        if order is not None:
            experts, weights = experts[self._back], weights[self._back]
        if self._dead:
            experts = torch.cat([experts, more_slots(routing.experts[rows:], width)])
            weights = torch.cat([weights, more_weights(routing.weights[rows:], width)])
        return Routing(logits=routing.logits, experts=experts, weights=weights)

    def _places_of(self, part: _Part) -> Tensor:
        """Of its rows among those of the step."""
        if self._order is not None:
            return self._order[part.start : part.stop]
        return torch.arange(part.start, part.stop, device=self._device)

    def __enter__(self) -> Sections:
        self._removers = [router.intercept(partial(self._route, router)) for router in self._routers]
        self._removers += self._aligned.hook()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for remove in self._removers:
            remove()
        self._removers = []


def more_slots(experts_TK: Tensor, width: int) -> Tensor:
    """With slots that run nothing, which repeat the row's first expert, up to `width`."""
    missing = width - experts_TK.shape[1]
    return torch.cat([experts_TK, experts_TK[:, :1].expand(-1, missing)], 1) if missing else experts_TK


def more_weights(weights_TK: Tensor, width: int) -> Tensor:
    missing = width - weights_TK.shape[1]
    return pad(weights_TK, (0, missing)) if missing else weights_TK
