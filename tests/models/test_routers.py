"""The kinds of routers that differ, each by name, and what is refused.

T token rows, E experts.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lynx_exp.models import Attachment, UnsupportedModel, find_routers
from lynx_exp.models.odd_families.forms import PARENT, PROBABILITIES, REVERSED, ROUTERLESS
from lynx_exp.models.tiny import EXPERTS, TOP_K, tiny_config, tiny_model
from lynx_exp.routing import Routing, build_policy
from tests.models.verdicts import logits, plain, rows, under

FEW = build_policy("lynx", alpha=0.7, beta=1)
CONTROL = build_policy("no_drop")


def rules_of(model):
    return [router.rule for router in find_routers(model)]


def test_dbrx_whose_routers_return_only_logits():
    model = tiny_model("dbrx")
    routers = find_routers(model)
    assert all(router.form is PARENT for router in routers)
    assert all(router.rule.score == "softmax" and router.rule.renormalize for router in routers)
    assert torch.equal(under(CONTROL, model, routers)[0], plain(model))
    assert not torch.equal(under(FEW, model, routers)[0], plain(model))
    assert not any("route_tokens_to_experts" in vars(module) for module in model.modules())


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_sigmoid_scores_with_correction_bias_and_groups(family):
    model = tiny_model(family, routed_scaling_factor=2.5)
    for router in find_routers(model):
        rule = router.rule
        assert (rule.score, rule.renormalize, rule.bias_on, rule.scaling) == ("sigmoid", True, "scores", 2.5)
        assert (rule.groups, rule.top_groups, rule.group_score) == (4, 2, "top2")
        assert torch.equal(rule.bias, router.module.e_score_correction_bias)
        assert not router.ordered
    _, calls = under(FEW, model, find_routers(model))
    assert all(torch.allclose(call.after.weights.sum(-1), torch.tensor(2.5)) for call in calls)


def test_glm_4_5_as_released_with_one_group_and_a_bias():
    """n_group is 1 in every checkpoint of GLM-4.5."""
    for rule in rules_of(tiny_model("glm4_moe", n_group=1, topk_group=1)):
        assert rule.bias is not None and not rule.grouped


def test_qwen2_moe_keeps_its_shared_expert():
    model = tiny_model("qwen2_moe")
    shared, seen = model.model.layers[0].mlp.shared_expert, []
    remove = shared.register_forward_hook(lambda module, inputs, output: seen.append(output))
    plain(model), under(FEW, model, find_routers(model))
    remove.remove()
    assert torch.equal(*seen)


def test_gpt_oss_takes_the_softmax_after_its_top_k():
    model = tiny_model("gpt_oss")
    assert all(rule.score == "softmax" and rule.renormalize and rule.bias is None for rule in rules_of(model))
    routings = []
    (first, *_) = find_routers(model)
    remove = first.intercept(routings.append)
    logits(model)
    remove()
    (routing,) = routings
    assert torch.allclose(routing.weights, routing.logits.topk(TOP_K).values.softmax(-1))


def test_llama_4_multiplies_hidden_states_by_its_one_sigmoid():
    model = tiny_model("llama4_text", num_experts_per_tok=1)
    routers = find_routers(model)
    assert {(router.num_experts, router.top_k, router.rule.score) for router in routers} == {(EXPERTS, 1, "sigmoid")}
    assert not any(router.rule.renormalize for router in routers)
    assert torch.equal(under(CONTROL, model, routers)[0], plain(model))
    seen = []
    with Attachment(routers, FEW) as attachment:
        attachment.rows, attachment.record = rows(), []
        remove = routers[0].module.register_forward_hook(lambda module, inputs, output: seen.append(output))
        logits(model)
    remove.remove()
    (scores_TE, logits_TE), (experts, weights, _) = seen[0], attachment.record[0]
    assert torch.equal(scores_TE.gather(-1, experts), weights) and (scores_TE.count_nonzero(-1) == 1).all()
    assert torch.allclose(weights[:, 0], logits_TE.amax(-1).sigmoid()), "a token keeps the mass of its own expert"


def test_llama_4_adds_up_slots_that_name_one_expert_twice():
    (router, *_) = find_routers(tiny_model("llama4_text"))
    out = (torch.zeros(1, EXPERTS), torch.randn(1, EXPERTS))
    scores, _ = router.form.write(out, torch.tensor([[0.5, 0.25, 0.0]]), torch.tensor([[3, 3, 1]]))
    assert scores.tolist() == [[0, 0, 0, 0.75, 0, 0, 0, 0]]


@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize("normalise", [False, True])
def test_top_k_weights_renormalised_or_not(family, normalise):
    model = tiny_model(family, norm_topk_prob=normalise)
    assert all(rule.renormalize == normalise for rule in rules_of(model))
    _, calls = under(FEW, model, find_routers(model))
    for call in calls:
        before, after = call.before.weights.sum(-1), call.after.weights.sum(-1)
        assert torch.allclose(before, after)
        assert torch.allclose(before, torch.ones(())) == normalise


def test_deepseek_v2_groups_by_their_best_expert():
    rules = rules_of(tiny_model("deepseek_v2"))
    assert {(rule.score, rule.groups, rule.top_groups, rule.group_score) for rule in rules} == {
        ("softmax", 4, 2, "max")
    }
    assert not any(rule.grouped for rule in rules_of(tiny_model("deepseek_v2", topk_method="greedy")))


def test_deepseek_v4_has_no_router_where_a_hash_chooses():
    model = tiny_model("deepseek_v4")
    assert [router.name for router in find_routers(model)] == ["model.layers.1.mlp.gate"]
    assert type(model.model.layers[0].mlp.gate).__name__ == "DeepseekV4HashRouter"


def test_gemma_4_returns_probabilities_and_scales_by_expert():
    model = tiny_model("gemma4_text")
    routers = find_routers(model)
    assert all(router.form is PROBABILITIES for router in routers)
    assert all(torch.equal(router.rule.expert_scale, router.module.per_expert_scale) for router in routers)


@pytest.mark.parametrize("declared", ["nothing", "block", "linear layer"])
@pytest.mark.parametrize("family", ["deepseek_v3", "hunyuan_v1_moe", "llama4_text"])
def test_routers_that_transformers_before_5_20_does_not_name(family, declared, monkeypatch):
    model = tiny_model(family)
    wanted = [(router.name, router.num_experts) for router in find_routers(model)]
    block = type(find_routers(model)[0].parent)
    recorded = {"nothing": {}, "block": {"router_logits": block}, "linear layer": {"router_logits": nn.Linear}}
    for module in model.modules():
        if hasattr(module, "_can_record_outputs"):
            monkeypatch.setattr(module, "_can_record_outputs", recorded[declared], raising=False)
    assert [(router.name, router.num_experts) for router in find_routers(model)] == wanted


def test_granite_before_transformers_5_21_returned_its_routing_in_reverse(monkeypatch):
    model = tiny_model("granitemoe")
    plain_one, gate = find_routers(model)[0], find_routers(model)[0].module
    if plain_one.form is not REVERSED:
        original = gate.forward
        monkeypatch.setattr(gate, "forward", lambda hidden: original(hidden)[::-1])
    reverse = find_routers(model)[0]
    assert reverse.form is REVERSED
    assert (vars(reverse.rule), reverse.num_experts, reverse.top_k) == (vars(plain_one.rule), EXPERTS, TOP_K)
    seen = []

    def others(routing):
        seen.append(routing)
        return Routing(logits=routing.logits, experts=routing.experts.flip(-1), weights=routing.weights * 2)

    hidden = torch.randn(5, gate.weight.shape[1])
    experts, weights, logits_TE = gate(hidden)
    remove = reverse.intercept(others)
    new_experts, new_weights, same = gate(hidden)
    remove()
    assert torch.equal(seen[0].logits, logits_TE) and torch.equal(seen[0].experts, experts)
    assert torch.equal(new_experts, experts.flip(-1)) and torch.equal(new_weights, weights * 2)
    assert torch.equal(same, logits_TE)


@pytest.mark.parametrize("kind", sorted(ROUTERLESS))
def test_a_model_whose_blocks_choose_by_a_linear_layer_names_the_transformers_that_serves_it(kind):
    with pytest.raises(UnsupportedModel, match=r"^\w+ \(transformers 5\.[\d.]+\): .*transformers 5\.21 gives it one"):
        find_routers(type(kind, (nn.Linear,), {})(2, 2))


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("family", ["deepseek_v3", "mixtral"])
def test_slots_stay_where_the_router_put_them(family, implementation):
    """Experts add up a token's slots in order: the control equals vanilla bit for bit only if none moved."""
    model = tiny_model(family)
    model.set_experts_implementation(implementation)
    for layer in model.model.layers:
        shuffle_slots(layer.mlp.gate)
    routers = find_routers(model)
    assert not any(router.ordered for router in routers)
    control, calls = under(CONTROL, model, routers)
    assert torch.equal(control, plain(model))
    for call in calls:
        assert (call.before.choice(call.rule).gather(-1, call.before.experts).diff(dim=-1) <= 0).all()


def test_an_unmoved_slot_keeps_its_place_and_further_slots_come_last():
    model = tiny_model("mixtral")
    gate = model.model.layers[0].mlp.gate
    shuffle_slots(gate)
    (router, *_) = find_routers(model)
    hidden = torch.randn(5, 64)
    weights, experts = gate(hidden)[1:]

    def replace_worst(routing: Routing) -> Routing:
        experts, weights = routing.experts.clone(), routing.weights.clone()
        experts[:, -1] = -1
        return Routing(
            logits=routing.logits, experts=torch.cat([experts, experts[:, :1]], -1), weights=weights.repeat(1, 2)[:, :4]
        )

    remove = router.intercept(replace_worst)
    new_weights, new_experts = gate(hidden)[1:]
    remove()
    worst = weights == weights.amin(-1, keepdim=True)
    assert torch.equal(new_experts[:, :TOP_K], torch.where(worst, -1, experts))
    assert torch.equal(new_weights[:, :TOP_K], weights) and torch.equal(new_weights[:, TOP_K], weights.amax(-1))


def shuffle_slots(gate: torch.nn.Module) -> None:
    """As `topk(sorted=False)` may do."""
    original = gate.forward

    def forward(*arguments):
        scores, weights, experts = original(*arguments)
        order = (experts * 5 % 7).argsort(-1)
        return scores, weights.gather(-1, order), experts.gather(-1, order)

    gate.forward = forward


def test_the_rule_follows_the_models_own_tensors():
    model = tiny_model("deepseek_v3")
    (router, *_) = find_routers(model)
    assert router.rule is router.rule
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}, assign=True)
    assert torch.equal(router.rule.bias, router.module.e_score_correction_bias)
    router.module.e_score_correction_bias.zero_()
    assert not router.rule.bias.any()
    assert router.rule.scaling == 2.5


def test_looking_for_routers_leaves_the_model_and_the_random_numbers_alone():
    model = tiny_model("minimax_m2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    find_routers(model)
    assert torch.equal(torch.randn(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_policy_that_cannot_serve_groups_is_refused_when_attached():
    routers = find_routers(tiny_model("deepseek_v3"))
    with pytest.raises(ValueError, match="lynx_v1_latency: this model's routers let a token use 2 of 4 groups"):
        Attachment(routers, build_policy("lynx_v1_latency", keep_experts=4))


def test_a_policy_without_rows_is_an_error_not_a_vanilla_run():
    model = tiny_model("mixtral")
    with Attachment(find_routers(model), FEW), pytest.raises(RuntimeError, match="rows"):
        model(input_ids=torch.tensor([[1, 2]]))


def test_a_dense_model_is_refused_by_name():
    model = AutoModelForCausalLM.from_config(tiny_config("llama"))
    with pytest.raises(UnsupportedModel, match="LlamaForCausalLM: not a Mixture-of-Experts"):
        find_routers(model)


def test_a_refused_router_is_named_with_its_layer_and_the_reason():
    with pytest.raises(UnsupportedModel, match=r"Phimoe\w+: model.layers.0.mlp.router \(PhimoeTopKRouter\): weighs an"):
        find_routers(tiny_model("phimoe"))


def test_a_router_that_scores_by_no_known_rule_is_refused():
    model = tiny_model("mixtral")
    gate = model.model.layers[1].mlp.gate
    original = gate.forward

    def squared(hidden):
        scores, weights, experts = original(hidden)
        return scores, weights**2, experts

    gate.forward = squared
    with pytest.raises(UnsupportedModel, match=r"model.layers.1.mlp.gate .MixtralTopKRouter.: scores experts by none"):
        find_routers(model)
