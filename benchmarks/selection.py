"""What selection costs in one layer of a decode step: the torch definitions, torch.compile of them, the fused kernels.

    python benchmarks/selection.py [--quick] [--repeats 15]

One lane, every row live, fp32. `router` is what the model's own router does anyway (softmax, top-k, renormalise), and
`fused router` the kernel that takes its place, for scale; the others start from logits, so each also computes that
softmax once, which a policy behind the fused router does not.

On a GPU, `launched` calls from Python each time, as an eager decode step does, and `replayed` replays a CUDA graph. The
last line's ratio is compiled / kernel, replayed: at 1 or below, the kernel has nothing to offer and should go. On a CPU
the kernels run only under an interpreter, so there the subjects are the definitions with the compiled loops
(`lynx_exp.routing.backends.numba`), which is how they run there, and without (plain torch); the ratio is torch / loops.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from benchmarks.harness import interleave, paired_ratio, report
from benchmarks.on_gpu.cases import RULE, decode_step, routed
from lynx_exp.routing import Policy, Routing, build_policy
from lynx_exp.routing.backends.numba import native
from lynx_exp.routing.backends.triton import kernels

GOAL = 1.0
SHAPES = [(8, 2), (64, 8), (128, 8), (256, 8)]
ROWS = [16, 64, 256]
HEADLINE = ("lynx", 128, 8, 16)
"""The shape of Qwen3-30B-A3B, at the smallest batch."""
ROUND_S = 2e-3
"""Seconds that one timed round of one subject should take at least, so that the clock's own cost does not show."""
IN_ROUNDS = "coverage_in_rounds"
NAMES = ["no_drop", "lynx", "oea", "xshare", "coverage", IN_ROUNDS, "lynx_v1_latency", "lynx_v1_accuracy"]
NAMES += ["top_k", "top_p"]

Run = Callable[[], Any]


def policy_of(name: str, experts: int, top_k: int) -> Policy:
    """The policy as one would run it on a model of this shape."""
    own: dict[str, Any] = {
        "oea": {"k0": max(1, top_k // 2)},
        "xshare": {"budget": max(top_k, experts // 2)},
        "lynx_v1_latency": {"keep_experts": max(top_k, experts // 2)},
        "top_k": {"k": max(1, top_k // 2)},
    }
    if name == IN_ROUNDS:
        return build_policy("coverage", rounds=6)
    return build_policy(name, **own.get(name, {}))


def subjects(policy: Policy, experts: int, top_k: int, rows: int, device: str, compiles: bool) -> dict[str, Run]:
    torch.manual_seed(0)
    before = routed(torch.randn(rows, experts, device=device) * 2, top_k)
    step = decode_step(rows, device)

    def fresh() -> Routing:
        return Routing(logits=before.logits, experts=before.experts, weights=before.weights)

    def router() -> Routing:
        return routed(before.logits, top_k)

    def definition() -> Routing:
        return policy.route(fresh(), step, RULE)

    if device == "cpu":
        return {"router": router, "loops": definition, "torch": lambda: without_loops(definition)}
    kernels.set_kernel("triton")  # one that cannot run is an error, not a time
    if kernels.select(policy, fresh(), step, RULE) is None:
        raise ValueError(f"{policy.name}: no kernel serves {experts} experts and {rows} rows")
    from lynx_exp.routing.backends.triton.kernels.route import route

    chosen: dict[str, Run] = {
        "router": router,
        "fused router": lambda: route(before.logits, RULE, top_k, torch.float32),
        "torch": definition,
        "kernel": lambda: kernels.select(policy, fresh(), step, RULE),
    }
    if compiles:
        torch._dynamo.reset()
        chosen["compiled"] = torch.compile(definition, dynamic=False)
    launched = {f"{name} launched": run for name, run in chosen.items()}
    return launched | {f"{name} replayed": replayed(run) for name, run in chosen.items()}


def without_loops(run: Run) -> Any:
    there = native.AVAILABLE
    native.AVAILABLE = False
    try:
        return run()
    finally:
        native.AVAILABLE = there


def replayed(run: Run) -> Run:
    """The run as a CUDA graph; compiled beforehand, and warmed up on a stream of its own, as capturing asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay(_kept: Any = kept) -> None:
        graph.replay()

    return replay


def steady(run: Run, device: str) -> tuple[Run, int]:
    """(the run repeated until it takes ROUND_S, how often); waits for the device once, at the end."""

    def repeat(times: int) -> None:
        for _ in range(times):
            run()
        if device == "cuda":
            torch.cuda.synchronize()

    repeat(2)
    start = perf_counter()
    repeat(2)
    times = max(1, min(200, round(ROUND_S * 2 / (perf_counter() - start))))
    return lambda: repeat(times), times


def measure(
    name: str, experts: int, top_k: int, rows: int, device: str, repeats: int, compiles: bool
) -> dict[str, Any]:
    policy = policy_of(name, experts, top_k)
    rounds = {
        subject: steady(run, device)
        for subject, run in subjects(policy, experts, top_k, rows, device, compiles).items()
    }
    seconds = interleave({subject: run for subject, (run, _) in rounds.items()}, repeats)
    us = {subject: [s / rounds[subject][1] * 1e6 for s in times] for subject, times in seconds.items()}
    case: dict[str, Any] = {"policy": policy.label, "name": name, "experts": experts, "top_k": top_k, "rows": rows}
    case["us"] = {subject: paired_ratio(times, [1.0] * len(times)) for subject, times in us.items()}
    slow, fast = ("torch", "loops") if device == "cpu" else ("compiled replayed", "kernel replayed")
    if slow in us:
        case["ratio"], case["low"], case["high"] = paired_ratio(us[slow], us[fast])
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two shapes, two numbers of rows, five repeats")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--policies", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--compile-coverage", action="store_true", help="its loop is unrolled: minutes for each shape")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)  # tensors this small gain nothing from threads, and would time how they wait
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread"
    shapes, all_rows = (SHAPES[::2], ROWS[:2]) if arguments.quick else (SHAPES, ROWS)
    print(f"microseconds a layer (median and its 95 % interval), {where}")
    if device == "cpu":
        print("no GPU: the kernels are not timed; compiled loops " + ("run" if native.AVAILABLE else "are missing"))
    cases = []
    with torch.inference_mode():
        for experts, top_k in shapes:
            for rows in all_rows:
                for name in arguments.policies:
                    compiles = name not in ("coverage", IN_ROUNDS) or arguments.compile_coverage
                    repeats = 5 if arguments.quick else arguments.repeats
                    cases.append(measure(name, experts, top_k, rows, device, repeats, compiles))
                    show(cases[-1])
    compared = [case for case in cases if "ratio" in case]
    wanted = [c for c in compared if (c["name"], c["experts"], c["top_k"], c["rows"]) == HEADLINE] or compared
    middle = statistics.median(case["ratio"] for case in compared)
    print(
        f"median of the ratios of all {len(compared)} cases: {middle:.2f}; the last line is for {wanted[0]['policy']}"
    )
    report("selection" if device == "cuda" else "selection on a CPU", GOAL, wanted[0], cases)


def show(case: dict[str, Any]) -> None:
    times = "  ".join(f"{subject} {m:.1f} [{low:.1f}, {high:.1f}]" for subject, (m, low, high) in case["us"].items())
    ratio = f"  ratio {case['ratio']:.2f} [{case['low']:.2f}, {case['high']:.2f}]" if "ratio" in case else ""
    shape = f"E {case['experts']:>3} K {case['top_k']} T {case['rows']:>3}"
    print(f"{shape} {case['name']:>16}  {times}{ratio}", flush=True)


if __name__ == "__main__":
    main()
