"""Find the routers of a transformers MoE, and put a policy between them and the experts.

transformers names the routers of a model in `_can_record_outputs["router_logits"]`; where an older one does not, the
names of their classes do. In which form they hand over their routing `odd_families.forms` knows; how they score is
proved (`prove`). A router of no known form or rule is refused by name.

T token rows, K top-k, W slots of a token after a policy.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
import transformers
from torch import Tensor, nn

from lynx_exp.models.fused_router import fused_of
from lynx_exp.models.odd_families import odd_families
from lynx_exp.models.odd_families.forms import PARENT, REFUSED, ROUTERLESS, ChoosesExperts, Form, Output
from lynx_exp.models.probe import UnknownRouter
from lynx_exp.models.prove import LiveRule, prove
from lynx_exp.routing import RouterRule, Routing

_NAMED = re.compile(r"Router$|^HunYuanMoEV1Gate$")
"""What transformers calls the classes of routers that it did not always declare."""

Intercept = Callable[[Routing], Routing | None]
"""Called with a router's routing, best expert first; returns the routing to use instead, or None to leave it."""


class UnsupportedModel(ValueError):
    """The model is not an MoE, or its routers have no known form."""


class Described(Protocol):
    """What must be known of one layer's router to say whether it can run a policy."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def num_experts(self) -> int: ...

    @property
    def top_k(self) -> int: ...

    @property
    def rule(self) -> RouterRule: ...


@dataclass(frozen=True, kw_only=True)
class Router:
    """One layer's router."""

    layer: int
    """Its number among the model's routers, from the first layer on."""
    name: str
    module: nn.Module
    parent: nn.Module
    """The block that the router belongs to."""
    form: Form
    live_rule: LiveRule
    ordered: bool
    """Whether the experts of a token always come best first."""
    num_experts: int
    top_k: int
    home: torch.device | None = None
    """Where policies decide in a model on several devices: where its inputs are. None: where the router is."""

    @property
    def rule(self) -> RouterRule:
        """How it scores, with the model's tensors as they are now."""
        return self.live_rule() if self.home is None else _moved(self.live_rule(), self.home)

    def intercept(self, function: Intercept) -> Callable[[], None]:
        """Put `function` between the router and the experts; returns what takes it out again."""
        if self.form is PARENT:
            return self._intercept_parent(function)
        fused = fused_of(self.module)

        def hook(_module: nn.Module, _inputs: object, output: Output) -> Output | None:
            made = None if fused is None else fused.take()
            if made is None:
                new = self._apply(function, *self.form.read(output))
                return None if new is None else self.form.write(output, *new)
            changed = function(made)
            return None if changed is None else self.form.write(output, changed.weights, changed.experts)

        handle = self.module.register_forward_hook(hook)
        if fused is None:
            return handle.remove
        fused.listeners += 1

        def remove() -> None:
            handle.remove()
            fused.listeners -= 1

        return remove

    def _intercept_parent(self, function: Intercept) -> Callable[[], None]:
        parent = cast(ChoosesExperts, self.parent)
        original = parent.route_tokens_to_experts

        def route(logits: Tensor) -> tuple[Tensor, Tensor]:
            weights, experts = original(logits)
            return self._apply(function, logits, weights, experts) or (weights, experts)

        parent.route_tokens_to_experts = route
        return lambda: delattr(parent, "route_tokens_to_experts")

    def _apply(
        self, function: Intercept, logits: Tensor, weights: Tensor, experts: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """(weights, experts) by `function`, in the slots that the router gave them; None to leave all as it is.

        Experts sum over a token's slots in order, so that only an unmoved slot is bit for bit what it was.
        """
        if self.home is not None and self.home != logits.device:
            there = self._apply(function, logits.to(self.home), weights.to(self.home), experts.to(self.home))
            return there and (there[0].to(weights.device), there[1].to(experts.device))
        return intercepted(function, self.rule, self.ordered, logits, weights, experts)


def intercepted(
    function: Intercept, rule: RouterRule, ordered: bool, logits: Tensor, weights: Tensor, experts: Tensor
) -> tuple[Tensor, Tensor] | None:
    """(weights, experts) by `function`, in the slots that a router gave them; None to leave all as it is. `ordered`:
    whether its experts come best first."""
    if ordered:
        new = function(Routing(logits=logits.float(), experts=experts, weights=weights))
        return None if new is None else (new.weights, new.experts)
    order_TK = _ranking_values(rule, logits.float(), experts).argsort(dim=-1, descending=True, stable=True)
    routing = Routing(logits=logits.float(), experts=experts.gather(-1, order_TK), weights=weights.gather(-1, order_TK))
    new = function(routing)
    if new is None or new is routing:
        return None
    return _put_back(new.weights, order_TK), _put_back(new.experts, order_TK)


def _moved(rule: RouterRule, device: torch.device) -> RouterRule:
    if rule.bias is None and rule.expert_scale is None:
        return rule
    bias = None if rule.bias is None else rule.bias.to(device)
    scale = None if rule.expert_scale is None else rule.expert_scale.to(device)
    return replace(rule, bias=bias, expert_scale=scale)


def _ranking_values(rule: RouterRule, logits_TE: Tensor, experts_TK: Tensor) -> Tensor:
    """`[T, K]` by which the router ranked the experts that it chose; their groups are open, so they do not matter."""
    logits_TK = logits_TE.gather(-1, experts_TK)
    if rule.bias is None:
        return logits_TK
    if rule.bias_on == "logits":
        scores_TK = logits_TK
    elif rule.score == "softmax":
        scores_TK = rule.scores(logits_TE).gather(-1, experts_TK)
    else:
        scores_TK = rule.scores(logits_TK)
    return scores_TK + rule.bias.float()[experts_TK]


def _put_back(sorted_TW: Tensor, order_TK: Tensor) -> Tensor:
    """`[T, W]`: the slots as the router had them; slots beyond K stay behind."""
    top_k = order_TK.shape[-1]
    first_TK = sorted_TW[:, :top_k]
    return torch.cat([torch.empty_like(first_TK).scatter_(-1, order_TK, first_TK), sorted_TW[:, top_k:]], -1)


def find_routers(model: transformers.PreTrainedModel) -> list[Router]:
    """The routers of `model`, first layer first. UnsupportedModel names the model and what is supported."""
    kind, classes = type(model).__name__, router_classes(model)
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, classes)]
    if not found and kind in ROUTERLESS:
        raise UnsupportedModel(f"{kind} (transformers {transformers.__version__}): {ROUTERLESS[kind]}")
    if not found:
        raise UnsupportedModel(
            f"{kind}: not a Mixture-of-Experts model with routers that transformers names; supported: the causal "
            "language models that `python -m lynx_exp.models.families` lists, such as Mixtral, Qwen3-MoE and OLMoE"
        )
    places = set((getattr(model, "hf_device_map", None) or {}).values())
    home = model.get_input_embeddings().weight.device if len(places) > 1 else None
    return [_describe(model, kind, layer, name, module, home) for layer, (name, module) in enumerate(found)]


def fingerprint(routers: Sequence[Described]) -> str:
    """Hash of the routers' weights, rounded to bfloat16 so that the same checkpoint has the same one in any dtype, and
    without the routers' places in the model, so that it has the same one in any engine."""
    total = hashlib.sha256()
    for router in routers:
        for name, parameter in sorted(router.module.named_parameters()):
            total.update(f"{name} {tuple(parameter.shape)}".encode())
            total.update(parameter.detach().bfloat16().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def router_classes(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """The router classes that any submodule's `_can_record_outputs` declares.

    Before transformers 5.20 some models declare none, or the blocks around their routers: then the classes that are
    named as routers, in the model or in its blocks.
    """
    declared: set[type[nn.Module]] = set()
    for module in model.modules():
        recorders = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits")
        for recorder in recorders if isinstance(recorders, list) else [recorders]:
            target = getattr(recorder, "target_class", recorder)
            if isinstance(target, type) and target is not nn.Linear:
                declared.add(target)
    if not declared:
        return tuple(_named_routers(model))
    return tuple(router for found in declared for router in _named_within(model, found) or {found})


def _named_within(model: nn.Module, kind: type[nn.Module]) -> set[type[nn.Module]]:
    blocks = [module for module in model.modules() if isinstance(module, kind)]
    return set().union(*map(_named_routers, blocks)) - {kind}


def _named_routers(block: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in block.modules() if _NAMED.search(type(module).__name__)}


def _describe(
    model: nn.Module, kind: str, layer: int, name: str, module: nn.Module, home: torch.device | None
) -> Router:
    parent = model.get_submodule(name.rpartition(".")[0])
    where, router = f"{kind}: {name} ({type(module).__name__})", type(module).__name__
    own = odd_families().get(router)
    if why := (own.refused if own is not None else REFUSED.get(router)):
        raise UnsupportedModel(f"{where}: {why}")
    try:
        proof = prove(module, parent)
    except UnknownRouter as error:
        raise UnsupportedModel(f"{where}: {error}") from error
    return Router(
        layer=layer,
        name=name,
        module=module,
        parent=parent,
        form=proof.form,
        live_rule=proof.rule,
        ordered=proof.ordered,
        num_experts=proof.num_experts,
        top_k=proof.top_k,
        home=home,
    )
