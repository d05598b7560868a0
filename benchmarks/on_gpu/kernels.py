"""The fused kernels of routers and policies against the torch definitions: experts equal, weights within rounding;
without a wait for the host, and replayed from a CUDA graph over new logits. A record a shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.on_gpu.cases import RULE, arguments, policy, random_step, routed, settings
from benchmarks.on_gpu.records import check
from lynx_exp.routing import Policy, RouterRule, Routing, StepContext
from lynx_exp.routing.backends.triton import kernels
from lynx_exp.routing.backends.triton.kernels.route import route

ULP = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""How far weights may be apart: K values summed in another order, then rounded to the type."""
GRAPHS = ((16, 128, 8, 1), (64, 128, 8, 1), (64, 60, 6, 8))
Shape = tuple[int, int, int, int]
SHAPES: tuple[Shape, ...] = (
    (16, 128, 8, 1),
    (64, 128, 8, 4),
    (64, 128, 8, 1),
    (16, 8, 2, 1),
    (1, 128, 8, 1),
    (64, 128, 8, 8),
    (256, 128, 8, 1),
    (64, 256, 8, 1),
    (200, 60, 6, 16),
)
"""(rows, experts, top-k, lanes)."""
TINY: tuple[Shape, ...] = ((3, 4, 2, 1),)
FIRST = 3
"""Of the shapes."""


def difference(chosen: Policy, routing: Routing, step: StepContext, rule: RouterRule) -> str | None:
    """What is not equal between the kernels and the torch definition; None if nothing is."""
    with kernels.kernel("torch"):
        theirs = chosen(routing, step, rule)
    with kernels.kernel("triton"):
        ours = chosen(routing, step, rule)
    wrong = int((ours.experts != theirs.experts).any(-1).sum())
    if wrong:
        return f"{wrong} of {len(ours.experts)} rows have other experts"
    far = (ours.weights.double() - theirs.weights.double()).abs()
    allowed = ULP[ours.weights.dtype] * theirs.weights.double().abs() + 1e-7
    return None if (far <= allowed).all() else f"weights are up to {float(far.max()):.1e} apart"


def check_equality(
    device: str, shape: Shape, dtype: torch.dtype, rules: Sequence[RouterRule], some: int | None
) -> None:
    """`some`: of the policies, the first."""
    rows, experts, top_k, lanes = shape
    compared, failures = 0, []
    torch.manual_seed(rows)
    logits = (torch.randn(rows, experts, device=device) * 2).to(dtype)
    step = random_step(rows, lanes, device)
    for chosen in map(policy, settings(experts, top_k)[:some]):
        for rule in rules:
            found = difference(chosen, routed(logits, top_k, dtype), step, rule)
            compared += 1
            if found:
                failures.append(f"{chosen.label}: {found}")
    check(f"kernels equal torch, {_name(dtype)}, {len(rules)} rules, {_shape_name(shape)}", compared, failures)


def check_weights(device: str, shape: Shape, dtype: torch.dtype, rules: Sequence[RouterRule], some: int) -> None:
    """`policy.weights`: the same experts, weighed by one more kernel."""
    rows, experts, top_k, lanes = shape
    compared, failures = 0, []
    torch.manual_seed(rows + 1)
    ways: list[dict[str, Any]] = [{"weights": "original"}, {"weights": "mass"}]
    ways += [{"weights": "reference", "k2": k2} for k2 in sorted({top_k, experts // 2, experts})]
    step = random_step(rows, lanes, device)
    logits = (torch.randn(rows, experts, device=device) * 2).to(dtype)
    for named in settings(experts, top_k)[1 : 1 + some]:
        for way in ways:
            for rule in rules:
                chosen = replace(policy(named), **way)
                found = difference(chosen, routed(logits, top_k, dtype), step, rule)
                compared += 1
                if found:
                    failures.append(f"{chosen.label} {way} {rule.score}: {found}")
    check(f"weights equal torch, {_name(dtype)}, {len(rules)} rules, {_shape_name(shape)}", compared, failures)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape_name(shape: Shape) -> str:
    rows, experts, top_k, lanes = shape
    return f"T {rows} E {experts} K {top_k} G {lanes}"


def check_routers(device: str, shape: Shape) -> None:
    """Experts may differ where two tie within rounding, which random float32 logits hardly do."""
    rows, experts, top_k, _lanes = shape
    compared, failures = 0, []
    torch.manual_seed(rows + experts)
    bias = torch.randn(experts, device=device) * 0.1
    logits = torch.randn(rows, experts, device=device) * 3
    grouped = RouterRule(score="sigmoid", scaling=2.5, bias=bias, groups=4, top_groups=2, group_score="top2")
    rules = [
        RULE,
        RouterRule(renormalize=False, expert_scale=bias.exp()),
        RouterRule(score="sqrtsoftplus", bias=bias, bias_on="logits"),
    ]
    for rule in [*rules, grouped] if experts >= 8 and experts % 4 == 0 else rules:
        for dtype, rounding in ULP.items():
            ours, (theirs, weights) = route(logits, rule, top_k, dtype), rule.route(logits, top_k)
            same = (ours.experts == theirs).all(-1)
            far = ((ours.weights.double() / weights.double()) - 1).abs()[same]
            compared += 1
            if same.float().mean() < 0.95 or not bool((far <= 4 * rounding).all()):
                failures.append(f"{rule.score} {dtype}: {int((~same).sum())} rows with other experts, or weights apart")
    check(f"fused routers equal torch, T {rows} E {experts} K {top_k}", compared, failures)


def check_graphs(device: str, shape: Shape) -> None:
    """Captured once, replayed over new logits; and the same calls with every synchronisation an error."""
    rows, experts, top_k, lanes = shape
    compared, failures = 0, []
    step = random_step(rows, lanes, device)
    for chosen in map(policy, settings(experts, top_k)):
        logits = torch.randn(rows, experts, device=device)
        with kernels.kernel("triton"):
            for _ in range(2):
                chosen(routed(logits, top_k), step, RULE)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                chosen(routed(logits, top_k), step, RULE)
            except RuntimeError as error:
                failures.append(f"{chosen.label}: waits for the host: {str(error).splitlines()[0]}")
                continue
            finally:
                torch.cuda.set_sync_debug_mode("default")
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = chosen(routed(logits, top_k), step, RULE)
        for _ in range(3):
            logits.copy_(torch.randn_like(logits) * 2)
            graph.replay()
            with kernels.kernel("torch"):
                fresh = chosen(routed(logits, top_k), step, RULE)
            compared += 1
            if not torch.equal(captured.experts, fresh.experts):
                failures.append(f"{chosen.label}: the replay differs")
    check(f"graphs of kernels, T {rows} E {experts} K {top_k} G {lanes}", compared, failures)


def main() -> None:
    given = arguments(__doc__).parse_args()
    shapes, device = TINY if given.tiny else SHAPES, given.device
    some = 3 if given.tiny else None
    with torch.inference_mode():
        # what a step of a real model runs first: each further type and rule has kernels of its own to compile
        for shape in shapes[:FIRST]:
            check_equality(device, shape, torch.float32, [RULE], some)
        check_weights(device, shapes[0], torch.float32, [RULE], 1)
        if given.quick:
            return
        for shape in GRAPHS if device == "cuda" else ():
            check_graphs(device, shape)
        for shape in shapes:
            check_routers(device, shape)
        bias = torch.randn(shapes[0][1], device=device) * 0.1
        for dtype in list(ULP)[: 1 if given.tiny else None]:
            rules = [RULE, RouterRule(renormalize=False, scaling=2.5), RouterRule(score="sigmoid", bias=bias)]
            check_weights(device, shapes[0], dtype, rules, 2 if given.tiny else 6)
            for shape in shapes:
                check_equality(device, shape, dtype, [RULE, RouterRule(renormalize=False)], some)


if __name__ == "__main__":
    main()
