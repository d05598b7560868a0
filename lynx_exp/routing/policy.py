"""What a policy is, and the template of those that choose one set of experts for a whole lane.

T token rows, E experts, K top-k, G lanes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from lynx_exp.routing import native
from lynx_exp.routing.lanes import best_mask, lane_size, lane_sum, lane_votes
from lynx_exp.routing.remap import restrict
from lynx_exp.routing.types import RouterRule, Routing, StepContext

Phases = Literal["decode", "prefill", "both", "none"]


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """A function from the routing of a step to a new routing. Its fields are its parameters, checked when it is
    built."""

    @abstractmethod
    def __call__(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        """The new routing. Rows that are not live come back as they were."""

    def check(self, num_experts: int, top_k: int) -> None:  # noqa: B027  # most policies run anywhere
        """Raise ValueError, naming the parameter, if a model with E experts and top-K cannot run this policy."""

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @property
    def label(self) -> str:
        """The policy with its parameters, such as `lynx(alpha=3.0, beta=2, min_batch=2)`."""
        parameters = ", ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))
        return f"{self.name}({parameters})" if parameters else self.name


@dataclass(frozen=True, kw_only=True)
class LanePolicy(Policy):
    """A policy in three choices: score the experts of each lane and keep a set of them (`keep`), remap each token
    into that set."""

    min_batch: int = 2
    """Lanes with fewer live rows run vanilla: with one row there is no union of experts to shrink."""

    def __post_init__(self) -> None:
        at_least(self, "min_batch", 1)

    @abstractmethod
    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        """`[G, E]` bool, at least K experts a lane."""

    def __call__(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        acts_T, somewhere = self._acts(step)
        if not somewhere:
            return routing
        return restrict(routing, self.keep(routing, step, rule), step.lane, acts_T, rule)

    def _acts(self, step: StepContext) -> tuple[Tensor, bool]:
        """(live rows of large enough lanes `[T]` bool, False if there is surely none); once a forward pass.

        Only on a CPU is it free to ask; elsewhere the answer would stall the device.
        """
        name = f"acts at {self.min_batch}"
        if name not in step.shared:
            if native.usable(step.live):
                acts, somewhere = native.lane_rows(*native.arrays(step), step.num_lanes, self.min_batch)
                step.shared[name] = torch.from_numpy(acts), somewhere
            else:
                acts_T = step.live & (lane_size(step) >= self.min_batch)[step.lane]
                step.shared[name] = acts_T, acts_T.device.type != "cpu" or bool(acts_T.any())
        return step.shared[name]


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


def votes_then_probability(routing: Routing, step: StepContext, rule: RouterRule) -> tuple[Tensor, Tensor]:
    """(votes, summed scores), both `[G, E]`: how often an expert is in a top-K of the lane, and what breaks ties."""
    votes_GE = lane_votes(routing.experts, step.live, step, routing.num_experts)
    return votes_GE, lane_sum(routing.scores(rule), step)


def most_voted(routing: Routing, step: StepContext, rule: RouterRule, count: int) -> Tensor:
    """`[G, E]` bool: each lane's `count` experts with most votes, ties by summed score, then by lower index."""
    scores_TE = routing.scores(rule)
    if native.usable(scores_TE):
        mask = native.most_voted(
            scores_TE.numpy(), routing.experts.numpy(), *native.arrays(step), step.num_lanes, count
        )
        return torch.from_numpy(mask)
    return best_mask(*votes_then_probability(routing, step, rule), count)


def fill_up(keep_GE: Tensor, count: int, first_GE: Tensor, second_GE: Tensor) -> Tensor:
    """`keep_GE` with at least `count` experts a lane, the missing ones added best first by the two keys.

    The first key must be a count of rows.
    """
    kept_first_GE = first_GE + keep_GE.long() * 2**40
    return keep_GE | best_mask(kept_first_GE, second_GE, count)


def at_least(policy: Policy, field: str, least: float) -> None:
    value = getattr(policy, field)
    if not value >= least:
        raise ValueError(f"{policy.name}: {field}={value}: must be at least {least}")


def between(policy: Policy, field: str, least: float, most: float) -> None:
    value = getattr(policy, field)
    if not least <= value <= most:
        raise ValueError(f"{policy.name}: {field}={value}: must lie in {least}..{most}")
