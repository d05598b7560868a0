"""Policies and steps that several sections share; torch and the project's own only."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from lynx_exp.routing import Policy, RouterRule, Routing, StepContext, build_policy
from lynx_exp.routing.ops.lanes import lane_size

RULE = RouterRule()
Named = tuple[str, dict[str, Any]]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every section has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="few cases of true shapes: whether all works on this card")
    parser.add_argument("--tiny", action="store_true", help="the smallest shapes, for a CPU and Triton's interpreter")
    return parser


def settings(experts: int, top_k: int) -> list[Named]:
    """Every policy that needs no calibration, as one would run it on a router of this shape; several forms of some."""
    half, some = max(top_k, experts // 2), max(1, top_k // 2)
    return [
        ("no_drop", {}),
        ("lynx", {}),
        ("oea", {"k0": some}),
        ("xshare", {"budget": half}),
        ("coverage", {}),
        ("lynx_v1_latency", {"keep_experts": half}),
        ("top_k", {"k": some}),
        ("lynx_v1_accuracy", {}),
        ("keep_ranks", {"ranks": some}),
        ("top_p", {}),
        ("min_p", {}),
        ("deny_rank", {}),
        ("reassign", {"first_rank": 1}),
        ("random_keep", {"keep_experts": half}),
        ("lynx", {"alpha": 1.0, "beta": None, "bins": "continuous"}),
        ("oea", {"k0": some, "p": 0.4, "k_max": top_k + 1, "max_rank": top_k + 2}),
        ("xshare", {"budget": top_k, "score": "logit", "warm_up_for": "token"}),
        ("xshare", {"budget": top_k, "warm_up": 0, "max_batch": 8}),
        ("coverage", {"tolerance": 0.05, "utility": "log", "guarantee": 1}),
        ("coverage", {"tolerance": None, "budget": max(top_k, experts // 3), "power": 1.5}),
        ("coverage", {"rounds": 6}),
        ("deny_rank", {"mode": "drop"}),
    ]


def policy(named: Named) -> Policy:
    return build_policy(named[0], **named[1])


def routed(logits_TE: Tensor, top_k: int, dtype: torch.dtype = torch.float32) -> Routing:
    """What a renormalising softmax router does."""
    scores, experts = torch.softmax(logits_TE.float(), -1).topk(top_k, dim=-1)
    return Routing(logits=logits_TE, experts=experts, weights=(scores / scores.sum(-1, keepdim=True)).to(dtype))


def decode_step(rows: int, device: str, lanes: int = 1) -> StepContext:
    all_rows = torch.arange(rows, device=device)
    ones = torch.ones(rows, dtype=torch.bool, device=device)
    step = StepContext(
        layer=0, decode=ones, lane=all_rows * lanes // rows, live=ones.clone(), num_lanes=lanes, key=all_rows[:lanes],
        row=all_rows,
    )  # fmt: skip
    lane_size(step)  # counted once a forward pass, not once a layer
    return step


def random_step(rows: int, lanes: int, device: str) -> StepContext:
    """Some rows dead, some in a lane far from their neighbours'."""
    step = decode_step(rows, device, lanes)
    step.lane[:: max(2, rows // 5)] = lanes - 1
    step.live[torch.rand(rows, device=device) < 0.15] = False
    step.shared.clear()
    return step
