"""Put `FusedRouter` in the place of a model's routers' forwards, once each has proved equal to its own.

Proved are the logits to the bit, the experts, and the weights within rounding, on the hidden states of `probe`, most of
which lie where the choice of experts changes.

T token rows, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product as combinations

import torch
from torch import Tensor, nn

from lynx_exp.models.fused_router import FusedRouter, Product, fused_of
from lynx_exp.models.odd_families.forms import REVERSED, TRIPLE
from lynx_exp.models.probe import probe
from lynx_exp.models.routers import Router
from lynx_exp.routing import RouterRule
from lynx_exp.routing.backends.triton import kernels
from lynx_exp.routing.backends.triton.kernels.fallback import reason_of

_ROUNDING = {torch.float32: 4e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""How far weights may be apart, relative to the row's largest: some roundings to float32, then one to the type."""
_TIE = 1e-6
"""How near two experts may be, relative to the largest number of the row, for either to be chosen."""


class _OwnForward(ValueError):
    """Why a router keeps its own forward."""


def fuse(routers: Sequence[Router]) -> str | None:
    """Fuse all of them, or none: then why not, in one line. Nothing to do, and no reason, where Triton's kernels are
    not to run. ValueError, with the reason, if they fail under `kernel=triton`."""
    if not routers or not kernels.chosen(next(routers[0].module.parameters())):
        return None
    done: list[Router] = []
    try:
        for router in routers:
            if fused_of(router.module) is None:
                router.module.forward = _proved(router)  # type: ignore[method-assign, assignment]
                done.append(router)
    except torch.OutOfMemoryError:
        _restore(done)
        raise
    except Exception as error:  # a compiler fails in many ways
        _restore(done)
        name = type(routers[0].module).__name__
        if isinstance(error, _OwnForward):
            return f"routers run as the model's own ({name}): {error}"
        reason = f"their fused kernel does not run here: {reason_of(error)}"
        if kernels.current_kernel() == "triton":
            raise ValueError(f"kernel=triton: routers ({name}): {reason}") from error
        return f"routers run as the model's own ({name}): {reason}"
    return None


def _restore(routers: Sequence[Router]) -> None:
    for router in routers:
        del router.module.forward


@torch.no_grad()
def _proved(router: Router) -> FusedRouter:
    module, rule = router.module, router.rule
    if router.form not in (TRIPLE, REVERSED):
        raise _OwnForward("it does not hand over logits, weights and experts")
    if "forward" in vars(module):
        raise _OwnForward("something else already stands in for its forward")
    if router.home is not None:
        raise _OwnForward("the model is spread over several devices")
    asked = probe(module, router.parent)
    rows = asked.rows.to(max(router.parent.parameters(), key=Tensor.numel).dtype)  # the model's; a router may be wider
    logits, weights, experts = asked.run(rows)
    if weights.dtype not in _ROUNDING:
        raise _OwnForward(f"its weights are {weights.dtype}")
    product = next((p for p in _products(module, logits) if torch.equal(p(rows), logits)), None)
    if product is None:
        raise _OwnForward("its logits are not one matrix product of the hidden states")
    fused = FusedRouter(module.forward, router.form, router.live_rule, product, router.top_k, weights.dtype)
    ours, _ = fused.route(rows)
    _compare(rule, logits.float(), (experts, weights), (ours.experts, ours.weights))
    return fused


def _products(module: nn.Module, logits_TE: Tensor) -> Iterator[Product]:
    """How the logits may come about."""
    for owner in module.modules():
        own = dict(owner.named_parameters(recurse=False))
        for name, weight in own.items():
            if weight.dim() == 2 and weight.shape[0] == logits_TE.shape[1]:
                has_bias = "bias" in own and own["bias"].shape == weight.shape[:1]
                for biased, wide in combinations((True, False) if has_bias else (False,), (False, True)):
                    yield Product(owner, name, biased, wide, logits_TE.dtype)


def _compare(
    rule: RouterRule,
    logits_TE: Tensor,
    theirs: tuple[Tensor, Tensor],
    ours: tuple[Tensor, Tensor],
) -> None:
    """_OwnForward if the choices differ other than by a tie, or the weights of the same experts by more than
    rounding."""
    choice_TE = rule.choice(logits_TE, rule.scores(logits_TE))
    number_E = torch.zeros_like(choice_TE)
    by_expert = []
    taken = []
    for experts_TK, weights_TK in (theirs, ours):
        taken.append(choice_TE.gather(-1, experts_TK).sort(-1, descending=True).values)
        by_expert.append(number_E.scatter(-1, experts_TK, weights_TK.float()))
    scale_T1 = taken[0].abs().amax(-1, keepdim=True)
    if not bool(((taken[0] - taken[1]).abs() <= _TIE * scale_T1).all()):
        raise _OwnForward("it ranks experts by numbers that it has rounded before")
    same_T = (theirs[0].sort(-1).values == ours[0].sort(-1).values).all(-1)
    apart_T = (by_expert[0] - by_expert[1]).abs().amax(-1) / by_expert[0].abs().amax(-1).clamp_min(1e-30)
    if not bool((apart_T[same_T] <= _ROUNDING[theirs[1].dtype]).all()) or not bool(same_T.any()):
        raise _OwnForward("its weights are not the rule's, rounded once")
