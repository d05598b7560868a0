"""The bytes model: what a decode step has to read from memory, however it is computed.

Each active expert once, every other weight once (of the table of tokens only the rows that are fed, which count
nothing; all of it where it is the head, too), and the keys, values and states of the rows. So do MoE-CAP (arXiv
2412.07067) and vLLM count: experts that no row chose are not read. MoE-CAP leaves out the head and the norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.prompts import prefill
from lynx_exp.models import Router


@dataclass(frozen=True, kw_only=True)
class StepBytes:
    """Bytes of a decode step by what they are read for."""

    once: int
    """By every step: attention, routers, shared experts, norms, head."""
    expert: float
    """By each active expert of a layer, mean over layers."""
    row: int
    """By each live row: states that do not grow."""
    position: int
    """By each position that a row attends to: keys and values, all layers."""
    layers: int
    """With routed experts."""

    def of(self, *, active: float, rows: float, positions: float) -> float:
        """Of a step. `active`: distinct experts, mean over layers; `positions`: that its rows attend to, summed over
        rows."""
        return self.once + self.layers * active * self.expert + rows * self.row + positions * self.position


@torch.inference_mode()
def step_bytes(model: PreTrainedModel, routers: Sequence[Router]) -> StepBytes | None:
    """Of this model; None where it is not known which weights are whose expert's. A prompt of one token goes through
    the model, to see what it keeps."""
    experts = [routed_weights(router.parent, router.num_experts) for router in routers]
    if not all(experts):
        return None
    kept = prefill(model, [(0,)])
    return bytes_of(
        model,
        experts,
        num_experts=sum(router.num_experts for router in routers) / len(routers),
        row=kept.row_bytes(0),
        position=kept.row_bytes(1) - kept.row_bytes(0),
    )


def bytes_of(
    model: PreTrainedModel, experts: Sequence[Sequence[nn.Parameter]], *, num_experts: float, row: int, position: int
) -> StepBytes:
    """`experts`: the routed experts' weights of each layer that has a router; `num_experts`: mean over these."""
    routed = {id(weight): weight for of_layer in experts for weight in of_layer}
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied = head is not None and head.weight is table
    unread = 0 if tied else _bytes(table)
    return StepBytes(
        once=sum(map(_bytes, model.parameters())) - sum(map(_bytes, routed.values())) - unread,
        expert=sum(map(_bytes, routed.values())) / (num_experts * len(experts)),
        row=row,
        position=position,
        layers=len(experts),
    )


def routed_weights(parent: nn.Module, num_experts: int) -> list[nn.Parameter]:
    """Weights of the routed experts beside a router, by the module that holds both; empty if they cannot be told."""
    module = getattr(parent, "experts", None)
    if isinstance(module, nn.Module):
        return list(module.parameters())
    beside = [weight for weight in parent.parameters() if weight.dim() == 3]
    return [weight for weight in beside if weight.shape[0] == num_experts]


def _bytes(weight: Tensor) -> int:
    """Of the whole, where ranks share it."""
    return weight.numel() * weight.element_size()
