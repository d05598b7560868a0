"""One model of true layer shapes, random weights drawn on the device: decode steps of vanilla and policies as `measure`
times them, a record each as soon as a batch size is done, and a stream of an accuracy run.

The ideal is the bytes model (`lynx_exp.engine.timing.step_bytes`): vanilla's bytes over the policy's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.on_gpu.cases import arguments
from benchmarks.on_gpu.records import case, check
from benchmarks.shapes import SHAPES, VOCABULARY, gib, large_engine
from lynx_exp import Engine, build_policy
from lynx_exp.engine import Timing
from lynx_exp.routing import Policy

LAYER_GIB = {"qwen3_30b_a3b": (1.13, 48), "mixtral_8x7b": (2.7, 32)}
"""Of a layer in 16 bits, and how many the model has."""
BESIDE_GIB = 10.0
"""For keys and values, graphs, what a step needs, and the copy that is timed."""
PROMPT = 64
KERNELS = 24
"""The dearest of a run, which are told."""
TINY = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
TINY |= {
    "moe_intermediate_size": 16,
    "num_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "head_dim": 16,
}


def built(shape: str, device: str, tiny: bool, layers: int | None) -> Engine:
    """So many layers of the model, or as many as fit."""
    if tiny:
        kind, own = SHAPES[shape]
        sizes = own | {name: value for name, value in TINY.items() if name in own}
        sizes |= {"num_hidden_layers": 1, "vocab_size": VOCABULARY, "max_position_embeddings": 512}
        return Engine.from_config(kind, sizes, device=device)
    each, most = LAYER_GIB[shape]
    free = torch.cuda.mem_get_info()[0] / 2**30
    fitting = max(1, min(most, int((free - BESIDE_GIB) / each)))
    return large_engine(shape, fitting if layers is None else min(layers, fitting), device=device)


def policies(engine: Engine, active: float) -> dict[str, tuple[Policy, str]]:
    """label -> (policy, its share of the active experts where that is what it sets)."""
    E, K = engine.num_experts, engine.top_k
    some = max(1, K // 2)
    named: list[tuple[str, dict[str, Any], str]] = [
        ("no_drop", {}, ""),
        ("lynx", {"alpha": 3.0, "beta": some}, ""),
        ("oea", {"k0": some}, ""),
        ("xshare", {"budget": max(K, E // 2)}, ""),
        ("top_k", {"k": some}, ""),
        ("coverage", {"tolerance": 0.2}, ""),
        ("lynx_v1_latency", {"keep_experts": max(K, round(active / 2))}, "half"),
        ("lynx_v1_latency", {"keep_experts": max(K, round(active / 4))}, "quarter"),
    ]
    found = {f"{name} {share}".strip(): (build_policy(name, **own), share) for name, own, share in named}
    return found


def steps(engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: int, repeats: int) -> None:
    """Records of one batch size, all prompts in one lane."""
    batch = len(prompts)
    first = engine.measure(prompts, batch_size=batch, policies={}, new_tokens=2, repeats=1)
    chosen = policies(engine, first.active_experts["vanilla"])
    timing = engine.measure(
        prompts,
        batch_size=batch,
        policies={label: policy for label, (policy, _) in chosen.items()},
        new_tokens=new_tokens,
        repeats=repeats,
    )
    for label in timing.names:
        policy, share = chosen.get(label, (None, ""))
        numbers = step(engine, timing, label)
        case("step", name=label, policy=policy.name if policy else "vanilla", share=share, batch=batch, **numbers)
    wrong = [] if engine.device.type == "cpu" or timing.graphed else ["its steps could not be captured"]
    control = [] if abs(timing.active_experts["no_drop"] - timing.active_experts["vanilla"]) < 1e-9 else [
        "no_drop runs other experts than vanilla"
    ]  # fmt: skip
    check(f"steps of batch {batch}", 2, wrong + control)


def step(engine: Engine, timing: Timing, label: str) -> dict[str, Any]:
    """What is known of one subject."""
    own, vanilla = timing.bandwidth(label), timing.bandwidth("vanilla")
    speedup, low, high = timing.speedup(label)
    found = {
        "layers": engine.num_layers,
        "active": timing.active_experts[label],
        "step_ms": timing.step_time_ms(label)[0],
        "speedup": speedup,
        "low": low,
        "high": high,
        "experts": timing.experts_implementation,
        "graphed": timing.graphed,
    }
    if own is not None and vanilla is not None and timing.hardware is not None:
        ideal = vanilla.step_gb / own.step_gb
        found |= {"ideal": ideal, "realised": speedup / ideal, "gb": own.step_gb, "gb_s": own.gb_s, "s_mbu": own.s_mbu}
        found["copy_gb_s"] = timing.hardware.copy_gb_s
    return found | {"j_per_token": timing.joules_per_token.get(label)}


def stream(engine: Engine, prompts: Sequence[Sequence[int]], lane: int, long: int, short: int) -> None:
    """Steps of an accuracy run of all prompts side by side, in lanes: what a longer run takes beyond a shorter one, so
    that prompts and set-up cancel. The first run, which compiles and captures, does not count."""
    some = max(1, engine.top_k // 2)
    for label, policy in (
        ("vanilla", None),
        ("lynx", build_policy("lynx", alpha=3.0, beta=some)),
        ("coverage", build_policy("coverage", tolerance=0.2)),
        ("oea", build_policy("oea", k0=some)),
    ):
        _run(engine, prompts, lane, policy, long)
        more, less = (_run(engine, prompts, lane, policy, tokens) for tokens in (long, short))
        ms = (more - less) / (long - short) * 1e3
        numbers = {"rows": len(prompts), "layers": engine.num_layers, "step_ms": ms}
        case("stream", name=label, **numbers, tokens_per_s=len(prompts) / ms * 1e3, steps=engine.steps.record())


def kernels(engine: Engine, prompts: Sequence[Sequence[int]], lane: int, policy: Policy | None, tokens: int) -> None:
    """Where the time of a run goes: a record for each of its dearest kernels, in microseconds a step and layer."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        _run(engine, prompts, lane, policy, tokens)
    spent: dict[str, list[float]] = {}
    for event in profiler.key_averages():
        spent[event.key] = [event.self_device_time_total, event.count]
    layers, name = engine.num_layers, "vanilla" if policy is None else policy.name
    for key, (us, count) in sorted(spent.items(), key=lambda item: -item[1][0])[:KERNELS]:
        numbers = {"us": us / tokens / layers, "count": count / tokens / layers}
        case("kernel", name=name, rows=len(prompts), kernel=key[:60], **numbers)


def _run(engine: Engine, prompts: Sequence[Sequence[int]], lane: int, policy: Policy | None, tokens: int) -> float:
    """Seconds."""
    start = time.perf_counter()
    engine.generate(prompts, batch_size=lane, policy=policy, max_new_tokens=tokens, ignore_eos=True)
    if engine.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3_30b_a3b")
    parser.add_argument("--batches", type=int, nargs="+", default=[16])
    parser.add_argument("--stream", type=int, default=0, help="rows")
    parser.add_argument("--layers", type=int, help="(default: all that fit)")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    batches, rows = ([2], 4) if given.tiny else (given.batches, given.stream)
    start = time.perf_counter()
    engine = built(given.shape, given.device, given.tiny, given.layers)
    case("built", shape=given.shape, layers=engine.num_layers, gib=gib(engine), seconds=time.perf_counter() - start)
    draw = random.Random(0)
    prompts = [[draw.randrange(3, VOCABULARY) for _ in range(PROMPT)] for _ in range(max(*batches, rows, 1))]
    for batch in batches:
        steps(engine, prompts[:batch], 2 if given.tiny else 8, 2 if given.tiny else given.repeats)
    if rows:
        long, short = (4, 2) if given.tiny else (20, 4)
        stream(engine, prompts[:rows], 2 if given.tiny else 16, long, short)
    if rows and not given.tiny:
        some = max(1, engine.top_k // 2)
        for policy in (None, build_policy("lynx", alpha=3.0, beta=some)):
            _run(engine, prompts[:16], 16, policy, 4)
            kernels(engine, prompts[:16], 16, policy, 20)


if __name__ == "__main__":
    main()
