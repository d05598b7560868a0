"""Attach a policy to a model's routers, tell it who the rows of the next forward pass are, and detach it without a
trace.

T token rows of a forward pass, K top-k, W slots after a policy, G lanes, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import torch
from torch import Tensor
from torch.nn.functional import pad

from lynx_exp.models.align_outputs import AlignOutputs, align
from lynx_exp.models.rank_agreement import Agreement
from lynx_exp.models.routers import Described, Router, fingerprint
from lynx_exp.routing import ModelShape, Phase, Phases, Policy, Routing, StepContext, layer_range
from lynx_exp.routing.budgets import with_budgets
from lynx_exp.routing.ops.weigh import first_of_each
from lynx_exp.routing.protected import with_experts_named
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import StepRows

Record = list[tuple[Tensor, Tensor, Tensor]]
"""A layer: the experts that run `[T, W]`, their weights `[T, W]`, the experts that the router chose `[T, K]` (the same
tensor as the first where no policy decided)."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The token rows of one forward pass; the fields of `StepContext` without the layer."""

    decode: Tensor
    lane: Tensor
    live: Tensor
    num_lanes: int
    key: Tensor
    row: Tensor
    phase: Phase | None = None
    """The phase of all rows, where they share one."""


class Attachment:
    """A policy for every router of a model; it acts from `attach()` to `detach()`, or inside a `with` block.

    Set `rows` before each forward pass. While `record` is a list, each router appends what the experts will run and
    what it chose itself, in layer order, at no cost to the step; while `confidence` is one, how sure it is of each row;
    while `retained` is one, the share of each row's router mass that still runs (`retained_share`).

    Raises ValueError if the model cannot run the policy. On ranks that choose different experts the forward pass raises
    RuntimeError: the first that records, and the first prefill; others may be timed.
    """

    def __init__(
        self,
        routers: Sequence[Router],
        policy: Policy | None,
        phases: Phases = "decode",
        layers: str | None = None,
    ) -> None:
        """`layers`: those where the policy acts, as in `layer_range`; None is all."""
        self._policy = None
        if policy is not None and policy.name != "vanilla" and phases != "none":
            self._policy = bind(policy, routers)
        self._layers = None if layers is None else layer_range(layers, len(routers))
        self._rows: Rows | None = None
        self._step: StepRows | None = None
        self.record: Record | None = None
        self.confidence: list[Tensor] | None = None
        self.retained: list[Tensor] | None = None
        self.idle_dead = False
        """Whether dead rows run no expert: their weights become 0. Live rows do not notice."""
        self._dead_T1: Tensor | None = None
        self._phases = phases
        self._routers = routers
        self._agreement = Agreement(routers)
        self._aligned = AlignOutputs(routers, [self._policy])
        self._removers: list[Callable[[], None]] = []

    @property
    def on_prompts(self) -> bool:
        """Whether a policy decides in prefills."""
        return self._policy is not None and self._phases in ("prefill", "both")

    @property
    def rows(self) -> Rows | None:
        """Who the rows of the next forward pass are."""
        return self._rows

    @rows.setter
    def rows(self, rows: Rows) -> None:
        self._rows = rows
        self._dead_T1 = ~rows.live[:, None] if self.idle_dead else None
        live = rows.live
        if self._phases in ("decode", "prefill") and self._phases != rows.phase:
            live = live & (rows.decode if self._phases == "decode" else ~rows.decode)
        self._step = {
            "decode": rows.decode,
            "lane": rows.lane,
            "live": live,
            "num_lanes": rows.num_lanes,
            "key": rows.key,
            "row": rows.row,
            "shared": {},
        }

    def _route(self, router: Router, routing: Routing) -> Routing | None:
        new = None
        if self._policy is not None and (self._layers is None or router.layer in self._layers):
            if self._step is None:
                raise RuntimeError("a policy is attached but `rows` of this forward pass was not set")
            new = self._policy(routing, StepContext(layer=router.layer, **self._step), router.rule)
            self._aligned.note(router.layer, self._policy, routing, new)
        if self.retained is not None:
            self.retained.append(retained_share(routing, new or routing, router.rule))
        if self._dead_T1 is not None:
            used = new or routing
            weights = used.weights.masked_fill(self._dead_T1, 0)
            new = Routing(logits=routing.logits, experts=used.experts, weights=weights)
        used = new or routing
        if self.record is not None:
            self.record.append((used.experts, used.weights, routing.experts))
        if self.confidence is not None:
            self.confidence.append(routing.confidence(router.rule))
        rows = self._rows
        if self._agreement.required and rows is not None and (self.record is not None or rows.phase == "prefill"):
            self._agreement.check(router.layer, used.experts, rows.live, rows.phase)
        return new

    def attach(self) -> Attachment:
        assert not self._removers, "already attached"
        self._removers = [router.intercept(partial(self._route, router)) for router in self._routers]
        self._removers += self._aligned.hook()
        return self

    def detach(self) -> None:
        for remove in self._removers:
            remove()
        self._removers = []

    def __enter__(self) -> Attachment:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def bind(policy: Policy, routers: Sequence[Described], calibration: str | None = None) -> Policy:
    """The policy as this model runs it; ValueError, with the reason, if one of its routers cannot."""
    shapes = [
        ModelShape(
            num_experts=router.num_experts,
            top_k=router.top_k,
            num_layers=len(routers),
            rule=router.rule,
            fingerprint=lambda: fingerprint(routers),
            calibration=calibration,
        )
        for router in routers
    ]
    for shape in shapes[1:]:
        policy.accept(shape)
    each_layer = with_budgets(policy, shapes[0])
    return align(policy, with_experts_named(each_layer, shapes[0]).bind(shapes[0]), routers)


def count_active(record: Record, lane: Tensor, live: Tensor, num_lanes: int, num_experts: int) -> Tensor:
    """`[G, L]` int64: distinct experts that each lane's live rows run in each layer; slots of weight 0 run nothing."""
    experts_LTW, runs_LTW = _equally_wide(record)
    runs_LTW = runs_LTW & live[:, None]
    slot_LTW = lane[:, None] * num_experts + experts_LTW
    hit = torch.zeros(len(record), num_lanes * num_experts, dtype=torch.int32, device=lane.device)
    hit.scatter_reduce_(1, slot_LTW.flatten(1), runs_LTW.flatten(1).int(), reduce="amax")
    return hit.view(len(record), num_lanes, num_experts).sum(-1).T


def count_changed(record: Record, lane: Tensor, live: Tensor, num_lanes: int) -> Tensor:
    """`[G, L]` int64: assignments changed, of each lane's K per live row: experts that the router chose for a row and
    that do not run for it."""
    if all(experts is own for experts, _, own in record):
        return torch.zeros(num_lanes, len(record), dtype=torch.long, device=lane.device)
    experts_LTW, runs_LTW = _equally_wide(record)
    own_LTK = torch.stack([own for _, _, own in record])
    kept_LTK = ((own_LTK[..., None] == experts_LTW[:, :, None]) & runs_LTW[:, :, None]).any(-1)
    changed_LT = (~kept_LTK & live[:, None]).sum(-1)
    return torch.zeros(len(record), num_lanes, dtype=torch.long, device=lane.device).index_add_(1, lane, changed_LT).T


def retained_share(before: Routing, after: Routing, rule: RouterRule) -> Tensor:
    """`[T]`: the router's scores of the experts that run for a row, over those of its own top-K: 1 where the policy
    left the row alone, above 1 where it runs more experts. An expert in two slots counts once, whatever it weighs."""
    scores_TE = before.scores(rule)
    mass_T = scores_TE.gather(-1, after.experts).where(first_of_each(after.experts), 0.0).sum(-1)
    return mass_T / scores_TE.gather(-1, before.experts).sum(-1).clamp_min(torch.finfo(torch.float32).tiny)


def _equally_wide(record: Record) -> tuple[Tensor, Tensor]:
    """(experts, whether they run), each `[L, T, W]`, with empty slots where a policy gave some layers more slots than
    others."""
    width = max(experts.shape[1] for experts, _, _ in record)
    experts = [pad(experts, (0, width - experts.shape[1])) for experts, _, _ in record]
    runs = [pad(weights.ne(0), (0, width - weights.shape[1])) for _, weights, _ in record]
    return torch.stack(experts), torch.stack(runs)
