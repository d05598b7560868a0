"""What calibrated policies must know of one layer, summed up chunk by chunk: only sums and the ratios are kept.

T token rows, E experts, K top-k, D width of the experts' outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lynx_exp.models import Router
from lynx_exp.prepare.single_experts import Experts
from lynx_exp.routing import Routing
from lynx_exp.routing.ops.remap import drop_slots

CHUNK_TOKENS = 256
"""Rows that all experts run at a time, at most,"""
CHUNK_NUMBERS = 2**26
"""so that their outputs are at most so many numbers."""


class LayerFacts:
    """Of one layer: `add` what its router chose and its experts read, then ask."""

    def __init__(self, router: Router, experts: Experts) -> None:
        self._router, self._experts = router, experts
        shape = (router.num_experts, router.num_experts)
        self._cosine_EE, self._gram_EE, self._hsic_EE = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
        self._ratios: list[Tensor] = []
        self._routed: tuple[Tensor, Tensor] | None = None
        self._saliency_E = torch.zeros(router.num_experts, dtype=torch.float64)
        self._routed_E, self._largest_E = torch.zeros_like(self._saliency_E), torch.zeros_like(self._saliency_E)
        self._loss_K = torch.zeros(router.top_k, dtype=torch.float64)
        self.tokens, self._gaussian = 0, 0

    def add_routing(self, routing: Routing, real_T: Tensor) -> None:
        """The routing of a forward pass, of which the rows `real_T` count. Keeps 4 bytes for a token and rank."""
        score_TK = routing.scores(self._router.rule).gather(-1, routing.experts)[real_T]
        self._ratios.append((score_TK / score_TK[:, :1]).float().cpu())
        self._routed = routing.experts[real_T], routing.weights[real_T]

    def add_hidden(self, hidden_TD: Tensor) -> None:
        """Hidden states that entered the experts, those of the last routing; every expert runs on all of them."""
        self.tokens += len(hidden_TD)
        rows_T = torch.arange(len(hidden_TD), device=hidden_TD.device)
        for chunk_T in _chunks(rows_T, self._router.num_experts * hidden_TD.shape[-1]):
            outputs_ETD = _exact(self._experts.every(hidden_TD[chunk_T]))
            self._add_routed(outputs_ETD, chunk_T)
            unit_ETD = outputs_ETD / outputs_ETD.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
            self._cosine_EE += _products(unit_ETD)
            self._gram_EE += _products(outputs_ETD)
            self._hsic_EE += _unbiased_hsic(outputs_ETD)

    def _add_routed(self, outputs_ETD: Tensor, rows_T: Tensor) -> None:
        """What each expert gives the rows that are routed to it."""
        assert self._routed is not None
        experts_TK, weights_TK = (part[rows_T].to(outputs_ETD.device) for part in self._routed)
        weight_TE = outputs_ETD.new_zeros(len(rows_T), len(outputs_ETD))
        weight_TE.scatter_(-1, experts_TK, weights_TK.to(weight_TE.dtype))
        routed_TE = torch.zeros_like(weight_TE, dtype=torch.bool).scatter_(-1, experts_TK, True)
        self._saliency_E += (weight_TE * outputs_ETD.norm(dim=-1).T).sum(0).cpu()
        self._routed_E += routed_TE.sum(0).cpu()
        largest_TE = outputs_ETD.abs().amax(-1).T.where(routed_TE, 0.0)
        self._largest_E = torch.maximum(self._largest_E, largest_TE.amax(0).cpu())

    def add_gaussian(self, hidden_TD: Tensor, routing: Routing) -> None:
        """Gaussian hidden states, and their routing. The weights of the first k experts are those that the model with
        `num_experts_per_tok=k` would give."""
        self._gaussian += len(hidden_TD)
        weights_KTK = torch.stack([_exact(self._first(routing, k + 1)) for k in range(routing.top_k)])
        rows_T = torch.arange(len(hidden_TD), device=hidden_TD.device)
        for chunk_T in _chunks(rows_T, routing.top_k * hidden_TD.shape[-1]):
            outputs_TKD = _exact(self._experts.chosen(hidden_TD[chunk_T], routing.experts[chunk_T]))
            sums_KTD = torch.einsum("ktj,tjd->ktd", weights_KTK[:, chunk_T.to(weights_KTK.device)], outputs_TKD)
            self._loss_K += (sums_KTD - sums_KTD[-1]).norm(dim=-1).sum(-1).cpu()

    def similarity(self) -> dict[str, Tensor]:
        """By metric, `[E, E]` fp32 in 0..1, symmetric, 1 on the diagonal (Wu et al., arXiv 2602.07616, SERE).

        cosine: (mean over tokens of the cosine of two experts' outputs + 1) / 2.
        frobenius: 1 - d / d_max, d the Frobenius distance of the two experts' outputs over all tokens, d_max that of
        the layer's most distant pair.
        cka: linear CKA, from the unbiased estimate of HSIC averaged over chunks of tokens (Nguyen et al.,
        arXiv 2010.15327, eq. 3): what plain linear CKA tends to with many tokens, without all outputs in memory.
        """
        square_E = self._gram_EE.diagonal()
        distance_EE = (square_E[:, None] + square_E - 2 * self._gram_EE).clamp_min(0).sqrt()
        own_E = self._hsic_EE.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        found = {
            "cosine": (self._cosine_EE / max(self.tokens, 1) + 1) / 2,
            "frobenius": 1 - distance_EE / distance_EE.max().clamp_min(torch.finfo(torch.float64).tiny),
            "cka": self._hsic_EE / own_E[:, None] / own_E,
        }
        return {metric: _similarity(alike_EE) for metric, alike_EE in found.items()}

    def ratio(self) -> Tensor:
        """`[K]` fp32: median over tokens of each rank's router score over the first's."""
        ordered_TK = torch.cat(self._ratios).double().sort(0).values
        middle = (len(ordered_TK) - 1) // 2, len(ordered_TK) // 2
        return ((ordered_TK[middle[0]] + ordered_TK[middle[1]]) / 2).float()

    def saliency(self) -> Tensor:
        """`[E]` fp32: mean over the tokens routed to an expert of their weight times the norm of its output (REAP,
        arXiv 2510.13999, equation 9); 0 for an expert that no token was routed to."""
        return (self._saliency_E / self._routed_E.clamp_min(1)).float()

    def largest(self) -> Tensor:
        """`[E]` fp32: the largest magnitude in an expert's output for a token that is routed to it."""
        return self._largest_E.float()

    def divergence(self) -> Tensor:
        """`[K]` fp32: for k = 1..K, mean over Gaussian inputs of the distance of the layer's routed output by its first
        k experts from that by all K (LExI, arXiv 2509.02753).

        Inferred, for want of the paper's code: an input is one standard normal hidden state, which router and experts
        both read (shared experts cancel out), and the distance is the Euclidean norm of one token's difference.
        """
        return (self._loss_K / max(self._gaussian, 1)).float()

    def _first(self, routing: Routing, k: int) -> Tensor:
        """`[T, K]` weights of the first k experts alone; the others' are 0."""
        beyond_TK = (torch.arange(routing.top_k, device=routing.experts.device) >= k).expand_as(routing.experts)
        return drop_slots(routing, beyond_TK.contiguous(), self._router.rule, keep_mass=False).weights


def _exact(outputs: Tensor) -> Tensor:
    """In fp64, where small distances of alike experts survive their sums; Apple's GPUs have none."""
    return (outputs.cpu() if outputs.device.type == "mps" else outputs).double()


def _chunks(rows: Tensor, numbers_a_row: int) -> list[Tensor]:
    """The rows in chunks of nearly equal size. Each takes its rows from the whole pass: two neighbours are more alike
    than two rows of one sample."""
    size = max(16, min(CHUNK_TOKENS, CHUNK_NUMBERS // numbers_a_row))
    count = -(-len(rows) // size)
    return [rows[first::count] for first in range(count)]


def _products(x_ETD: Tensor) -> Tensor:
    flat = x_ETD.flatten(1)
    return (flat @ flat.T).cpu()


def _unbiased_hsic(outputs_ETD: Tensor) -> Tensor:
    """`[E, E]`: HSIC of two experts' outputs under the linear kernel, the estimate without bias of Song et al. (2012,
    "Feature selection via dependence maximization", eq. 5). Zeros for fewer than four rows, which have none."""
    experts, n, _ = outputs_ETD.shape
    if n < 4:
        return torch.zeros(experts, experts, dtype=torch.float64)
    kernel_ETT = outputs_ETD @ outputs_ETD.mT
    kernel_ETT.diagonal(dim1=1, dim2=2).zero_()
    row_ET = kernel_ETT.sum(-1)
    total_E = row_ET.sum(-1)
    joint_EE = total_E[:, None] * total_E / ((n - 1) * (n - 2)) - 2 / (n - 2) * (row_ET @ row_ET.T)
    return (_products(kernel_ETT) + joint_EE.cpu()) / (n * (n - 3))


def _similarity(alike_EE: Tensor) -> Tensor:
    even_EE = ((alike_EE + alike_EE.T) / 2).clamp(0, 1).float()
    return even_EE.fill_diagonal_(1.0)
