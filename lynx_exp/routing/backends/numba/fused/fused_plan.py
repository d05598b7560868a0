"""Which policies the fused loops know, and under what parameters."""

from __future__ import annotations

from math import inf

from lynx_exp.routing.backends.numba.fused import Plan, loops
from lynx_exp.routing.policies.coverage import FLOOR, Coverage
from lynx_exp.routing.policies.lynx import Lynx
from lynx_exp.routing.policies.lynx_v1_latency import LynxV1Latency
from lynx_exp.routing.policies.no_drop import NoDrop
from lynx_exp.routing.policies.oea import Oea
from lynx_exp.routing.policies.top_k import TopK
from lynx_exp.routing.policies.xshare import XShare
from lynx_exp.routing.policy import Policy

_KNOWN = (NoDrop, LynxV1Latency, Lynx, Oea, XShare, Coverage, TopK)


def plan_of(policy: Policy) -> Plan | None:
    """The plan of `policy`; None if the loops do not know it. A subclass may define something else."""
    if type(policy) not in _KNOWN:
        return None
    least = policy.min_batch
    match policy:
        case NoDrop():
            return Plan(loops.VOTED, least)
        case LynxV1Latency():
            return Plan(loops.VOTED, least, budget=policy.keep_experts)
        case Lynx():
            lowest = -inf if policy.beta is None else -float(policy.beta)
            return Plan(loops.LYNX, least, variant=policy.bins == "ceil", a=float(policy.alpha), b=lowest)
        case Oea() if policy.p == 1.0 and policy.max_rank is None:
            return Plan(loops.OEA, least, slots=policy.k_max or 0, first=policy.k0)
        case XShare() if policy.substitute and (policy.warm_up_for == "lane" or policy.warm_up == 0):
            most = 2**31 if policy.max_batch is None else policy.max_batch
            return Plan(
                loops.XSHARE,
                least,
                first=policy.warm_up,
                budget=policy.budget,
                most=most,
                variant=policy.score == "logit",
            )
        case Coverage() if policy.rounds is None:
            log = policy.utility == "log"
            gain = -1.0 if policy.tolerance is None else float(policy.tolerance ** (1.0 if log else policy.power))
            return Plan(
                loops.COVERAGE,
                least,
                first=policy.guarantee,
                budget=2**31 if policy.budget is None else policy.budget,
                a=gain,
                b=FLOOR if log else 0.0,
                c=float(policy.power),
            )
        case TopK():
            return Plan(loops.TOP_K, least, first=policy.k)
    return None
