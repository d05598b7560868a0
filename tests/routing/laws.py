"""Random routings and steps for the laws, and the policies that the laws are tried on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from lynx_exp.routing import Policy, RouterRule, Routing, StepContext, build_policy, policy_names

PARAMETERS: dict[str, list[dict]] = {
    "lynx": [{"alpha": 3.0, "beta": 2}, {"alpha": 0.7, "beta": 1}, {"alpha": 1.0, "beta": 4}],
    "lynx_v1_latency": [{"keep_experts": 2}, {"keep_experts": 4}],
    "lynx_v1_accuracy": [{"confidence": 0.5}, {"confidence": 0.1, "min_experts": 3}],
    "deny_rank": [{"rank": 0}, {"rank": 1}, {"rank": 0, "mode": "drop"}, {"rank": 1, "mode": "drop"}],
    "random_keep": [{"keep_experts": 2, "seed": 5}, {"keep_experts": 4}],
}
"""Settings that any router with E >= 4 and K = 2 can run; other policies run with their defaults."""

POLICIES: list[Policy] = [
    build_policy(name, **parameters) for name in policy_names() for parameters in PARAMETERS.get(name, [{}])
]


@dataclass(frozen=True)
class Case:
    routing: Routing
    step: StepContext
    rule: RouterRule


def route(logits: torch.Tensor, rule: RouterRule, top_k: int = 2) -> Routing:
    """What a model's own router would do."""
    scores = rule.scores(logits)
    experts = logits.argsort(dim=-1, descending=True, stable=True)[:, :top_k]
    weights = scores.gather(-1, experts)
    if rule.renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return Routing(logits=logits, experts=experts, weights=weights)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Up to 3 lanes of mixed live, dead, prefill and decode rows; half of the cases have coarse logits, for ties."""
    num_rows = draw(st.integers(1, 14))
    num_experts = draw(st.integers(4, 10))
    num_lanes = draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    logits = torch.randn(num_rows, num_experts, generator=generator) * 2
    if draw(st.booleans()):
        logits = (logits * 2).round() / 2
    rule = RouterRule(score=draw(st.sampled_from(["softmax", "sigmoid"])), renormalize=draw(st.booleans()))
    rows = st.lists(st.booleans(), min_size=num_rows, max_size=num_rows)
    lane = draw(st.lists(st.integers(0, num_lanes - 1), min_size=num_rows, max_size=num_rows))
    step = StepContext(
        layer=draw(st.integers(0, 3)),
        decode=torch.tensor(draw(rows)),
        lane=torch.tensor(lane),
        live=torch.tensor(draw(rows)),
        num_lanes=num_lanes,
        key=torch.tensor([(11 + lane_number) << 32 for lane_number in range(num_lanes)]),
    )
    return Case(route(logits, rule), step, rule)


def take(case: Case, rows: torch.Tensor) -> Case:
    """The case with only `rows`, in that order."""
    routing, step = case.routing, case.step
    return Case(
        Routing(logits=routing.logits[rows], experts=routing.experts[rows], weights=routing.weights[rows]),
        StepContext(
            layer=step.layer,
            decode=step.decode[rows],
            lane=step.lane[rows],
            live=step.live[rows],
            num_lanes=step.num_lanes,
            key=step.key,
        ),
        case.rule,
    )


def same(a: Routing, b: Routing) -> bool:
    """Bit for bit."""
    return torch.equal(a.experts, b.experts) and torch.equal(a.weights, b.weights)
