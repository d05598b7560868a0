"""Policies that choose a set of experts for a lane, in the terms of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Literal

from lynx_exp.routing.backends.triton.kernels.sums import ASKED, BINNED, CONFIDENT, DRAWN, TOTAL, VOTED
from lynx_exp.routing.policies.coverage import FLOOR, Coverage
from lynx_exp.routing.policies.lynx import Lynx
from lynx_exp.routing.policies.lynx_v1_accuracy import LynxV1Accuracy
from lynx_exp.routing.policies.lynx_v1_latency import LynxV1Latency
from lynx_exp.routing.policies.no_drop import NoDrop
from lynx_exp.routing.policies.oea import Oea
from lynx_exp.routing.policies.random_keep import RandomKeep
from lynx_exp.routing.policies.sere import Sere
from lynx_exp.routing.policies.xshare import XShare
from lynx_exp.routing.policy import Policy

COVERAGE = -1
MOST_FACTORS = 8
"""Powers up to which `coverage` multiplies instead of taking logarithms."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A policy for `spread`, or, if it is `coverage`, for `launches` or `in_rounds`."""

    keep: int
    """One of `sums`, or COVERAGE."""
    view: Literal["affinity", "mass", "scores", "none"] = "mass"
    """Of the routing: what is summed or binned."""
    variant: int = 0
    """lynx: 1 for whole bins. oea: 1 for p below 1. xshare: 1 for logits. coverage: 0 for log utility, n for mass with
    power n, -1 for mass with another power."""
    first: int = 0
    """oea: k0. xshare: warm_up. coverage: guarantee. sere: primary."""
    budget: int = 0
    limit: int | None = None
    """xshare: max_batch. oea: max_rank."""
    ranked: bool = False
    """Whether `limit` is oea's max_rank."""
    own_first: bool = False
    slots: int | None = None
    rounds: int | None = None
    """coverage: None for greedy."""
    numbers: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Parameters that the definitions use as float64; a float handed to a kernel would be float32. lynx: alpha, lowest
    bin. oea: p. coverage: least gain per row, floor, power. lynx_v1_accuracy: confidence. sere: threshold."""


_KNOWN = (NoDrop, Lynx, Oea, XShare, Coverage, LynxV1Latency, LynxV1Accuracy, RandomKeep, Sere)


@cache
def plan_of(policy: Policy, num_experts: int, top_k: int) -> Plan | None:
    """None for a policy that the kernels of lanes do not know. A subclass may define something else."""
    if type(policy) not in _KNOWN:
        return None
    match policy:
        case NoDrop():
            return Plan(keep=TOTAL.value, budget=num_experts)
        case LynxV1Latency():
            return Plan(keep=VOTED.value, budget=min(policy.keep_experts, num_experts))
        case LynxV1Accuracy():
            least = min(max(top_k, policy.min_experts), num_experts)
            return Plan(keep=CONFIDENT.value, budget=least, numbers=(policy.confidence, 0.0, 0.0))
        case RandomKeep():
            return Plan(keep=DRAWN.value, view="none", budget=min(policy.keep_experts, num_experts))
        case Sere():
            numbers = (policy.threshold, 0.0, 0.0)
            return Plan(keep=ASKED.value, view="none", first=policy.primary, numbers=numbers)
        case Lynx():
            lowest = -inf if policy.beta is None else -float(policy.beta)
            return Plan(
                keep=BINNED.value,
                view="affinity",
                variant=int(policy.bins == "ceil"),
                numbers=(policy.alpha, lowest, 0.0),
            )
        case Oea():
            return Plan(
                keep=ASKED.value,
                variant=int(policy.p < 1.0),
                first=policy.k0,
                limit=policy.max_rank,
                ranked=policy.max_rank is not None,
                view="scores" if policy.p < 1.0 else "none",
                slots=policy.k_max,
                numbers=(policy.p, 0.0, 0.0),
            )
        case XShare() if not policy.substitute:
            return None
        case XShare():
            return Plan(
                keep=TOTAL.value,
                view="mass" if policy.score == "prob" else "affinity",
                variant=int(policy.score == "logit"),
                first=policy.warm_up,
                budget=policy.budget,
                limit=policy.max_batch,
                own_first=policy.warm_up_for == "token" and policy.warm_up > 0,
            )
        case Coverage():
            power = 1.0 if policy.utility == "log" else policy.power
            mass = int(power) if power in range(1, MOST_FACTORS + 1) else -1
            return Plan(
                keep=COVERAGE,
                variant=0 if policy.utility == "log" else mass,
                first=policy.guarantee,
                budget=num_experts if policy.budget is None else policy.budget,
                rounds=policy.rounds,
                numbers=(-1.0 if policy.tolerance is None else policy.tolerance**power, FLOOR, power),
            )
    raise AssertionError(policy)
