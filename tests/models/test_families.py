"""Every MoE family of the installed transformers: found by code, and served or refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers

from lynx_exp.config import ModelConfig
from lynx_exp.engine import Engine
from lynx_exp.engine.abilities import markdown
from lynx_exp.models import count_active, find_routers
from lynx_exp.models.families import families
from lynx_exp.models.odd_families.forms import REFUSED, ROUTERLESS
from lynx_exp.models.tiny import EXPERTS, TOP_K, tiny_config, tiny_model
from lynx_exp.routing import LanePolicy, Policy, Routing, build_policy
from lynx_exp.run.model_facts import inspect_model
from tests.models.verdicts import Call, attempted, logits, plain, under, verdict

FAMILIES = families()
PAGE = Path(__file__).parents[2] / "docs/models.md"
every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
policies = [
    build_policy("lynx", alpha=0.7, beta=1),
    build_policy("oea", k0=1),
    build_policy("oea", k0=2, k_max=TOP_K + 2),
]
every_policy = pytest.mark.parametrize("policy", policies, ids=lambda policy: policy.label)


@every_family
def test_its_routers_are_found_or_it_is_refused_by_name(family):
    """A failure here in a new transformers: extend `prove` or `odd_families.forms`, or refuse it with its reason."""
    found = verdict(family)
    if not found.routers:
        assert found.reason in {*REFUSED.values(), *ROUTERLESS.values()}
        return
    assert [router.layer for router in found.routers] == list(range(len(found.routers)))
    assert {(router.num_experts, router.top_k) for router in found.routers} == {(EXPERTS, TOP_K)}


@every_family
def test_control_is_vanilla_and_detaching_leaves_no_trace(family):
    found = verdict(family)
    if not found.routers:
        return
    before, hooks = plain(found.model), count_hooks(found.model)
    control, calls = under(build_policy("no_drop"), found.model, found.routers)
    assert torch.equal(control, before) and len(calls) == len(found.routers)
    assert torch.equal(logits(found.model), before)
    assert count_hooks(found.model) == hooks
    assert not any("route_tokens_to_experts" in vars(module) for module in found.model.modules())


@every_policy
@every_family
def test_policies_act_and_keep_the_laws(family, policy):
    found = verdict(family)
    if not found.routers:
        return
    changed, calls = under(policy, found.model, found.routers)
    assert len(calls) == len(found.routers)
    assert not torch.equal(changed, plain(found.model))
    assert sum(active(call, call.after) for call in calls) < sum(active(call, call.before) for call in calls)
    for call in calls:
        check_routing(call)
        check_laws(call, policy)
    assert torch.equal(logits(found.model), plain(found.model))


@every_family
def test_the_engine_decodes_as_transformers_does(family):
    found = verdict(family)
    if not found.routers:
        return
    refused = {"minimax": "uses cache of its own", "deepseek_v4": "its answers are not those of transformers"}
    tried = attempted(family)
    assert tried.abilities.decode == (str(family) not in refused), tried.reason
    if str(family) in refused:
        with pytest.raises(ValueError, match=refused[str(family)]):
            Engine(found.model).generate([[5, 6, 7], [8, 9, 10, 11, 12], [13]], batch_size=3, max_new_tokens=4)


@every_family
def test_its_configuration_alone_tells_experts_and_top_k(family, tmp_path):
    found = verdict(family)
    for model_type in family.model_types if found.routers else ():
        folder = tmp_path / model_type
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(tiny_config(model_type).to_dict(), default=str))
        facts = inspect_model(ModelConfig(kind="hub", id=str(folder)))
        assert {(facts.num_experts, facts.top_k)} == {(r.num_experts, r.top_k) for r in found.routers}, model_type


@pytest.mark.parametrize("family", [family for family in FAMILIES if len(family.model_types) > 1], ids=str)
def test_its_other_model_types_build_the_same_model(family):
    for model_type in family.model_types[1:]:
        model = tiny_model(model_type)
        assert type(model) is type(verdict(family).model)
        assert [router.name for router in find_routers(model)] == [router.name for router in verdict(family).routers]


def test_the_page_says_what_is_found():
    text = PAGE.read_text(encoding="utf-8")
    section = re.search(r"<!-- families -->\n+(.*?)\n+<!-- /families -->", text, re.DOTALL)
    assert section, "docs/models.md has no section between <!-- families --> and <!-- /families -->"
    written = re.match(r"transformers (\S+) ", section[1])
    assert written
    if written[1] != transformers.__version__:
        pytest.skip(f"the page speaks of transformers {written[1]}, installed is {transformers.__version__}")
    expected = markdown(map(attempted, FAMILIES))
    assert section[1] == expected, "put the output of `python -m lynx_exp.models.families` between the markers"


def count_hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def active(call: Call, routing: Routing) -> int:
    """Active experts, summed over lanes."""
    step = call.step
    record = [(routing.experts, routing.weights, routing.experts)]
    return int(count_active(record, step.lane, step.live, step.num_lanes, routing.num_experts).sum())


def check_routing(call: Call) -> None:
    """What the policy was given is the router's own routing, best first, by the rule."""
    choice = call.before.choice(call.rule)
    taken, best = choice.gather(-1, call.before.experts), choice.topk(TOP_K, -1).values
    assert torch.allclose(taken, best, atol=1e-6)
    assert torch.allclose(call.before.weights, by_rule(call, call.before, call.before), rtol=1e-4)


def by_rule(call: Call, routing: Routing, original: Routing) -> torch.Tensor:
    """The weights that the rule gives a routing's running experts; those that do not renormalise keep the original
    mass."""
    raw = routing.scores(call.rule).gather(-1, routing.experts) * (routing.weights != 0)
    mass = call.rule.scaling if call.rule.renormalize else original.weights.sum(-1, keepdim=True)
    scale = 1.0 if call.rule.expert_scale is None else call.rule.expert_scale[routing.experts]
    return raw / raw.sum(-1, keepdim=True) * mass * scale


def check_laws(call: Call, policy: Policy) -> None:
    assert isinstance(policy, LanePolicy)
    before, after, live = call.before, call.after, call.step.live
    assert torch.equal(after.experts[~live, :TOP_K], before.experts[~live])
    assert torch.equal(after.weights[~live, :TOP_K], before.weights[~live]) and not after.weights[~live, TOP_K:].any()
    keep = policy.keep(before, call.step, call.rule)[call.step.lane]
    opened = before.choice(call.rule) > -torch.inf
    for row in live.nonzero()[:, 0].tolist():
        running = after.experts[row][after.weights[row] != 0]
        assert len(running.unique()) == len(running) <= (getattr(policy, "k_max", None) or TOP_K)
        assert keep[row][running].all(), "left the lane's kept set"
        assert opened[row][running].all(), "left the token's groups"
        assert policy.name == "oea" or len(running) == TOP_K
    assert torch.allclose(after.weights[live], by_rule(call, after, before)[live], rtol=1e-4, atol=1e-7)
