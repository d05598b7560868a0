"""A model that is spread over the ranks of `torchrun`: every rank must decide alike, or each runs other experts.

transformers' tensor and expert parallelism shard the experts (DTensors) and leave the routers whole, so every rank
routes, and every rank's policy selects, for itself. What follows from a clock or from free memory may differ and is
taken from the first rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from lynx_exp.models.routers import Router

T = TypeVar("T")


def group_of(routers: Sequence[Router]) -> ProcessGroup | None:
    """The ranks that the experts beside these routers are sharded over; None for a model in one process.

    What else the process uses torch.distributed for has no part in it.
    """
    if not dist.is_available() or not dist.is_initialized():
        return None
    from torch.distributed.tensor import DTensor

    for router in routers:
        for parameter in router.parent.parameters():
            if isinstance(parameter, DTensor) and parameter.device_mesh.size() > 1:
                return parameter.device_mesh.get_group()
    return None


def from_first(value: T, routers: Sequence[Router]) -> T:
    """The first rank's `value` on every rank, in the same place of the program on each; `value` itself where the model
    is in one process."""
    group = group_of(routers)
    if group is None:
        return value
    box = [value]
    dist.broadcast_object_list(box, group=group, group_src=0)
    return box[0]


class Agreement:
    """Compares what the ranks chose, once a layer and kind of pass; does nothing for a model in one process."""

    def __init__(self, routers: Sequence[Router]) -> None:
        self._group = group_of(routers)
        self._done: set[tuple[int, object]] = set()

    @property
    def required(self) -> bool:
        """Whether there is more than one rank: else `check` need not be called."""
        return self._group is not None

    def check(self, layer: int, experts: Tensor, live: Tensor, kind: object = None) -> None:
        """RuntimeError, on every rank and naming the layer, unless all chose the same experts for the rows `live`.

        experts `[T, W]`, live `[T]` bool: a dead row's experts may be anything. Every rank must call it alike.
        """
        if self._group is None or (layer, kind) in self._done:
            return
        self._done.add((layer, kind))
        chosen = experts[live].cpu().contiguous()
        found = hashlib.sha256(f"{tuple(chosen.shape)}".encode() + chosen.numpy().tobytes()).digest()
        own = torch.tensor([int.from_bytes(found[:8], "big", signed=True)], device=experts.device)
        all_ranks = [torch.empty_like(own) for _ in range(self._group.size())]
        dist.all_gather(all_ranks, own, group=self._group)
        differing = [str(rank) for rank, other in enumerate(all_ranks) if not torch.equal(other, all_ranks[0])]
        if differing:
            raise RuntimeError(
                f"layer {layer}: rank {', '.join(differing)} chose other experts than rank 0, so the ranks would run "
                "different experts for the same tokens; nothing was kept of this step"
            )
