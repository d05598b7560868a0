"""What selection costs in one layer of a decode step: microseconds inside a replayed graph of several layers, kernels
where there are some. `router` is what the model's own router does anyway."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.experts_kernel import replayed_us
from benchmarks.on_gpu.cases import RULE, arguments, decode_step, policy, routed, settings
from benchmarks.on_gpu.records import case
from lynx_exp.routing import Policy, Routing, StepContext
from lynx_exp.routing.backends.triton import kernels
from lynx_exp.routing.backends.triton.kernels import launch_sizes

CALLS = 16
"""Layers of a graph: the launch of the graph itself is a small part of their time."""
POLICIES = 14
"""Of `settings`: one form of each policy."""


def timed(run: Callable[[], Any], device: str) -> float:
    """Microseconds of one call."""
    if device == "cuda":
        return replayed_us(lambda: [run() for _ in range(CALLS)]) / CALLS
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e6


def of_shape(device: str, experts: int, top_k: int, rows: int, tiny: bool) -> None:
    """A record each of the router and the policies."""
    logits = torch.randn(rows, experts, device=device) * 2
    before, step = routed(logits, top_k), decode_step(rows, device)
    place = {"rows": rows, "experts": experts, "top_k": top_k}

    case("layer", policy="router", kernel=False, us=timed(lambda: routed(logits, top_k), device), **place)
    for named in settings(experts, top_k)[: 3 if tiny else POLICIES]:
        chosen = policy(named)
        with kernels.kernel("triton" if tiny else "auto"):
            served = kernels.select(chosen, _again(before), step, RULE) is not None
            us = timed(partial(_select, chosen, before, step), device)
        case("layer", policy=named[0], kernel=served, us=us, **place)
    for way in ("original", "mass"):
        chosen = replace(policy(settings(experts, top_k)[1]), weights=way)
        with kernels.kernel("triton" if tiny else "auto"):
            us = timed(partial(_select, chosen, before, step), device)
        case("weighed", policy=chosen.name, weights=way, us=us, **place)


@torch.inference_mode()
def main() -> None:
    given = arguments(__doc__).parse_args()
    shapes = ((4, 2, (4,)),) if given.tiny else ((128, 8, (16, 64, 256, 1)), (8, 2, (16, 64)))
    if given.quick:
        shapes = ((128, 8, (16,)),)
    for experts, top_k, all_rows in shapes:
        for rows in all_rows:
            of_shape(given.device, experts, top_k, rows, given.tiny)
    if not given.tiny:
        lanes_in_a_stream(given.device)
        in_one_block(given.device)


def lanes_in_a_stream(device: str, experts: int = 128, top_k: int = 8, rows: int = 64, lanes: int = 4) -> None:
    """Steps of an accuracy run have several lanes, whose rows no program knows beforehand."""
    before, step = routed(torch.randn(rows, experts, device=device) * 2, top_k), decode_step(rows, device, lanes)
    for named in settings(experts, top_k)[:POLICIES]:
        us = timed(partial(_select, policy(named), before, step), device)
        case("lanes", policy=named[0], rows=rows, lanes=lanes, us=us)


def in_one_block(device: str, experts: int = 128, top_k: int = 8, rows: int = 16) -> None:
    """What few rows cost in one launch of one block, which `launch_sizes.ONE_BLOCK` cuts into several."""
    before, step = routed(torch.randn(rows, experts, device=device) * 2, top_k), decode_step(rows, device)
    kept, launch_sizes.ONE_BLOCK = launch_sizes.ONE_BLOCK, rows
    for named in settings(experts, top_k)[:6]:
        us = timed(partial(_select, policy(named), before, step), device)
        case("one block", policy=named[0], rows=rows, us=us)
    launch_sizes.ONE_BLOCK = kept


def _select(chosen: Policy, before: Routing, step: StepContext) -> Routing:
    return chosen(_again(before), step, RULE)


def _again(before: Routing) -> Routing:
    return Routing(logits=before.logits, experts=before.experts, weights=before.weights)


if __name__ == "__main__":
    main()
