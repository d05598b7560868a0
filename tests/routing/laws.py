"""Random routings and steps for the laws, and the policies that the laws are tried on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st

from lynx_exp.routing import (
    Calibrated,
    Calibration,
    ModelShape,
    Policy,
    RouterRule,
    Routing,
    StepContext,
    build_policy,
    policy_names,
)
from lynx_exp.routing.calibration import SIMILARITIES

NUM_LAYERS = 4
PARAMETERS: dict[str, list[dict]] = {
    "lynx": [
        {"alpha": 3.0, "beta": 2},
        {"alpha": 0.7, "beta": 1},
        {"alpha": 1.0, "beta": None},
        {"alpha": 1.0, "beta": 2, "bins": "continuous"},
    ],
    "lynx_v1_latency": [{"keep_experts": 2}, {"keep_experts": 4}],
    "lynx_v1_accuracy": [{"confidence": 0.5}, {"confidence": 0.1, "min_experts": 3}],
    "deny_rank": [{"rank": 0}, {"rank": 1}, {"rank": 0, "mode": "drop"}, {"rank": 1, "mode": "drop"}],
    "random_keep": [{"keep_experts": 2, "seed": 5}, {"keep_experts": 4}],
    "oea": [{"k0": 1}, {"k0": 2, "p": 0.6}, {"k0": 1, "k_max": 3}, {"k0": 1, "k_max": 1}, {"k0": 1, "max_rank": 3}],
    "xshare": [
        {"budget": 3},
        {"budget": 2, "score": "logit", "warm_up": 0},
        {"budget": 2, "warm_up_for": "token"},
        {"budget": 3, "max_batch": 4},
        {"budget": 2, "warm_up": 0, "substitute": False},
    ],
    "coverage": [
        {"tolerance": 0.3},
        {"tolerance": 0.05, "utility": "log"},
        {"tolerance": 0.2, "power": 1.0},
        {"tolerance": None, "budget": 3, "guarantee": 1},
        {"tolerance": 0.01, "budget": 2},
        {"tolerance": 0.2, "rounds": 3},
        {"tolerance": None, "budget": 3, "guarantee": 1, "rounds": 2, "utility": "log"},
    ],
    "sere": [{"threshold": 0.0}, {"threshold": 0.4, "metric": "cka"}],
    "naee": [{"strength": 1.0}],
    "lexi": [{"mean_k": 1.5}],
    "static_mask": [{"keep_experts": 2}, {"keep_experts": 3}],
    "top_p": [{"p": 0.4}, {"p": 0.9}],
    "min_p": [{"ratio": 0.5}],
    "elbow": [{"extra": 0}, {"extra": 1}],
    "reassign": [
        {"fraction": 0.5},
        {"first_rank": 1, "gate": "high"},
        {"gate": "low", "new_weight": "slot", "seed": 3},
    ],
}
"""Settings that any router with E >= 4 and K = 2 can run; other policies run with their defaults."""

POLICIES: list[Policy] = [
    build_policy(name, **parameters) for name in policy_names() for parameters in PARAMETERS.get(name, [{}])
] + [build_policy("top_k", k=[1, 2, 2, 1]), build_policy("top_p", min_batch=3)]

WEIGHED: list[Policy] = [
    build_policy("xshare", budget=3, weights="original"),
    build_policy("oea", k0=1, k_max=3, weights="reference", k2=3),
    build_policy("sere", weights="original"),
    build_policy("top_k", k=1, weights="mass"),
    build_policy("reassign", fraction=0.5, weights="reference", k2=3),
]
"""Policies with weights that are not their own."""
PROTECTING: list[Policy] = [
    build_policy("xshare", budget=2, warm_up=0, protect=[[0, 3], [1], [], [2]]),
    build_policy("top_p", p=0.4, protect=[[1, 2], [0, 1, 2, 3], [3], []]),
]
"""Policies that may not take some experts from a token."""
POLICIES += [*WEIGHED, *PROTECTING]


REPRESENTATIVES: list[Policy] = list(
    {policy.name: policy for policy in reversed(POLICIES[: -2 - len(WEIGHED) - len(PROTECTING)])}.values()
)[::-1]
"""One setting of each policy, for tests that take longer."""


@dataclass(frozen=True)
class Case:
    routing: Routing
    step: StepContext
    rule: RouterRule

    @property
    def shape(self) -> ModelShape:
        return ModelShape(
            num_experts=self.routing.num_experts,
            top_k=self.routing.top_k,
            num_layers=NUM_LAYERS,
            rule=self.rule,
        )

    def fits(self, policy: Policy) -> bool:
        """Whether the policy accepts this router."""
        try:
            policy.accept(self.shape)
        except ValueError:
            return False
        return True

    def run(self, policy: Policy) -> Routing:
        out = bound(policy, self.shape)(self.routing, self.step, self.rule)
        return widened(out, getattr(policy, "k_max", None) or 0)


def calibration(num_experts: int, top_k: int, num_layers: int = NUM_LAYERS) -> Calibration:
    """Invented facts of a model that does not exist."""
    generator = torch.Generator().manual_seed(num_experts)
    similarity = {}
    for metric in SIMILARITIES:
        half = torch.rand(num_layers, num_experts, num_experts, generator=generator)
        similarity[metric] = ((half + half.mT) / 2).diagonal_scatter(
            torch.ones(num_layers, num_experts), dim1=-2, dim2=-1
        )
    return Calibration(
        fingerprint="",
        similarity=similarity,
        ratio=torch.rand(num_layers, top_k, generator=generator).sort(descending=True).values,
        divergence=torch.rand(num_layers, top_k, generator=generator).sort(descending=True).values,
        saliency=torch.rand(num_layers, num_experts, generator=generator),
        largest=torch.rand(num_layers, num_experts, generator=generator),
        provenance={},
    )


def bound(policy: Policy, shape: ModelShape) -> Policy:
    """The policy as a model of this shape would run it."""
    if isinstance(policy, Calibrated):
        assert shape.num_layers is not None
        policy = policy.calibrated(calibration(shape.num_experts, shape.top_k, shape.num_layers))
    return policy.bind(shape)


def route(logits: torch.Tensor, rule: RouterRule, top_k: int = 2) -> Routing:
    """What a model's own router would do."""
    scores = rule.scores(logits)
    experts = rule.choice(logits, scores).argsort(dim=-1, descending=True, stable=True)[:, :top_k]
    weights = scores.gather(-1, experts)
    if rule.renormalize:
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    weights = weights * rule.scaling
    if rule.expert_scale is not None:
        weights = weights * rule.expert_scale[experts]
    return Routing(logits=logits, experts=experts, weights=weights)


@st.composite
def rules(draw: st.DrawFn, num_experts: int, generator: torch.Generator) -> RouterRule:
    """Half of them plain; the others with a bias, groups, a factor, or a scale for each expert."""
    score = draw(st.sampled_from(["softmax", "sigmoid", "sqrtsoftplus"]))
    renormalize = draw(st.booleans())
    if draw(st.booleans()):
        return RouterRule(score=score, renormalize=renormalize)
    scale = draw(st.booleans())
    return RouterRule(
        score=score,
        renormalize=renormalize,
        scaling=draw(st.sampled_from([1.0, 2.5])),
        bias=torch.randn(num_experts, generator=generator) * 0.3 + 1 if draw(st.booleans()) else None,
        bias_on=draw(st.sampled_from(["scores", "logits"])),
        groups=2,
        top_groups=draw(st.sampled_from([1, 2])) if num_experts % 2 == 0 else 2,
        group_score=draw(st.sampled_from(["max", "top2"])),
        expert_scale=torch.rand(num_experts, generator=generator) + 0.5 if scale else None,
    )


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
    rule = draw(rules(num_experts, generator))
    rows = st.lists(st.booleans(), min_size=num_rows, max_size=num_rows)
    lane = draw(st.lists(st.integers(0, num_lanes - 1), min_size=num_rows, max_size=num_rows))
    step = StepContext(
        layer=draw(st.integers(0, NUM_LAYERS - 1)),
        decode=torch.tensor(draw(rows)),
        lane=torch.tensor(lane),
        live=torch.tensor(draw(rows)),
        num_lanes=num_lanes,
        key=torch.tensor([(11 + lane_number) << 32 for lane_number in range(num_lanes)]),
        row=torch.arange(num_rows) << 32,
    )
    return Case(route(logits, rule), step, rule)


SHUT = (-torch.inf, -1e4, torch.finfo(torch.float32).min)
"""What routers' masks write in place of a logit; only the first takes an expert out of the choice."""


@st.composite
def shut_cases(draw: st.DrawFn, least: int = 2, values: tuple[float, ...] = SHUT[:1]) -> Case:
    """Cases some experts of which are shut out, for all rows or for one; at least `least` are left to each row."""
    case = draw(cases())
    logits = case.routing.logits.clone()
    rows, experts = logits.shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    shut = torch.rand(rows, experts, generator=generator) < draw(st.sampled_from([0.0, 0.3, 0.8]))
    shut |= torch.rand(experts, generator=generator) < draw(st.sampled_from([0.0, 0.4, 0.9]))
    shut.scatter_(-1, torch.randperm(experts, generator=generator)[:least].expand(rows, least), False)
    logits[shut] = draw(st.sampled_from(values))
    rule = case.rule
    if rule.grouped:  # those of a group would have to be enough for the token
        rule = replace(rule, top_groups=rule.groups)
    return Case(route(logits, rule), case.step, rule)


@st.composite
def short_cases(draw: st.DrawFn) -> Case:
    """Cases with rows that have fewer than K experts left, and fill up their lists with what they shut out."""
    case = draw(shut_cases(least=1))
    logits = case.routing.logits.clone()
    short = torch.tensor(draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits))))
    short[draw(st.integers(0, len(logits) - 1))] = True
    best = logits == logits.amax(-1, keepdim=True)
    logits[short[:, None] & ~(best & (best.cumsum(-1) == 1))] = -torch.inf
    return Case(route(logits, case.rule), replace(case.step, shared={}), case.rule)


@st.composite
def vanishing_cases(draw: st.DrawFn) -> Case:
    """Cases whose rows have much mass to hand on, and many experts whose scores vanish or nearly do."""
    case = draw(cases())
    logits = case.routing.logits.abs() + 6
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    low = torch.rand(logits.shape, generator=generator) < draw(st.sampled_from([0.3, 0.6]))
    low.scatter_(-1, torch.randint(logits.shape[-1], (len(logits), 1), generator=generator), False)
    logits[low] = draw(st.sampled_from([-95.0, -300.0, -torch.inf]))
    rule = replace(case.rule, scaling=draw(st.sampled_from([1.0, 2.5, 16.0])), top_groups=case.rule.groups)
    return Case(route(logits, rule), case.step, rule)


def widened(routing: Routing, width: int) -> Routing:
    """With at least `width` slots, the new ones empty: a policy that fills more than K does so only where it acts."""
    extra = max(0, width - routing.top_k)
    return replace(
        routing,
        experts=torch.cat([routing.experts, routing.experts[:, :1].expand(-1, extra)], -1),
        weights=torch.cat([routing.weights, routing.weights.new_zeros(len(routing.weights), extra)], -1),
    )


def take(case: Case, rows: torch.Tensor) -> Case:
    """The case with only `rows`, in that order."""
    routing, step = case.routing, case.step
    return Case(
        Routing(logits=routing.logits[rows], experts=routing.experts[rows], weights=routing.weights[rows]),
        replace(
            step,
            decode=step.decode[rows],
            lane=step.lane[rows],
            live=step.live[rows],
            row=step.row[rows],
            shared={},
        ),
        case.rule,
    )


def same(a: Routing, b: Routing) -> bool:
    """Bit for bit."""
    return torch.equal(a.experts, b.experts) and torch.equal(a.weights, b.weights)
