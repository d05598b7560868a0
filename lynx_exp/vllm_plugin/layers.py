"""The MoE layers of a vLLM model: found, proved to score by a known rule, and given the plugin's routing.

T token rows, E experts, K top-k, W slots of a token after a policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lynx_exp.models import Live, LiveRule, RouterOutputs, UnknownRouter, UnsupportedModel, prove_outputs
from lynx_exp.models.odd_families.forms import TRIPLE
from lynx_exp.routing import RouterRule
from lynx_exp.vllm_plugin.plugin_settings import WHERE
from lynx_exp.vllm_plugin.requirements import check_layer
from lynx_exp.wording import first_line

if TYPE_CHECKING:
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
    from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface

_ROWS = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One MoE layer."""

    layer: int
    """Its number among those of the model, from the first on."""
    name: str
    router: BaseRouter
    """vLLM's router object."""
    gate: nn.Module | None
    """What gives the logits; None if it is not beside the experts."""
    hidden: int
    """Size of what the gate is given."""
    dtype: torch.dtype
    experts: str
    """What runs them, by vLLM's name."""
    live_rule: LiveRule
    ordered: bool
    """Whether the experts of a token always come best first."""
    num_experts: int
    """Logical ones."""
    top_k: int

    @property
    def rule(self) -> RouterRule:
        return self.live_rule()

    @property
    def module(self) -> nn.Module:
        """With the gate's weights, which say which model this is. vLLM packs them for a CPU and drops them; then they
        are what the gate makes of unit vectors."""
        gate, made = self.gate, nn.Module()
        if gate is None:
            return made
        held = dict(gate.named_parameters(recurse=False))
        if held and all(parameter.numel() for parameter in held.values()):
            return gate
        device = next(iter(held.values())).device if held else None
        columns, *_ = gate(torch.eye(self.hidden, dtype=self.dtype, device=device))
        made.register_parameter("weight", nn.Parameter(columns.T.contiguous(), requires_grad=False))
        return made


def find_layers(model: nn.Module, dtype: torch.dtype, device: torch.device) -> list[Layer]:
    """All MoE layers, first to last.

    Raises ValueError if there is none, or one whose experts would not run what its router says, or whose router
    scores by no known rule.
    """
    from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface

    found: list[Layer] = []
    for name, runner in model.named_modules():
        if isinstance(runner, MoERunnerInterface):
            check_layer(name, runner)
            found.append(_described(model, len(found), name, runner, dtype, device))
    if not found:
        raise UnsupportedModel(
            f"{WHERE}: {type(model).__name__} has no layer of routed experts that vLLM's fused MoE runs: no policy "
            "would act; serve it without this setting"
        )
    return found


def _described(
    model: nn.Module, layer: int, name: str, runner: MoERunnerInterface, dtype: torch.dtype, device: torch.device
) -> Layer:
    router = runner.router
    gate = getattr(model.get_submodule(name.rpartition(".")[0]), "gate", None)
    try:
        rule, ordered = prove_router(router, dtype, device)
    except UnknownRouter as error:
        raise UnsupportedModel(f"{WHERE}: {name} ({type(router).__name__}): {error}") from error
    return Layer(
        layer=layer,
        name=name,
        router=router,
        gate=gate if isinstance(gate, nn.Module) else None,
        hidden=runner.moe_config.hidden_dim,
        dtype=dtype,
        experts=_experts_of(runner),
        live_rule=rule,
        ordered=ordered and type(router).__name__ == "FusedTopKRouter",
        num_experts=router.global_num_experts,
        top_k=router.top_k,
    )


def prove_router(router: BaseRouter, dtype: torch.dtype, device: torch.device) -> tuple[LiveRule, bool]:
    """(the rule by which a router of vLLM scores, whether experts come best first); UnknownRouter says why it cannot be
    known."""
    return prove_outputs(
        _ask(router, dtype, device),
        vectors=[
            Live(router, key)
            for key, value in vars(router).items()
            if isinstance(value, Tensor) and value.numel() == router.global_num_experts == max(value.shape)
        ],
        groups=getattr(router, "num_expert_group", None) or 1,
        top_groups=getattr(router, "topk_group", None) or 1,
        stated=[value for value in vars(router).values() if isinstance(value, float)],
    )


def _experts_of(runner: MoERunnerInterface) -> str:
    method = runner._quant_method
    kernel = getattr(getattr(method, "moe_kernel", None), "fused_experts", None)
    return type(method if kernel is None else kernel).__name__


@torch.no_grad()
def _ask(router: BaseRouter, dtype: torch.dtype, device: torch.device) -> RouterOutputs:
    """What the router makes of random logits, of which some are all but tied."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(_ROWS, router.global_num_experts, generator=generator)
    logits *= torch.logspace(-1, 0.7, _ROWS)[:, None]
    logits_TE = logits.to(device, dtype)
    hidden = torch.zeros(_ROWS, 8, dtype=dtype, device=device)
    try:
        weights_TK, experts_TK = router._compute_routing(hidden, logits_TE, None)
    except Exception as error:  # a router may need what a probe has not: the tokens, a hash table
        reason = first_line(error)
        raise UnknownRouter(f"cannot be asked about random logits: {reason}") from error
    if tuple(experts_TK.shape) != (_ROWS, router.top_k):
        raise UnknownRouter(f"gives a token {experts_TK.shape[1]} experts, not {router.top_k}: some are shared ones")
    half = dtype in (torch.bfloat16, torch.float16)
    return RouterOutputs(
        form=TRIPLE,
        logits_TE=logits_TE.float(),
        weights_TK=weights_TK.float(),
        experts_TK=experts_TK.long(),
        coarse=half and bool(weights_TK.to(dtype).float().equal(weights_TK.float())),
    )


Route = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(logits `[T, E]`, weights `[T, K]`, experts `[T, K]`) -> weights, experts `[T, W]`."""


def reroute(layer: Layer, route: Route) -> None:
    """Give the router object of `layer` a routing of its own: `route` of what it would have chosen. Logical experts,
    before they are captured, mapped to replicas, or cast."""
    original = layer.router._compute_routing

    def compute(
        hidden_states: Tensor,
        router_logits: Tensor,
        indices_type: torch.dtype | None,
        *,
        input_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        weights, experts = original(hidden_states, router_logits, indices_type, input_ids=input_ids)
        return route(router_logits, weights, experts)

    layer.router._compute_routing = compute
