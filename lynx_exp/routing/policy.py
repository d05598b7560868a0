"""What a policy is, and the template of those that choose one set of experts for a whole lane.

T token rows, E experts, K top-k, G lanes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from lynx_exp.routing.backends.numba import native
from lynx_exp.routing.ops.lanes import best_mask, lane_size, lane_sum, lane_votes
from lynx_exp.routing.ops.protect import keep_protected
from lynx_exp.routing.ops.remap import restrict
from lynx_exp.routing.ops.weigh import Weights, weigh
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Phases, Routing, StepContext
from lynx_exp.wording import policy_label

Protect = tuple[int, ...] | Literal["calibrated"] | None
CALIBRATED: Literal["calibrated"] = "calibrated"


@dataclass(frozen=True, kw_only=True)
class Knob:
    """The parameter that sets how many experts stay active, for `match_active` to turn."""

    parameter: str
    low: float | Literal["K", "E"]
    """Smallest value to try; K: the model's top-k, E: its number of experts."""
    high: float | Literal["K", "E"]
    """Largest value to try."""
    integer: bool = True
    """Integers only."""
    falling: bool = False
    """A larger value leaves fewer experts active."""
    logarithmic: bool = False
    """Steps are ratios."""

    def bounds(self, shape: ModelShape) -> tuple[float, float]:
        """The range to search.

        Args:
            shape: Of the model.

        Returns:
            (smallest, largest) value of the parameter.
        """
        sizes = {"K": float(shape.top_k), "E": float(shape.num_experts)}
        low, high = (sizes[end] if isinstance(end, str) else end for end in (self.low, self.high))
        return low, high


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """A function from the routing of a step to a new routing. Its fields are its parameters, checked when it is
    built."""

    min_batch: int = 1
    """Lanes with fewer live rows run vanilla."""
    weights: Weights = "renormalize"
    """What the experts that run weigh, where they are not the router's own choice. renormalize: as the policy is
    published, over those that run; mass: their sum is the token's own top-K mass; original: each its weight in the
    router's top-K; reference: over the k2 best of all; affine: renormalize, and the layer's output mapped to vanilla's
    mean and deviation, which `lynx-prepare calibrate policy=...` has measured."""
    k2: int | None = None
    """weights=reference: over how many of a token's best experts its scores are divided, K..E; null: K."""
    protect: Protect = None
    """Experts that no token loses: a list a layer ([[3],[],[5,7]]); calibrated: by a calibration; null: none.
    A token runs those of them that its router sends it to; `lynx-prepare calibrate` finds the super experts."""
    per_layer: Literal["calibrated"] | None = None
    """calibrated: a budget for each layer, whose mean is the one that is given; null: the same in all layers.
    Those that cost least, as `lynx-prepare calibrate policy=NAME policy.per_layer=calibrated` has measured."""

    kind: ClassVar[Literal["batch-aware", "per token"]] = "per token"
    """What it looks at: all rows of a lane in a step, or one token at a time."""
    purpose: ClassVar[Literal["method", "chance", "probe", "control", "baseline"]] = "method"
    """Why one runs it: to use it (`method`); to be beaten by those (`chance`); to ask what a model tolerates, with
    figures of its own (`probe`); to know what the machinery does by itself (`control`, and the `baseline`, vanilla)."""
    hidden: ClassVar[tuple[str, ...]] = ("min_batch", "weights", "seed")
    """Parameters, besides those of the base class, that a label leaves out where they have their default."""
    color: ClassVar[str | None] = None
    """In figures, as `#rrggbb`; None: the next of the palette."""
    marker: ClassVar[str | None] = None
    """In figures, as matplotlib names it; None: the next that is free."""
    yields_marker: ClassVar[bool] = False
    """Where colour tells something else, another policy may take the marker, and this one gets the next that is
    free."""
    knob: ClassVar[Knob | None] = None
    secondary_parameters: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    """Other parameters, with values for `match_active` to try where the knob alone comes nowhere near."""

    def __post_init__(self) -> None:
        at_least(self, "min_batch", 1)
        if self.k2 is not None and self.weights != "reference":
            raise ValueError(f"{self.name}: k2={self.k2}: only weights=reference takes one, not weights={self.weights}")
        if self.per_layer is not None and (self.knob is None or not self.knob.integer):
            raise ValueError(
                f"{self.name}: per_layer={self.per_layer}: only where a whole number sets how many experts run"
            )
        if self.per_layer is not None and self.weights == "affine":
            raise ValueError(f"{self.name}: per_layer={self.per_layer}: not together with weights=affine")

    def protected(self, num_experts: int, device: torch.device) -> Tensor:
        """The experts of `protect`.

        Args:
            num_experts: E, of the layer.
            device: Where the mask is wanted.

        Returns:
            bool `[E]`.

        Raises:
            RuntimeError: If no calibration has given `calibrated` its list yet.
        """
        if self.protect is None or self.protect == CALIBRATED:
            raise RuntimeError(f"{self.name}: protect={self.protect}: `bind` the policy to a model first")
        kept: dict[tuple[int, torch.device], Tensor] = self.__dict__.setdefault("_protected", {})
        place = num_experts, device  # a policy that names no calibration serves models of any size
        if place not in kept:
            kept[place] = torch.zeros(num_experts, dtype=torch.bool, device=device)
            kept[place][list(self.protect)] = True
        return kept[place]

    def __call__(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        """Select experts for the token rows of one layer.

        Args:
            routing: The router's own.
            step: Who the rows are.
            rule: How this router scores.

        Returns:
            The new routing. Rows that are not live, or whose lane has fewer than `min_batch` rows, are as they were.
        """
        return _select(self, routing, step, rule)

    @abstractmethod
    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        """What a policy is: select experts for the live rows.

        Args:
            routing: The router's own.
            step: Who the rows are; lanes that are too small are not live here.
            rule: How this router scores.

        Returns:
            The new routing, which may have more than K slots. Rows that are not live must be as they were.
        """

    def check(self, shape: ModelShape) -> None:  # noqa: B027  # most policies run anywhere
        """Refuse models that cannot run this policy.

        Args:
            shape: Of the model.

        Raises:
            ValueError: The model cannot run it; the message names the parameter.
        """

    def accept(self, shape: ModelShape) -> None:
        """`check`, and what all policies have in common.

        Args:
            shape: Of the model.

        Raises:
            ValueError: The model cannot run it; the message names the parameter.
        """
        self.check(shape)
        if self.k2 is not None:
            rule, most = shape.rule, shape.num_experts
            if rule is not None and rule.grouped:
                most = most // rule.groups * rule.top_groups
            between(self, "k2", shape.top_k, most)
        if isinstance(self.protect, tuple) and not all(0 <= expert < shape.num_experts for expert in self.protect):
            raise ValueError(
                f"{self.name}: protect={list(self.protect)}: must be experts of this model, 0..{shape.num_experts - 1}"
            )

    def bind(self, shape: ModelShape) -> Policy:
        """The policy as a model runs it.

        Args:
            shape: Of the model.

        Returns:
            The policy itself, or a copy with what it takes from the model, such as a calibration.

        Raises:
            ValueError: The model cannot run it.
        """
        self.accept(shape)
        return self

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @property
    def label(self) -> str:
        """The policy with its parameters, such as `lynx(alpha=3, beta=2)`, as tables show it: without what is null, and
        what is `hidden` at its default."""
        known = [field for field in fields(self) if field.init]
        own = {field.name: getattr(self, field.name) for field in known}
        usual = {field.name: field.default for field in known}
        hidden = {name for base in type(self).__mro__ for name in vars(base).get("hidden", ())}
        return policy_label(self.name, own, usual, hidden)


@dataclass(frozen=True, kw_only=True)
class LanePolicy(Policy):
    """A policy in three choices: score the experts of each lane and keep a set of them (`keep`), remap each token
    into that set."""

    min_batch: int = 2  # with one row there is no union of experts to shrink

    kind = "batch-aware"
    serves_groups: ClassVar[bool] = False
    """Whether a router that limits each token to some groups of experts still finds enough in every kept set."""

    @abstractmethod
    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        """Which experts a lane may use.

        Args:
            routing: The router's own.
            step: Who the rows are.
            rule: How this router scores.

        Returns:
            `[G, E]` bool: at least K experts for each lane with live rows.
        """

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        return restrict(routing, self.keep(routing, step, rule), step.lane, step.live, rule)

    def check(self, shape: ModelShape) -> None:
        if not self.serves_groups:
            without_groups(self, shape)


class Select(Protocol):
    """Runs a policy, in one of the ways there are; the answer is the same up to rounding."""

    def __call__(self, policy: Policy, routing: Routing, step: StepContext, rule: RouterRule) -> Routing: ...


def select_in_torch(policy: Policy, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
    """The definition: `policy.route` for the lanes that are large enough, then `keep_protected`, then `weigh`."""
    acting, somewhere = acting_step(step, policy.min_batch)
    if not somewhere:
        return routing
    new = policy.route(routing, acting, rule)
    if policy.protect is not None:
        new = keep_protected(routing, new, policy.protected(routing.num_experts, new.experts.device), rule)
    return weigh(routing, new, rule, policy.weights, policy.k2)


_select: Select = select_in_torch


def run_policies_by(select: Select) -> None:
    """From now on a policy that is called runs by `select`. (`lynx_exp.routing.dispatch` sets itself here: what runs a
    policy faster knows the policies, and they do not know it.)"""
    global _select
    _select = select


def acting_step(step: StepContext, min_batch: int) -> tuple[StepContext, bool]:
    """(the step with only the live rows of lanes of at least `min_batch`, False if there is surely none); found once a
    forward pass.

    Only on a CPU is it free to ask; elsewhere the answer would stall the device.
    """
    name = f"acting at {min_batch}"
    if name not in step.shared:
        if native.usable(step.live) and min_batch > 1:
            acts, somewhere = native.lane_rows(*native.arrays(step), step.num_lanes, min_batch)
            acts_T = torch.from_numpy(acts)
            all_act = bool((acts == native.arrays(step)[0]).all())
        else:
            all_act = min_batch == 1
            acts_T = step.live if all_act else step.live & (lane_size(step) >= min_batch)[step.lane]
            somewhere = acts_T.device.type != "cpu" or bool(acts_T.any())
        step.shared[name] = acts_T, somewhere, all_act, {}
    acts_T, somewhere, all_act, shared = step.shared[name]
    return (step if all_act else replace(step, live=acts_T, shared=shared)), somewhere


@dataclass(frozen=True)
class Phased:
    """A policy that sees, and changes, only the rows of some phases."""

    policy: Policy
    phases: Phases

    def __call__(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        if self.phases == "none":
            return routing
        if self.phases != "both":
            acting_T = step.decode if self.phases == "decode" else ~step.decode
            step = replace(step, live=step.live & acting_T, shared={})
        return self.policy(routing, step, rule)


def votes_then_mass(routing: Routing, step: StepContext, rule: RouterRule) -> tuple[Tensor, Tensor]:
    """(votes, summed mass), both `[G, E]`: how often an expert is in a top-K of the lane, and what breaks ties."""
    votes_GE = lane_votes(routing.experts, step.live, step, routing.num_experts)
    return votes_GE, lane_sum(routing.mass(rule), step)


def most_voted(routing: Routing, step: StepContext, rule: RouterRule, count: int) -> Tensor:
    """`[G, E]` bool: each lane's `count` experts with most votes, ties by summed mass, then by lower index."""
    mass_TE = routing.mass(rule)
    if native.usable(mass_TE):
        mask = native.most_voted(mass_TE.numpy(), routing.experts.numpy(), *native.arrays(step), step.num_lanes, count)
        return torch.from_numpy(mask)
    return best_mask(*votes_then_mass(routing, step, rule), count)


def fill_up(keep_GE: Tensor, count: int, first_GE: Tensor, second_GE: Tensor) -> Tensor:
    """`keep_GE` with at least `count` experts a lane, the missing ones added best first by the two keys.

    A lane that keeps `count` or more already stays as it is.
    """
    order_GE = torch.where(keep_GE, torch.inf, first_GE.double())
    return keep_GE | best_mask(order_GE, second_GE, count)


def top_choices(routing: Routing, step: StepContext, count: int) -> Tensor:
    """`[G, E]` bool: the experts among the first `count` of any live row of the lane, `count` at most K."""
    return lane_votes(routing.experts[:, :count], step.live, step, routing.num_experts) > 0


def without_groups(policy: Policy, shape: ModelShape) -> None:
    """ValueError for a model whose routers limit a token to some groups of experts."""
    rule = shape.rule
    if rule is not None and rule.grouped:
        raise ValueError(
            f"{policy.name}: this model's routers let a token use {rule.top_groups} of {rule.groups} groups of "
            f"experts, and the set that this policy keeps may hold fewer than {shape.top_k} of those; "
            "lynx, oea and coverage are made for such routers"
        )


def at_least(policy: Policy, field: str, least: float) -> None:
    value = getattr(policy, field)
    if not value >= least:
        raise ValueError(f"{policy.name}: {field}={value}: must be at least {least}")


def at_most(policy: Policy, field: str, most: float) -> None:
    value = getattr(policy, field)
    if not value <= most:
        raise ValueError(f"{policy.name}: {field}={value}: must be at most {most}")


def between(policy: Policy, field: str, least: float, most: float) -> None:
    value = getattr(policy, field)
    if not least <= value <= most:
        raise ValueError(f"{policy.name}: {field}={value}: must lie in {least}..{most}")


def above(policy: Policy, field: str, limit: float) -> None:
    value = getattr(policy, field)
    if not value > limit:
        raise ValueError(f"{policy.name}: {field}={value}: must be above {limit}")
