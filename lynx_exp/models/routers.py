"""Find the routers of a transformers MoE, and prove for each how it scores.

transformers names the routers of a model in `_can_record_outputs["router_logits"]`. Two forms are known: modules that
return (logits, weights, experts), the common one, and modules that return logits only, whose parent turns them into a
routing in `route_tokens_to_experts` (DBRX). How a router scores is not read from its configuration but probed: random
hidden states must give exactly the experts and weights that one of the candidate rules predicts. A router that no
rule predicts is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lynx_exp.routing import RouterRule, Routing

Intercept = Callable[[Routing], Routing | None]
"""Called with a router's routing; returns the routing to use instead, or None to leave it."""

_RULES = [RouterRule(score=score, renormalize=norm) for score in ("softmax", "sigmoid") for norm in (True, False)]
_PROBES = 64


class UnsupportedModel(ValueError):
    """The model is not an MoE, or its routers have no known form."""


@dataclass(frozen=True, kw_only=True)
class Router:
    """One layer's router."""

    layer: int
    """Its number among the model's routers, from the first layer on."""
    name: str
    module: nn.Module
    parent: nn.Module | None
    """The module whose `route_tokens_to_experts` turns logits into a routing; None if the router does it itself."""
    rule: RouterRule
    num_experts: int
    top_k: int

    def intercept(self, function: Intercept) -> Callable[[], None]:
        """Put `function` between the router and the experts; returns what takes it out again."""
        if self.parent is not None:
            return _intercept_parent(self.parent, function)

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            logits, weights, experts = output
            new = function(Routing(logits=logits.float(), experts=experts, weights=weights))
            return None if new is None else (logits, new.weights, new.experts)

        return self.module.register_forward_hook(hook).remove


def _intercept_parent(parent: Any, function: Intercept) -> Callable[[], None]:
    original = parent.route_tokens_to_experts

    def route(logits: Tensor) -> tuple[Tensor, Tensor]:
        weights, experts = original(logits)
        new = function(Routing(logits=logits.float(), experts=experts, weights=weights))
        return (weights, experts) if new is None else (new.weights, new.experts)

    parent.route_tokens_to_experts = route
    return lambda: delattr(parent, "route_tokens_to_experts")


def find_routers(model: nn.Module) -> list[Router]:
    """The routers of `model`, first layer first. UnsupportedModel names the model and what is supported."""
    kind = type(model).__name__
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, _router_classes(model))]
    if not found:
        raise UnsupportedModel(
            f"{kind}: not a Mixture-of-Experts model with routers that transformers names; supported: causal language "
            "models whose routers return (logits, weights, experts), such as Mixtral, Qwen3-MoE and OLMoE, and DBRX"
        )
    return [_describe(model, kind, layer, name, module) for layer, (name, module) in enumerate(found)]


def _router_classes(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """The router classes that any submodule's `_can_record_outputs` declares."""
    classes: set[type[nn.Module]] = set()
    for module in model.modules():
        declared = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits")
        for recorder in declared if isinstance(declared, list) else [declared]:
            target = getattr(recorder, "target_class", recorder)
            if isinstance(target, type):
                classes.add(target)
    return tuple(classes)


def _describe(model: nn.Module, kind: str, layer: int, name: str, module: nn.Module) -> Router:
    parent = model.get_submodule(name.rpartition(".")[0])
    if not hasattr(parent, "route_tokens_to_experts"):
        parent = None
    try:
        logits, weights, experts = _probe(module, parent)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModel(
            f"{kind}: {name} ({type(module).__name__}): not a router of a known form: {error}"
        ) from error
    for rule in _RULES:
        if _predicts(rule, logits, weights, experts):
            return Router(
                layer=layer,
                name=name,
                module=module,
                parent=parent,
                rule=rule,
                num_experts=logits.shape[-1],
                top_k=experts.shape[-1],
            )
    raise UnsupportedModel(
        f"{kind}: {name} ({type(module).__name__}): scores experts by none of the known rules (softmax or sigmoid "
        "of the logits, renormalised or not); selecting experts for it would change more than the selection"
    )


@torch.no_grad()
def _probe(module: nn.Module, parent: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(logits, weights, experts) of random hidden states."""
    matrix = next(p for p in module.parameters() if p.dim() == 2)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(_PROBES, matrix.shape[-1], generator=generator).to(matrix.device, matrix.dtype)
    hidden *= 2.0 / matrix.float().std().clamp_min(1e-3).item() / matrix.shape[-1] ** 0.5  # logits of a few units
    out = module(hidden)
    if parent is not None:
        weights, experts = parent.route_tokens_to_experts(out)
        return out.float(), weights.float(), experts
    if not (isinstance(out, tuple) and len(out) == 3):
        raise ValueError("it does not return (logits, weights, experts)")
    logits, weights, experts = out
    if experts.dtype.is_floating_point or logits.dim() != 2 or weights.shape != experts.shape:
        raise ValueError("it does not return (logits [T, E], weights [T, K], experts [T, K])")
    return logits.float(), weights.float(), experts


def _predicts(rule: RouterRule, logits_TE: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> bool:
    predicted_TK = logits_TE.topk(experts_TK.shape[-1]).values
    if not torch.equal(logits_TE.gather(-1, experts_TK), predicted_TK):
        return False
    scores_TK = rule.scores(logits_TE).gather(-1, experts_TK)
    if rule.renormalize:
        scores_TK = scores_TK / scores_TK.sum(-1, keepdim=True)
    return torch.allclose(scores_TK, weights_TK, atol=_tolerance(weights_TK), rtol=0)


def _tolerance(weights: Tensor) -> float:
    """Half-precision routers round their weights; their float copies then lie on a coarse grid."""
    exact = weights.bfloat16().float().equal(weights) or weights.half().float().equal(weights)
    return 1e-2 if exact else 1e-5
