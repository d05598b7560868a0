"""Expert compute for CPUs: one loop over the active experts, as an experts implementation of transformers.

transformers' own loop spends more time on finding each expert's tokens than on a small model's matrices. Here tokens
are sorted by expert once, slots of weight 0 run nothing, and, as `per_expert_exact`, every product has at least
`EXACT_ROWS` rows: CPU matrix kernels change with the number of rows below that and so would a token's last bits with
the company it keeps. Above it a row's result depends on that row alone, which is what makes a packed run bit for bit
the run of each lane alone (tests/engine/test_stream.py holds it).

T token rows, K slots, S = T * K, D hidden size, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

PER_EXPERT = "per_expert"
PER_EXPERT_EXACT = "per_expert_exact"
EXACT_ROWS = 16
"""Rows from which on a matrix product on a CPU treats every row alike."""


def per_expert(self: Any, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """`[T, D]`: the weighted sum of each token's experts."""
    return _run(self, hidden_TD, experts_TK, weights_TK, least=1)


def per_expert_exact(self: Any, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """As `per_expert`, and a row's bits do not depend on the other rows."""
    return _run(self, hidden_TD, experts_TK, weights_TK, least=EXACT_ROWS)


def _run(self: Any, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor, least: int) -> Tensor:
    top_k, dimension = experts_TK.shape[1], hidden_TD.shape[1]
    weights_S = weights_TK.reshape(-1)
    expert_S = torch.where(weights_S == 0, self.num_experts, experts_TK.reshape(-1))
    sorted_S, order_S = expert_S.sort(stable=True)
    counts = torch.bincount(sorted_S, minlength=self.num_experts + 1)[: self.num_experts].tolist()
    running = sum(counts)
    order_S = order_S[:running]
    given_SD = hidden_TD[order_S // top_k if top_k > 1 else order_S]
    made_SD = torch.empty_like(given_SD)
    start = 0
    for expert, count in enumerate(counts):
        if count:
            rows_ND = given_SD[start : start + count]
            if count < least:
                rows_ND = pad(rows_ND, (0, 0, 0, least - count))
            made_SD[start : start + count] = _expert(self, expert, rows_ND)[:count]
            start += count
    made_SD *= weights_S[order_S, None]
    result_SD = made_SD.new_zeros(expert_S.shape[0], dimension)
    result_SD[order_S] = made_SD
    return result_SD.view(-1, top_k, dimension).sum(1).to(hidden_TD.dtype)


def _expert(self: Any, expert: int, rows_ND: Tensor) -> Tensor:
    into, out_of = ("gate_up_proj", "down_proj") if self.has_gate else ("up_proj", "down_proj")
    inner = _linear(self, into, expert, rows_ND)
    inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
    made_ND = _linear(self, out_of, expert, inner)
    return self.post_expert_norm(made_ND) if self.has_post_expert_norm else made_ND


def _linear(self: Any, name: str, expert: int, rows: Tensor) -> Tensor:
    weight = getattr(self, name)[expert]
    bias = getattr(self, f"{name}_bias")[expert] if self.has_bias else None
    return linear(rows, weight.T if self.is_transposed else weight, bias)


ALL_EXPERTS_FUNCTIONS.register(PER_EXPERT, per_expert)
ALL_EXPERTS_FUNCTIONS.register(PER_EXPERT_EXACT, per_expert_exact)
