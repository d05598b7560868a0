"""How many launches selection takes in one layer of a decode step on a GPU: the torch definitions, and the kernels.

    python benchmarks/launches.py [--rows 16 64 256] [--lanes 1] [--experts 128] [--top-k 8]

Nothing is run and no GPU is needed: tensors are on torch's `meta` device, which takes the paths of a GPU. Counted are
the torch operations that compute something (views and empty tensors do not), each as one launch, though a sort or an
`index_add_` takes several, and the launches of the project's kernels. The router's own softmax, top-k and
renormalisation come before, in a line of their own; the one softmax over all experts that a policy asks for is counted
(where the router's kernel has run, it is there already). What layers share is computed in the first: the second is
counted.

The last line's ratio is launches of the torch definition / launches of the kernel, in the median over policies.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness import report
from lynx_exp.routing import (
    Calibrated,
    Calibration,
    ModelShape,
    PerLayer,
    Policy,
    RouterRule,
    Routing,
    StepContext,
    build_policy,
    policy_names,
)
from lynx_exp.routing.backends.triton import kernels
from lynx_exp.routing.backends.triton.kernels import by_row, in_rounds, route, selection
from lynx_exp.routing.calibration import SIMILARITIES

GOAL = 4.0
FREE = {"aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::detach", "prim::device"}
LAYERS = 2


class Launches(TorchDispatchMode):
    """Counts those of a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.torch = 0
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.torch += not func.is_view and func._schema.name not in FREE
        return func(*args, **(kwargs or {}))

    def __getitem__(self, _grid: tuple[int, ...]) -> Any:
        """Stands for every kernel."""

        def launch(*_: Any, **__: Any) -> None:
            self.kernels += 1

        return launch


@contextmanager
def counting() -> Iterator[Launches]:
    counted = Launches()
    with ExitStack() as stack:
        for module in (selection, by_row, in_rounds, route):
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                stack.enter_context(patch.object(module, name, counted))
        stack.enter_context(counted)
        yield counted


def policies(experts: int, top_k: int) -> list[Policy]:
    """Every policy but vanilla, as one would run it on a router of this shape."""
    half, some = max(top_k, experts // 2), max(1, top_k // 2)
    own: dict[str, dict[str, Any]] = {
        "keep_ranks": {"ranks": some},
        "lexi": {"mean_k": float(some)},
        "lynx_v1_latency": {"keep_experts": half},
        "oea": {"k0": some},
        "random_keep": {"keep_experts": half},
        "sere": {"primary": some},
        "static_mask": {"keep_experts": half},
        "top_k": {"k": some},
        "xshare": {"budget": half},
    }
    facts = Calibration(
        fingerprint="",
        similarity={metric: torch.rand(LAYERS, experts, experts) for metric in SIMILARITIES},
        ratio=torch.rand(LAYERS, top_k),
        divergence=torch.rand(LAYERS, top_k),
        saliency=torch.rand(LAYERS, experts),
        largest=torch.rand(LAYERS, experts),
        provenance={},
    )
    shape = ModelShape(num_experts=experts, top_k=top_k, num_layers=LAYERS)
    found = [build_policy(name, **own.get(name, {})) for name in policy_names() if name != "vanilla"]
    found.append(build_policy("coverage", rounds=6))
    return [(p.calibrated(facts) if isinstance(p, Calibrated) else p).bind(shape) for p in found]


def launches(policy: Policy, kernel: kernels.Kernel, rows: int, lanes: int, experts: int, top_k: int) -> int:
    """Of the second layer of a decode step."""
    numbers = torch.arange(rows, device="meta")
    step: dict[str, Any] = {
        "decode": torch.ones(rows, dtype=torch.bool, device="meta"),
        "lane": numbers % lanes,
        "live": torch.ones(rows, dtype=torch.bool, device="meta"),
        "num_lanes": lanes,
        "key": numbers[:lanes],
        "row": numbers,
        "shared": {},
    }
    with kernels.kernel(kernel):
        for layer in range(LAYERS):
            routing = Routing(
                torch.empty(rows, experts, device="meta"),
                torch.empty(rows, top_k, dtype=torch.int64, device="meta"),
                torch.empty(rows, top_k, device="meta"),
            )
            with counting() as counted:
                policy(routing, StepContext(layer=layer, **step), RouterRule())
    return counted.torch + counted.kernels


def of_router(kernel: kernels.Kernel, rows: int, experts: int, top_k: int) -> int:
    """Of a router after its matrix: softmax, top-k, renormalisation, rounding, as transformers has them, or fused."""
    logits = torch.empty(rows, experts, device="meta", dtype=torch.bfloat16)
    with counting() as counted:
        if kernel == "triton":
            route.route(logits, RouterRule(), top_k, torch.bfloat16)
        else:
            best, _ = torch.softmax(logits, -1, dtype=torch.float).topk(top_k)
            best /= best.sum(-1, keepdim=True)
            best.to(torch.bfloat16)
    return counted.torch + counted.kernels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--top-k", type=int, default=8)
    given = parser.parse_args()
    shape = (given.lanes, given.experts, given.top_k)
    print(f"launches of a layer's selection, E {given.experts}, K {given.top_k}, {given.lanes} lanes: torch -> kernels")
    print(f"{'':>70}" + "".join(f"{f'T {rows}':>14}" for rows in given.rows))
    cases: list[dict[str, Any]] = []
    router = [(of_router("torch", rows, *shape[1:]), of_router("triton", rows, *shape[1:])) for rows in given.rows]
    print(f"{'router':>70}" + "".join(f"{f'{before} -> {after}':>14}" for before, after in router))
    for policy in policies(given.experts, given.top_k):
        shown = ""
        for rows in given.rows:
            before, after = (launches(policy, kernel, rows, *shape) for kernel in ("torch", "triton"))
            shown += f"{f'{before} -> {after}':>14}"
            case = {"policy": policy.name, "rows": rows, "torch": before, "kernel": after, "ratio": before / after}
            cases.append(case)
        label = policy.policies[0].label if isinstance(policy, PerLayer) else policy.label
        print(f"{f'{policy.name}: {label}' if isinstance(policy, PerLayer) else label:>70}{shown}")
    ratios = [case["ratio"] for case in cases]
    middle = {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    report("launches", GOAL, middle, cases)


if __name__ == "__main__":
    main()
