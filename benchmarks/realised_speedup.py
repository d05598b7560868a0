"""How much of the ideal speed-up a smaller set of active experts really gives, on a model that exceeds the caches.

    python benchmarks/realised_speedup.py [--shape qwen3_30b_a3b] [--layers 1] [--batch 16]

One lane, decode steps interleaved with vanilla's. The ideal is the bytes model (`engine.timing.step_bytes`): (bytes
that a vanilla step reads) / (bytes that the policy's step reads). Realised = measured speed-up / ideal; the goal is 0.9
at every share.
"""

from __future__ import annotations

import argparse
import random

import torch

from benchmarks.harness import report
from benchmarks.shapes import SHAPES, VOCABULARY, gib, large_engine
from lynx_exp import build_policy

GOAL = 0.9
SHARES = (1.0, 0.75, 0.5, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3_30b_a3b")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-graphs", action="store_true", help="on a GPU: launch each step from Python")
    arguments = parser.parse_args()
    engine = large_engine(arguments.shape, arguments.layers)
    if arguments.no_graphs:
        engine.steps.refuse("--no-graphs")
    draw = random.Random(0)
    prompts = [[draw.randrange(VOCABULARY) for _ in range(arguments.prompt)] for _ in range(arguments.batch)]
    first = engine.measure(prompts, batch_size=arguments.batch, policies={}, new_tokens=4, repeats=1)
    full = first.active_experts["vanilla"]
    policies = {
        f"{share:.0%}": build_policy("lynx_v1_latency", keep_experts=max(engine.top_k, round(share * full)))
        for share in SHARES
    } | {"no_drop": build_policy("no_drop")}
    timing = engine.measure(
        prompts,
        batch_size=arguments.batch,
        policies=policies,
        new_tokens=arguments.new_tokens,
        repeats=arguments.repeats,
    )
    print(
        f"{arguments.shape}, {arguments.layers} layers, {gib(engine):.1f} GiB, {engine.dtype} on {engine.device}, "
        f"batch {arguments.batch}, {torch.get_num_threads()} threads, experts by {timing.experts_implementation}"
    )
    print(f"{'policy':>8} {'active':>7} {'step ms':>8} {'speed-up':>20} {'ideal':>6} {'realised':>9} {'of a copy':>9}")
    cases = []
    used = {name: timing.bandwidth(name) for name in timing.names}
    whole = used["vanilla"]
    assert whole is not None
    for name in timing.names:
        active, own = timing.active_experts[name], used[name]
        assert own is not None
        ideal = whole.step_gb / own.step_gb
        speedup, low, high = timing.speedup(name)
        case = {
            "policy": name,
            "active": active,
            "step_ms": timing.step_time_ms(name)[0],
            "speedup": speedup,
            "ideal": ideal,
            "ratio": speedup / ideal,
            "low": (low or speedup) / ideal,
            "high": (high or speedup) / ideal,
            "s_mbu": own.s_mbu,
        }
        cases.append(case)
        print(
            f"{name:>8} {active:>7.1f} {case['step_ms']:>8.2f} {speedup:>6.2f} "
            f"[{low or speedup:5.2f},{high or speedup:5.2f}] {ideal:>6.2f} {case['ratio']:>9.2f} {own.s_mbu:>9.2f}"
        )
    pruned = [case for case in cases if case["policy"] in ("75%", "50%", "25%")]
    report("realised_speedup", GOAL, min(pruned, key=lambda case: case["ratio"]), cases)


if __name__ == "__main__":
    main()
