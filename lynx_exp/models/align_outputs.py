"""weights=affine: behind a layer's experts, the rows that a policy changed are mapped by its alignment.

T token rows of a forward pass, D width of the experts' outputs.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lynx_exp.models.routers import Described, Router, fingerprint
from lynx_exp.routing import Policy, Routing
from lynx_exp.routing.alignment import Alignment, find_alignment
from lynx_exp.routing.ops.weigh import changed_rows, first_of_each


class AlignOutputs:
    """Between routers, which tell it what policies changed (`note`), and the outputs of their experts."""

    def __init__(self, routers: Sequence[Router], policies: Iterable[Policy | None]) -> None:
        """ValueError for a layer whose experts are no module of their own, if one of the policies needs it."""
        self._modules = experts_of(routers) if any(alignment_of(policy) for policy in policies) else []
        self._noted: dict[int, list[tuple[Tensor, Alignment]]] = {}

    @property
    def active(self) -> bool:
        """Whether any policy is aligned; else nothing has to be noted."""
        return bool(self._modules)

    def note(
        self, layer: int, policy: Policy, before: Routing, after: Routing, place: tuple[Tensor, int] | None = None
    ) -> None:
        """`place`: (where the routings' rows are among the T rows, int64; T); None: they are those."""
        alignment = alignment_of(policy)
        if alignment is None or after.experts is before.experts:
            return
        changed_T = changed(before, after)
        if place is not None:
            changed_T = changed_T.new_zeros(place[1]).index_copy_(0, place[0], changed_T)
        self._noted.setdefault(layer, []).append((changed_T, alignment))

    def hook(self) -> list[Callable[[], None]]:
        """Put it in place; what takes it out again."""
        return [
            module.register_forward_hook(partial(self._map, layer)).remove for layer, module in enumerate(self._modules)
        ]

    def _map(self, layer: int, _module: nn.Module, _given: Any, output: Tensor) -> Tensor:
        for changed_T, alignment in self._noted.pop(layer, ()):
            gain_LD, shift_LD = alignment.gain_and_shift(output.device)
            rows_TD = output.reshape(-1, output.shape[-1])
            changed_T1 = changed_T.to(output.device)[:, None]
            mapped_TD = (rows_TD.float() * gain_LD[layer] + shift_LD[layer]).to(output.dtype)
            output = torch.where(changed_T1, mapped_TD, rows_TD).view_as(output)
        return output


def changed(before: Routing, after: Routing) -> Tensor:
    """`[T]` bool: rows that run other experts than their router chose."""
    return changed_rows(before, after, first_of_each(after.experts))


def alignment_of(policy: Policy | None) -> Alignment | None:
    """What `align` has given the policy."""
    return None if policy is None else vars(policy).get("_alignment")


def experts_of(routers: Sequence[Router]) -> list[nn.Module]:
    """What sums up each router's experts. ValueError, by name, where that is no module of its own."""
    found = []
    for router in routers:
        experts = getattr(router.parent, "experts", None)
        if not isinstance(experts, nn.Module) or isinstance(experts, nn.ModuleList):
            raise ValueError(
                f"weights=affine: {router.name}: {type(router.parent).__name__} has no module whose output is the sum "
                "of its routed experts, so nothing can be mapped; use other weights"
            )
        found.append(experts)
    return found


SAMPLED = 4096
"""Numbers of each parameter of the experts that the fingerprint looks at, spread evenly."""


def experts_fingerprint(routers: Sequence[Described]) -> str:
    """`fingerprint` of the routers, and a sample of each parameter of their experts: a fine-tune that leaves the
    routers as they were is another model to an alignment."""
    total = hashlib.sha256(fingerprint(routers).encode())
    for router in routers:
        experts = getattr(getattr(router, "parent", None), "experts", None)
        named = sorted(experts.named_parameters()) if isinstance(experts, nn.Module) else []
        for name, parameter in named:
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, flat.numel() // SAMPLED)].bfloat16().cpu().contiguous()
            total.update(f"{name} {tuple(parameter.shape)}".encode() + sample.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def align(policy: Policy, bound: Policy, routers: Sequence[Described]) -> Policy:
    """The bound policy with the alignment of `policy`, if its weights ask for one. ValueError if there is none for
    exactly this policy, its parameters and this model."""
    parts = getattr(policy, "policies", (policy,))
    asked = {part.weights == "affine" for part in parts}
    if asked == {False}:
        return bound
    if len(asked) > 1:
        raise ValueError(f"{policy.name}: weights=affine: in all layers, or in none")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise ValueError(f"{policy.name}: weights=affine: experts' outputs lie in parts on several ranks; one process")
    given = copy.copy(bound)
    known = alignment_of(policy)  # where it is bound already
    object.__setattr__(given, "_alignment", known or find_alignment(policy, experts_fingerprint(routers)))
    # a policy with another alignment is another one, however `bound` was made
    object.__setattr__(given, "of_batch_size", policy.of_batch_size)
    return given
