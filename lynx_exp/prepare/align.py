"""Measure an alignment (`lynx_exp.routing.alignment`): what a policy makes of each layer's output, beside what vanilla
does.

One pass of the plain model over text, so that each layer has vanilla's before it. Sequences of a batch stand side by
side: the tokens at one position are the rows of a lane, as in a decode step of as many requests, so `batch_size` is the
batch that the policy sees. Where it changes a row's experts, the layer's experts run that row once more.

R sequences of a batch, N positions, T token rows (R times N), D width of the experts' outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lynx_exp.models import Router, UnsupportedModel, bind
from lynx_exp.models.align_outputs import changed, experts_fingerprint, experts_of
from lynx_exp.prepare.single_experts import Experts
from lynx_exp.routing import PerLayer, Policy, Routing, StepContext
from lynx_exp.routing.alignment import TABLES, Alignment, policy_digest


class _Moments:
    """Mean and deviation of rows under the policy and under vanilla, from sums in float64."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums_4D: Tensor | None = None

    def add(self, policy_TD: Tensor, vanilla_TD: Tensor) -> None:
        both = [rows.double().cpu() for rows in (policy_TD, vanilla_TD)]
        sums_4D = torch.stack([part for rows in both for part in (rows.sum(0), rows.square().sum(0))])
        self._sums_4D = sums_4D if self._sums_4D is None else self._sums_4D + sums_4D
        self.rows += len(policy_TD)

    def tables(self, width: int) -> list[Tensor]:
        """`TABLES`, `[D]` each; zeros and ones where nothing was changed."""
        if self._sums_4D is None:
            return [torch.zeros(width), torch.ones(width)] * 2
        mean_4D = self._sums_4D / self.rows
        found = []
        for mean_D, square_D in (mean_4D[:2], mean_4D[2:]):
            found += [mean_D.float(), (square_D - mean_D.square()).clamp_min(0).sqrt().float()]
        return found


@torch.inference_mode()
def measure(
    model: Any,
    routers: Sequence[Router],
    experts: Sequence[Experts],
    policy: Policy,
    batches: Iterable[tuple[Tensor, Tensor]],
    corpus: str,
    provenance: dict[str, str],
    on_layer: Callable[[], None],
    calibration: str | None = None,
) -> Alignment:
    """`batches`: (ids `[R, N]`, which of them are real). ValueError or UnsupportedModel, by name, for a model whose
    outputs cannot be mapped, or that cannot run the policy."""
    for router, module, single in zip(routers, experts_of(routers), experts, strict=True):
        if module is not single.module:
            raise UnsupportedModel(f"{router.name}: its experts run in another module than {type(module).__name__}")
    bound = bind(_plain(policy), routers, calibration)
    moments = [_Moments() for _ in routers]
    widths = [0] * len(routers)
    step: dict[str, Any] = {}
    decided: dict[int, tuple[Routing, Tensor]] = {}

    def chose(layer: int, routing: Routing) -> None:
        new = bound(routing, StepContext(layer=layer, **step), routers[layer].rule)
        decided[layer] = new, changed(routing, new)

    def made(layer: int, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        new, changed_T = decided.pop(layer)
        vanilla_TD = output.reshape(len(changed_T), -1)
        widths[layer] = vanilla_TD.shape[1]
        if bool(changed_T.any()):
            hidden_TD = given[0].reshape(len(changed_T), -1)[changed_T]
            chosen = new.experts[changed_T].to(given[1].dtype), new.weights[changed_T].to(given[2].dtype)
            # `forward`, not a call: what hooks the module has are for the model's own pass
            policy_TD = module.forward(hidden_TD, *chosen).reshape(len(hidden_TD), -1)
            moments[layer].add(policy_TD, vanilla_TD[changed_T])
        on_layer()

    removers: list[Callable[[], None]] = []
    try:
        for layer, (router, single) in enumerate(zip(routers, experts, strict=True)):
            removers.append(router.intercept(partial(chose, layer)))
            removers.append(single.module.register_forward_hook(partial(made, layer)).remove)
        for number, (ids_RN, real_RN) in enumerate(batches):
            step.update(rows_of_positions(number, real_RN))
            model.base_model(input_ids=ids_RN, use_cache=False)
    finally:
        for remove in removers:
            remove()
    tables = [each.tables(width) for each, width in zip(moments, widths, strict=True)]
    return Alignment(
        policy=policy_digest(policy),
        fingerprint=experts_fingerprint(routers),
        corpus=corpus,
        tables={name: torch.stack([of_layer[at] for of_layer in tables]) for at, name in enumerate(TABLES)},
        # whatever its weights were when it was asked for, it is the same measurement: the same bytes
        provenance=provenance
        | {"policy": _plain(policy).label, "changed_rows": ",".join(str(each.rows) for each in moments)},
    )


def _plain(policy: Policy) -> Policy:
    """The policy without what is to be measured."""
    if isinstance(policy, PerLayer):
        return PerLayer(policies=tuple(_plain(part) for part in policy.policies), made_of=policy.made_of)
    return replace(policy, weights="renormalize", k2=None)


def rows_of_positions(number: int, real_RN: Tensor) -> dict[str, Any]:
    """The fields of `StepContext` without the layer: a lane a position, a row of it each sequence."""
    sequences, positions = real_RN.shape
    place_N = torch.arange(positions, device=real_RN.device)
    return {
        "decode": torch.ones_like(real_RN).flatten(),
        "live": real_RN.flatten(),
        "lane": place_N.repeat(sequences),
        "num_lanes": positions,
        "key": (number << 32) + place_N,
        "row": torch.arange(sequences, device=real_RN.device).repeat_interleave(positions) << 32,
        "shared": {},
    }
