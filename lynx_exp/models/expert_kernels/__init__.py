"""`few_rows`: expert compute of decode steps on a GPU, as an experts implementation of transformers.

Up to MOST_ROWS rows in four launches without a sort or a wait for the device, which read the weights of the experts in
use and no others; more rows than that (a prefill), and what needs gradients, run as `grouped_mm`. Triton is imported
when it first runs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from lynx_exp.models.expert_kernels.modules import FEW_ROWS, Served, device_refusal, refusal, require, served
from lynx_exp.models.module_types import Experts

__all__ = ["FEW_ROWS", "MOST_ROWS", "device_refusal", "few_rows", "refusal", "require"]

MOST_ROWS = 512


def few_rows(self: Experts, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """`[T, D]`: the weighted sum of each token's experts. ValueError, with the reason, for a module that the kernels do
    not serve."""
    if hidden_TD.shape[0] > MOST_ROWS or (torch.is_grad_enabled() and hidden_TD.requires_grad):
        return ALL_EXPERTS_FUNCTIONS["grouped_mm"](self, hidden_TD, experts_TK, weights_TK)
    found: Served | None = getattr(self, "_lynx_few_rows", None)
    if found is None:
        found = self._lynx_few_rows = served(self)
    if hidden_TD.shape[0] == 0:
        return torch.empty_like(hidden_TD)
    from lynx_exp.models.expert_kernels.launch_experts import run_compiled, run_experts

    run = run_compiled if torch.compiler.is_compiling() else run_experts
    return run(hidden_TD, experts_TK, weights_TK, *found.parameters(self), found.form, found.transposed)


ALL_EXPERTS_FUNCTIONS.register(FEW_ROWS, few_rows)
