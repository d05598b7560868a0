"""Probing a router: what it finds, how small a deviation it sees, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lynx_exp.models.probe import UnknownRouter
from lynx_exp.models.prove import prove
from lynx_exp.routing import RouterRule

EXPERTS, HIDDEN = 16, 24


class Gate(nn.Module):
    """A router by any rule."""

    def __init__(self, rule: RouterRule, top_k: int = 4) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.weight = nn.Parameter(torch.randn(EXPERTS, HIDDEN) * 0.1)
        self.rule, self.top_k = rule, top_k
        self.n_group, self.topk_group = rule.groups, rule.top_groups
        for name in ("bias", "expert_scale"):
            if getattr(rule, name) is not None:
                self.register_buffer(name, getattr(rule, name))

    def forward(self, hidden):
        logits = nn.functional.linear(hidden, self.weight)
        scores = self.rule.scores(logits)
        experts = self.rule.choice(logits, scores).topk(self.top_k, -1).indices
        weights = scores.gather(-1, experts)
        if self.rule.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        if self.rule.expert_scale is not None:
            weights = weights * self.rule.expert_scale[experts]
        return logits, (weights * self.rule.scaling).to(logits.dtype), experts


def proved(gate: nn.Module, parent: nn.Module | None = None) -> RouterRule:
    return prove(gate, parent or nn.Module()).rule()


def facts(rule: RouterRule) -> tuple:
    grouping = (rule.groups, rule.top_groups, rule.group_score) if rule.grouped else None
    place = None if rule.bias is None else rule.bias_on
    return rule.score, rule.renormalize, round(rule.scaling, 6), place, grouping, rule.expert_scale is None


BIAS = torch.linspace(-0.3, 0.3, EXPERTS)[torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(0))]
RULES = [
    RouterRule(score=score, renormalize=renormalize, scaling=scaling, bias=bias, bias_on=place, **grouping)
    for score in ("softmax", "sigmoid", "sqrtsoftplus")
    for renormalize, scaling in ((True, 1.0), (True, 2.446), (False, 1.0), (False, 16.0))
    for bias, place in ((None, "scores"), (BIAS, "scores"), (BIAS, "logits"))
    for grouping in ({}, {"groups": 4, "top_groups": 2}, {"groups": 4, "top_groups": 2, "group_score": "top2"})
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, facts(rule))))
def test_every_rule_is_found(rule):
    assert facts(proved(Gate(rule))) == facts(rule)


def test_a_scale_for_each_expert_is_found_and_told_from_a_bias():
    scale = torch.linspace(0.5, 1.5, EXPERTS)
    gate = Gate(RouterRule(expert_scale=scale, bias=BIAS))
    found = proved(gate)
    assert torch.equal(found.expert_scale, scale) and torch.equal(found.bias, BIAS)


@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-4])
def test_a_small_bias_shows_where_the_choice_changes(size):
    found = proved(Gate(RouterRule(score="sigmoid", bias=BIAS * size)))
    assert found.bias is not None


def test_groups_that_are_seldom_closed_are_found():
    rule = RouterRule(groups=8, top_groups=5, group_score="top2")
    gate = Gate(rule, top_k=3)
    hidden = torch.randn(64, HIDDEN)
    plain_choice = gate(hidden)[0].topk(3).indices.sort(-1).values
    assert (gate(hidden)[2].sort(-1).values == plain_choice).all(-1).float().mean() > 0.9
    assert facts(proved(gate)) == facts(rule)


def test_a_bias_that_is_the_same_for_all_is_none():
    assert proved(Gate(RouterRule(score="sigmoid", bias=torch.full((EXPERTS,), 0.5)))).bias is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", RULES[::7], ids=lambda rule: "-".join(map(str, facts(rule))))
def test_half_precision_rounds_but_does_not_hide_the_rule(rule, dtype):
    gate = Gate(rule)
    gate.weight.data = gate.weight.data.to(dtype)
    found = proved(gate)
    assert facts(found)[:2] == facts(rule)[:2] and abs(found.scaling / rule.scaling - 1) < 0.01


@pytest.mark.parametrize("place", ["gate", "parent"])
def test_what_the_block_passes_to_its_router_is_found_by_name(place):
    class Told(Gate):
        def forward(self, hidden, correction):
            logits = nn.functional.linear(hidden, self.weight)
            experts = (logits.sigmoid() + correction).topk(self.top_k, -1).indices
            return logits, logits.sigmoid().gather(-1, experts), experts

    gate, parent = Told(RouterRule()), nn.Module()
    {"gate": gate, "parent": parent}[place].register_buffer("correction", BIAS)
    assert facts(proved(gate, parent)) == ("sigmoid", False, 1.0, "scores", None, True)
    assert torch.equal(proved(gate, parent).bias, BIAS)


def test_a_router_that_wants_batches_gets_one():
    class Batched(Gate):
        def forward(self, hidden):
            _, _, width = hidden.shape
            return super().forward(hidden.view(-1, width))

    assert facts(proved(Batched(RouterRule()))) == facts(RouterRule())


class Needy(Gate):
    def forward(self, hidden, mask):
        return super().forward(hidden)


class Pair(Gate):
    def forward(self, hidden):
        return super().forward(hidden)[:2]


class Repeats(Gate):
    def forward(self, hidden):
        logits, weights, experts = super().forward(hidden)
        return logits, weights, experts[:, :1].expand_as(experts)


class Broken(Gate):
    def forward(self, hidden):
        raise RuntimeError("needs a mesh\nof devices")


class Shared(Gate):
    """Its weights share a denominator with something else."""

    def forward(self, hidden):
        logits, weights, experts = super().forward(hidden)
        return logits, weights / (1 + logits[:, :1].sigmoid()), experts


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Needy, "its forward needs `mask`"),
        (Pair, r"does not return \(logits, weights, experts\)"),
        (Repeats, "by none of the known rules"),
        (Shared, "by none of the known rules"),
        (Broken, "needs a mesh$"),
    ],
)
def test_what_is_no_router_of_a_known_form_or_rule_is_refused(kind, reason):
    with pytest.raises(UnknownRouter, match=reason):
        prove(kind(RouterRule()), nn.Module())


def test_order_is_promised_only_if_the_code_does():
    class Waives(Gate):
        def forward(self, hidden):
            logits = nn.functional.linear(hidden, self.weight)
            weights, experts = logits.softmax(-1).topk(self.top_k, -1, sorted=False)
            weights, order = weights.sort(-1, descending=True)  # in order here, for all that can be seen
            return logits, weights, experts.gather(-1, order)

    class Reversed(Gate):
        def forward(self, hidden):
            logits, weights, experts = super().forward(hidden)
            return logits, weights.flip(-1), experts.flip(-1)

    assert prove(Gate(RouterRule()), nn.Module()).ordered
    assert not prove(Waives(RouterRule()), nn.Module()).ordered
    assert not prove(Reversed(RouterRule()), nn.Module()).ordered
