"""The base classes of all selection policies.

A `Policy` maps the routing of one layer and step to a new routing. A `LanePolicy` does so by choosing one set of
experts for each lane. `lynx_exp.models` calls the policy inside each router; `lynx_exp.routing.policies` holds the
implementations, one per file. Only torch is needed here.

T token rows, E experts, K top-k, G lanes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
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
    """The parameter that determines how many experts stay active; `match_active` searches its value."""

    parameter: str
    low: float | Literal["K", "E"]
    """Smallest value to try; K: the model's top-k, E: its number of experts."""
    high: float | Literal["K", "E"]
    """Largest value to try."""
    integer: bool = True
    """Whether only integers are valid."""
    falling: bool = False
    """Whether a larger value leaves fewer experts active."""
    logarithmic: bool = False
    """Whether to search in ratios instead of differences."""

    def bounds(self, shape: ModelShape) -> tuple[float, float]:
        """The range to search for one model.

        Args:
            shape: Number of experts and top-k of the model.

        Returns:
            (smallest, largest) value of the parameter.
        """
        sizes = {"K": float(shape.top_k), "E": float(shape.num_experts)}
        low, high = (sizes[end] if isinstance(end, str) else end for end in (self.low, self.high))
        return low, high


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """A function from the routing of a step to a new routing. Its fields are its parameters, which are checked when
    the policy is built."""

    min_batch: int = 1
    """Lanes with fewer live rows than this run vanilla."""
    weights: Weights = "renormalize"
    """Combine weights of the experts that run, where they differ from the router's choice. renormalize: as published,
    their scores divided by their sum; mass: they add up to the token's own top-K mass; original: each keeps its weight
    in the router's top-K; reference: their scores are divided by the sum over the token's k2 best experts; affine: as
    renormalize, and the layer's output is mapped to vanilla's mean and deviation, as measured by `lynx-prepare
    calibrate policy=...`."""
    k2: int | None = None
    """With weights=reference, the number of a token's best experts in the denominator, K..E; null: K."""
    protect: Protect = None
    """Experts that the policy never takes from a token that its router sends to them. Give a list per layer, such as
    [[3],[],[5,7]]; calibrated: the super experts, as measured by `lynx-prepare calibrate`; null: none."""
    per_layer: Literal["calibrated"] | None = None
    """calibrated: a budget for each layer, with the given budget as their mean; null: the same in all layers. They are
    the ones with the least loss, as measured by `lynx-prepare calibrate policy=NAME policy.per_layer=calibrated`."""

    of_batch_size: int | None = field(default=None, init=False, repr=False)
    """Size of the batches in which what it takes was measured (`for_batches`); None: not said. Compared."""

    kind: ClassVar[Literal["batch-aware", "per token"]] = "per token"
    """Whether it considers all rows of a lane together, or one token at a time."""
    purpose: ClassVar[Literal["method", "chance", "probe", "control", "baseline"]] = "method"
    """Why one runs it. `method`: to use it; `chance`: a random choice that every method should beat; `probe`: to learn
    what a model tolerates, with figures of its own; `control`: to measure the effect of the code path alone;
    `baseline`: vanilla."""
    hidden: ClassVar[tuple[str, ...]] = ("min_batch", "weights", "seed")
    """Parameters that a label omits at their default values, in addition to those that a base class names."""
    color: ClassVar[str | None] = None
    """Colour in figures, as `#rrggbb`; None takes the next one of the palette."""
    marker: ClassVar[str | None] = None
    """Marker in figures, by its matplotlib name; None takes the next free one."""
    yields_marker: ClassVar[bool] = False
    """Whether another policy may take the marker in a figure whose colours do not show policies; this one then gets
    the next free marker."""
    knob: ClassVar[Knob | None] = None
    """The parameter that determines how many experts stay active; None if there is none."""
    secondary_parameters: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    """Further parameters with their values, which `match_active` tries where the knob cannot approach the target."""

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
        """A mask of the experts of `protect`.

        Args:
            num_experts: E, the number of experts of the layer.
            device: The device for the mask.

        Returns:
            bool `[E]`.

        Raises:
            RuntimeError: The list of `calibrated` is not known, because the policy is not bound to a model.
        """
        if self.protect is None or self.protect == CALIBRATED:
            raise RuntimeError(f"{self.name}: protect={self.protect}: `bind` the policy to a model first")
        # cached on the frozen instance: making the mask anew in every layer and step would cost several launches
        cache: dict[tuple[int, torch.device], Tensor] = self.__dict__.setdefault("_protected", {})
        key = num_experts, device
        if key not in cache:
            cache[key] = torch.zeros(num_experts, dtype=torch.bool, device=device)
            cache[key][list(self.protect)] = True
        return cache[key]

    def __call__(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        """Select experts for the token rows of one layer.

        Args:
            routing: The router's own choice: logits `[T, E]`, experts and weights `[T, K]`.
            step: Layer, phase, lane and liveness of each row.
            rule: How this router turns logits into weights.

        Returns:
            The new routing. Rows that are not live, or whose lane has fewer than `min_batch` rows, are unchanged.
        """
        return _select(self, routing, step, rule)

    @abstractmethod
    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        """Select experts for the live rows. This is the method that a new policy implements.

        Args:
            routing: The router's own choice: logits `[T, E]`, experts and weights `[T, K]`.
            step: Layer, phase, lane and liveness of each row; rows of lanes below `min_batch` are not live here.
            rule: How this router turns logits into weights.

        Returns:
            The new routing, which may have more than K slots. Rows that are not live must be unchanged.
        """

    def check(self, shape: ModelShape) -> None:  # noqa: B027  # most policies run anywhere
        """Refuse models that cannot run this policy. A policy overrides it to check its own parameters.

        Args:
            shape: Sizes and router rule of the model.

        Raises:
            ValueError: The model cannot run it; the message names the parameter.
        """

    def accept(self, shape: ModelShape) -> None:
        """Run `check`, and the checks that all policies have in common.

        Args:
            shape: Sizes and router rule of the model.

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
        """Prepare the policy for one model.

        Args:
            shape: Sizes, router rule and calibration of the model.

        Returns:
            The policy itself, or a copy that holds data of the model, such as a calibration.

        Raises:
            ValueError: The model cannot run it.
        """
        self.accept(shape)
        return self

    @property
    def name(self) -> str:
        """The name in configurations, tables and figures: that of the policy's module."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def label(self) -> str:
        """The name with the parameters as tables show them, such as `lynx(alpha=3, beta=2)`. Parameters that are null,
        and `hidden` ones at their defaults, are omitted."""
        parameters = [field for field in fields(self) if field.init]
        own = {field.name: getattr(self, field.name) for field in parameters}
        defaults = {field.name: field.default for field in parameters}
        hidden = {name for base in type(self).__mro__ for name in vars(base).get("hidden", ())}
        return policy_label(self.name, own, defaults, hidden)


@dataclass(frozen=True, kw_only=True)
class LanePolicy(Policy):
    """A policy that keeps a set of experts for each lane (`keep`), and restricts every token of the lane to it."""

    min_batch: int = 2  # with one row there is no union of experts to shrink

    kind = "batch-aware"
    serves_groups: ClassVar[bool] = False
    """Whether every kept set has enough experts for a router that limits each token to some groups of experts."""

    @abstractmethod
    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        """Choose the experts that each lane may use.

        Args:
            routing: The router's own choice: logits `[T, E]`, experts and weights `[T, K]`.
            step: Layer, phase, lane and liveness of each row.
            rule: How this router turns logits into weights.

        Returns:
            `[G, E]` bool: at least K experts for each lane with live rows.
        """

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        return restrict(routing, self.keep(routing, step, rule), step.lane, step.live, rule)

    def check(self, shape: ModelShape) -> None:
        if not self.serves_groups:
            without_groups(self, shape)


class Select(Protocol):
    """A way to execute policies: torch, numba or Triton. All give the same routing up to rounding."""

    def __call__(self, policy: Policy, routing: Routing, step: StepContext, rule: RouterRule) -> Routing: ...


def select_in_torch(policy: Policy, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
    """Execute a policy in plain torch, which defines the result: `route`, then `keep_protected`, then `weigh`.

    Arguments and result are those of `Policy.__call__`.
    """
    acting, somewhere = acting_step(step, policy.min_batch)
    if not somewhere:
        return routing
    new = policy.route(routing, acting, rule)
    if policy.protect is not None:
        new = keep_protected(routing, new, policy.protected(routing.num_experts, new.experts.device), rule)
    return weigh(routing, new, rule, policy.weights, policy.k2)


_select: Select = select_in_torch


def run_policies_by(select: Select) -> None:
    """Execute all policies by `select` from now on. `lynx_exp.routing.dispatch` registers the fast implementations
    here, because they import the policies, which therefore cannot import them."""
    global _select
    _select = select


def acting_step(step: StepContext, min_batch: int) -> tuple[StepContext, bool]:
    """Mark the rows of lanes below `min_batch` as not live.

    Args:
        step: The rows of the step; the result is cached in its `shared`, which lasts for one forward pass.
        min_batch: Live rows that a lane must have.

    Returns:
        (the step, whether any row is live in it). On a GPU the second is always True: reading the answer back would
        make the host wait for the device in every step.
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
    """A policy restricted to some phases: other rows are hidden from it and stay unchanged."""

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
    """(votes, summed router mass), both `[G, E]`. A row votes for its top-K experts, less what it shuts out; the
    mass breaks ties."""
    votes_GE = lane_votes(routing.experts, routing.choice(rule), step.live, step)
    return votes_GE, lane_sum(routing.mass(rule), step)


def most_voted(routing: Routing, step: StepContext, rule: RouterRule, count: int) -> Tensor:
    """Each lane's `count` experts with the most votes, `[G, E]` bool. Ties go to larger mass, then to lower index."""
    mass_TE, choice_TE = routing.mass(rule), routing.choice(rule)
    if native.usable(mass_TE, choice_TE):
        arrays = mass_TE.numpy(), choice_TE.numpy(), routing.experts.numpy()
        mask = native.most_voted(*arrays, *native.arrays(step), step.num_lanes, count)
        return torch.from_numpy(mask)
    return best_mask(*votes_then_mass(routing, step, rule), count)


def fill_up(keep_GE: Tensor, count: int, first_GE: Tensor, second_GE: Tensor) -> Tensor:
    """Add experts to each lane's set `keep_GE` until it has at least `count`; larger sets are unchanged. `[G, E]` bool.

    The experts with the largest `first_GE` come first; `second_GE`, then the lower index break ties.
    """
    order_GE = torch.where(keep_GE, torch.inf, first_GE.double())
    return keep_GE | best_mask(order_GE, second_GE, count)


def top_choices(routing: Routing, step: StepContext, rule: RouterRule, count: int) -> Tensor:
    """The first `count` experts (at most K) of each lane's live rows, less what a row shuts out. `[G, E]` bool."""
    return lane_votes(routing.experts[:, :count], routing.choice(rule), step.live, step) > 0


def without_groups(policy: Policy, shape: ModelShape) -> None:
    """Raise ValueError for a model whose routers limit a token to some groups of experts."""
    rule = shape.rule
    if rule is not None and rule.grouped:
        raise ValueError(
            f"{policy.name}: this model's routers let a token use {rule.top_groups} of {rule.groups} groups of "
            f"experts, and the set that this policy keeps may hold fewer than {shape.top_k} of those; "
            "lynx, oea and coverage are made for such routers"
        )


def at_least(policy: Policy, field: str, least: float) -> None:
    """Raise ValueError if a parameter is below `least`, or NaN."""
    value = getattr(policy, field)
    if not value >= least:
        raise ValueError(f"{policy.name}: {field}={value}: must be at least {least}")


def at_most(policy: Policy, field: str, most: float) -> None:
    """Raise ValueError if a parameter is above `most`, or NaN."""
    value = getattr(policy, field)
    if not value <= most:
        raise ValueError(f"{policy.name}: {field}={value}: must be at most {most}")


def between(policy: Policy, field: str, least: float, most: float) -> None:
    """Raise ValueError if a parameter is outside `least`..`most`, or NaN."""
    value = getattr(policy, field)
    if not least <= value <= most:
        raise ValueError(f"{policy.name}: {field}={value}: must lie in {least}..{most}")


def above(policy: Policy, field: str, limit: float) -> None:
    """Raise ValueError if a parameter is not above `limit`."""
    value = getattr(policy, field)
    if not value > limit:
        raise ValueError(f"{policy.name}: {field}={value}: must be above {limit}")
