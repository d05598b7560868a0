"""Expert compute for CPUs: one loop over the active experts, as an experts implementation of transformers.

transformers' own loop spends more time on finding each expert's tokens than on a small model's matrices. Here tokens
are sorted by expert once, slots of weight 0 run nothing, and, as `per_expert_exact`, every product has at least
`EXACT_ROWS` rows: CPU matrix kernels change with the number of rows below that and so would a token's last bits with
the company it keeps. Above it a row's result depends on that row alone, which is what makes a packed run bit for bit
the run of each lane alone (tests/engine/test_stream.py holds it).

T token rows, K slots, S = T * K, D hidden size, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from lynx_exp.models.module_types import Experts

PER_EXPERT = "per_expert"
PER_EXPERT_EXACT = "per_expert_exact"
EXACT_ROWS = 16
"""Rows from which on a matrix product on a CPU treats every row alike."""
_TURNED_ROWS = 6
"""From here on MKL multiplies weights by few rows up to 1.7 times faster than rows by weights; but a row's bits then
depend on how many there are, wherever the inner dimension exceeds 768."""
_FEW_ROWS = 1024
"""Up to here all experts' activations are computed in one call."""


def per_expert(self: Experts, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """`[T, D]`: the weighted sum of each token's experts."""
    return _run(self, hidden_TD, experts_TK, weights_TK, least=1)


def per_expert_exact(self: Experts, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """As `per_expert`, and a row's bits do not depend on the other rows."""
    return _run(self, hidden_TD, experts_TK, weights_TK, least=EXACT_ROWS)


def _run(self: Experts, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor, least: int) -> Tensor:
    top_k, dimension = experts_TK.shape[1], hidden_TD.shape[1]
    weights_S = weights_TK.reshape(-1)
    expert_S = torch.where(weights_S == 0, self.num_experts, experts_TK.reshape(-1))
    sorted_S, order_S = expert_S.sort(stable=True)
    counts = torch.bincount(sorted_S, minlength=self.num_experts + 1)[: self.num_experts].tolist()
    order_S = order_S[: sum(counts)]
    given_SD = hidden_TD[order_S // top_k if top_k > 1 else order_S]
    spans, rows = _spans(counts, least)
    if rows != order_S.shape[0]:
        place_S = torch.cat([torch.arange(start, start + counts[e]) for e, start, _ in spans]).to(given_SD.device)
        given_SD = given_SD.new_zeros(rows, dimension).index_copy_(0, place_S, given_SD)
    run = _batched if rows <= _FEW_ROWS else _one_by_one
    made_SD = run(self, given_SD, spans, _TURNED_ROWS if least == 1 else None)
    if rows != order_S.shape[0]:
        made_SD = made_SD[place_S]
    made_SD *= weights_S[order_S, None]
    result_SD = made_SD.new_zeros(expert_S.shape[0], dimension)
    result_SD[order_S] = made_SD
    return result_SD.view(-1, top_k, dimension).sum(1).to(hidden_TD.dtype)


Spans = list[tuple[int, int, int]]
"""(expert, first row, row after the last) of each active expert."""


def _spans(counts: list[int], least: int) -> tuple[Spans, int]:
    """(spans of `least` rows at least, rows of all)."""
    spans, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            stop = start + max(count, least)
            spans.append((expert, start, stop))
            start = stop
    return spans, start


def _batched(self: Experts, given_SD: Tensor, spans: Spans, turned: int | None) -> Tensor:
    """`[S, D]`, unweighted: all first products, all activations, all second products."""
    inner = _products(self, "gate_up_proj" if self.has_gate else "up_proj", given_SD, spans, turned)
    made_SD = _products(self, "down_proj", _activate(self, inner), spans, turned)
    return self.post_expert_norm(made_SD) if getattr(self, "has_post_expert_norm", False) else made_SD


def _one_by_one(self: Experts, given_SD: Tensor, spans: Spans, turned: int | None) -> Tensor:
    """The same, an expert after the other: with many rows what lies between the products would leave the caches."""
    made_SD = torch.empty_like(given_SD)
    for expert, start, stop in spans:
        made_SD[start:stop] = _batched(self, given_SD[start:stop], [(expert, 0, stop - start)], turned)
    return made_SD


def _activate(self: Experts, inner: Tensor) -> Tensor:
    return self._apply_gate(inner) if self.has_gate else self.act_fn(inner)


def _products(self: Experts, name: str, given: Tensor, spans: Spans, turned: int | None) -> Tensor:
    """Each expert's rows times its weights; from `turned` rows on as (weights times rows, transposed)."""
    weights: Tensor = getattr(self, name)
    weights = weights if self.is_transposed else weights.transpose(1, 2)  # [E, in, out]
    biases: Tensor | None = getattr(self, f"{name}_bias") if self.has_bias else None
    made = given.new_empty(given.shape[0], weights.shape[2])
    for expert, start, stop in spans:
        if biases is None and turned is not None and stop - start >= turned:
            made[start:stop] = torch.mm(weights[expert].T, given[start:stop].T).T
        elif biases is None:
            torch.mm(given[start:stop], weights[expert], out=made[start:stop])
        else:
            torch.addmm(biases[expert], given[start:stop], weights[expert], out=made[start:stop])
    return made


@contextmanager
def using_experts(model: PreTrainedModel, name: str | None) -> Iterator[None]:
    """The model with its experts computed in this way."""
    before = model.config.get_text_config()._experts_implementation
    if name is None or name == before:
        yield
        return
    model.set_experts_implementation(name)
    try:
        yield
    finally:
        model.set_experts_implementation(before)


ALL_EXPERTS_FUNCTIONS.register(PER_EXPERT, per_expert)
ALL_EXPERTS_FUNCTIONS.register(PER_EXPERT_EXACT, per_expert_exact)
